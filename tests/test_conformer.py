"""Conformer against plain statements of its equations, its facts, heatmaps and refusals."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from network_statements import (
    arrays,
    attention,
    batch_norm,
    convolution,
    gelu,
    layer_norm,
    linear,
    part,
    relu,
    seed_weights,
)

from modeling import create_model
from modeling.conformer_cxr import (
    CoupledBlock,
    CouplingDown,
    CouplingUp,
    CxrConformerConfig,
    CxrConformerForImageClassification,
)

NARROW = {"embed_dim": 24, "num_heads": 3, "depth": 6}
PAPER = {"conformer_tiny": 23.53e6, "conformer_small": 37.67e6}  # Peng et al. 2021, table 2


def make(name="conformer_tiny", size=64, classes=("A", "B", "C"), **options):
    torch.manual_seed(0)
    return create_model(name, list(classes), size, **options)[0].eval()


def maps_and_tokens(channels, side, grid, width, count=2):
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(count, channels, side, side)).astype(np.float32)
    tokens = rng.normal(size=(count, 1 + grid**2, width)).astype(np.float32)
    return maps, tokens


def ask(module, *inputs):
    with torch.no_grad():
        return module(*(torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in inputs))


# -------------------------------------------------------------------------------- its equations


def down(maps, tokens, weights, stride):
    """The paper's order: project, average over squares, normalise, activate."""
    maps = convolution(maps, part(weights, "project"))
    count, width, height, _ = maps.shape
    grid = height // stride
    squares = maps.reshape(count, width, grid, stride, grid, stride).mean((3, 5))
    patches = squares.reshape(count, width, grid * grid).transpose(0, 2, 1)
    patches = gelu(layer_norm(patches, part(weights, "norm"), 1e-6))
    return np.concatenate([tokens[:, :1], patches], 1)


def up(tokens, weights, stride):
    patches = tokens[:, 1:].transpose(0, 2, 1)
    grid = round(patches.shape[2] ** 0.5)
    maps = patches.reshape(*patches.shape[:2], grid, grid)
    maps = relu(batch_norm(convolution(maps, part(weights, "project")), part(weights, "norm")))
    return maps.repeat(stride, 2).repeat(stride, 3)


def conv_block(maps, weights, stride, added=0):
    first = convolution(maps, part(weights, "conv1"))
    first = relu(batch_norm(first, part(weights, "norm1"))) + added
    inside = convolution(first, part(weights, "conv2"), stride, 1)
    inside = relu(batch_norm(inside, part(weights, "norm2")))
    out = batch_norm(convolution(inside, part(weights, "conv3")), part(weights, "norm3"))
    if "residual.0.weight" in weights:
        maps = convolution(maps, part(weights, "residual.0"), stride)
        maps = batch_norm(maps, part(weights, "residual.1"))
    return inside, relu(out + maps)


def transformer_block(tokens, weights, num_heads):
    normed = layer_norm(tokens, part(weights, "norm1"), 1e-6)
    scales = [(tokens.shape[2] // num_heads) ** -0.5] * num_heads
    tokens = tokens + attention(normed, part(weights, "attn"), num_heads, scales, False, "proj")
    hidden = layer_norm(tokens, part(weights, "norm2"), 1e-6)
    hidden = gelu(linear(hidden, part(weights, "mlp.fc1")))
    return tokens + linear(hidden, part(weights, "mlp.fc2"))


def coupled_block(maps, tokens, weights, stride, token_stride, fusion_stride, num_heads):
    inside, maps = conv_block(maps, part(weights, "cnn_block"), stride)
    tokens = tokens + down(inside, tokens, part(weights, "down"), token_stride)
    tokens = transformer_block(tokens, part(weights, "transformer_block"), num_heads)
    added = up(tokens, part(weights, "up"), token_stride)
    return conv_block(maps, part(weights, "fusion_block"), fusion_stride, added)[1], tokens


@pytest.mark.parametrize("stride", [4, 2, 1])
def test_coupling_units_are_their_equations(stride):
    maps, tokens = maps_and_tokens(8, 8, 8 // stride, 12)
    module = seed_weights(CouplingDown(8, 12, stride))
    expected = down(maps, tokens, arrays(module), stride)
    np.testing.assert_allclose(ask(module, maps, tokens), expected, atol=1e-5)
    module = seed_weights(CouplingUp(12, 8, stride))
    expected = up(tokens, arrays(module), stride)
    np.testing.assert_allclose(ask(module, tokens, 8, 8), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "token_stride", "last"),
    [((16, 16), 4, False), ((16, 32), 2, False), ((32, 32), 1, True)],
    ids=["plain", "first of a stage", "last"],
)
def test_a_coupled_block_is_its_equations(channels, token_stride, last):
    config = CxrConformerConfig(**NARROW)
    module = seed_weights(CoupledBlock(config, *channels, token_stride, last))
    stride = 2 if channels[0] != channels[1] else 1
    maps, tokens = maps_and_tokens(channels[0], 8, 8 // stride // token_stride, 24)
    expected = coupled_block(
        maps, tokens, arrays(module), stride, token_stride, 2 if last else 1, config.num_heads
    )
    for found, wanted in zip(ask(module, maps, tokens), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("stem_stride", [4, 2])
def test_the_network_is_its_equations_from_the_pixels_to_both_heads(stem_stride):
    model = make(**NARROW, stem_stride=stem_stride, size=32)
    weights = arrays(seed_weights(model).network)
    pixels = np.random.default_rng(0).normal(size=(2, 1, 32, 32)).astype(np.float32)
    stem = convolution(pixels, part(weights, "stem.0"), 2, 3)
    stem = relu(batch_norm(stem, part(weights, "stem.1"), 1e-5))
    if stem_stride == 4:
        padded = np.pad(stem, [(0, 0), (0, 0), (1, 1), (1, 1)])  # zeros: no value is below
        windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
        stem = windows[:, :, ::2, ::2].max((4, 5))
    patches = convolution(stem, part(weights, "patch_embed"), 4)
    patches = patches.reshape(*patches.shape[:2], -1).transpose(0, 2, 1)
    tokens = np.concatenate([weights["class_token"].repeat(2, 0), patches], 1)
    tokens = transformer_block(tokens, part(weights, "transformer_block"), 3)
    maps = conv_block(stem, part(weights, "cnn_block"), 1)[1]
    # six blocks: one apart, one of the first stage, two of each later one
    strides = [(1, 4, 1), (2, 2, 1), (1, 2, 1), (2, 1, 1), (1, 1, 2)]
    for index, (stride, token_stride, fusion_stride) in enumerate(strides):
        block = part(weights, f"blocks.{index}")
        maps, tokens = coupled_block(maps, tokens, block, stride, token_stride, fusion_stride, 3)
    pooled, token = maps.mean((2, 3)), layer_norm(tokens[:, 0], part(weights, "norm"), 1e-5)
    expected = [linear(pooled, part(weights, "cnn_head"))]
    expected += [linear(token, part(weights, "transformer_head"))]

    output = ask(model, pixels)
    scale = np.abs(expected).max()
    for found, wanted in zip(output.head_logits, expected, strict=True):
        np.testing.assert_allclose(found / scale, wanted / scale, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * scale
    np.testing.assert_allclose(output.logits / scale, sum(expected) / scale, atol=1e-4)
    torch.testing.assert_close(
        model.embed(torch.from_numpy(pixels)).double(),
        torch.from_numpy(np.concatenate([pooled, token], 1)),
        rtol=1e-3,
        atol=1e-4 * scale,
    )


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_the_loss_is_the_mean_of_both_heads(problem):
    model = seed_weights(make(**NARROW, problem_type=f"{problem}_label_classification"))
    labels = torch.tensor([0, 2]) if problem == "single" else torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    output = model(torch.randn(2, 1, 64, 64), labels)
    measure = F.cross_entropy if problem == "single" else F.binary_cross_entropy_with_logits
    losses = [measure(logits, labels) for logits in output.head_logits]
    torch.testing.assert_close(output.loss, sum(losses) / 2)
    assert abs(measure(output.logits, labels) - output.loss) > 1e-3


# ------------------------------------------------------------------------------------ its facts


@pytest.mark.parametrize("name", PAPER)
def test_it_has_the_papers_parameters(name):
    with torch.device("meta"):
        config = make(name, 32, depth=3).config  # what the name stands for
        config.update({"depth": 12, "num_channels": 3, "num_labels": 1000})
        count = CxrConformerForImageClassification(config).num_parameters()
    assert count == pytest.approx(PAPER[name], rel=0.005)
    assert f"{count:,}" in CxrConformerForImageClassification.__doc__


def test_the_mini_has_the_parameters_stated():
    count = make("conformer_mini", classes="AB").num_parameters()
    assert f"{count:,} parameters" in CxrConformerForImageClassification.__doc__


@pytest.mark.parametrize(("name", "ratio"), [("conformer_tiny", 1), ("conformer_small", 4)])
def test_its_stages_have_the_papers_widths_and_strides(name, ratio):
    network = make(name, **NARROW | {"depth": 12}).network
    seen = [network.cnn_block, *(block.fusion_block for block in network.blocks)]
    shapes = []
    for module in seen:
        module.register_forward_hook(lambda m, args, output: shapes.append(tuple(output.shape[1:])))
    with torch.no_grad():
        _, tokens = network.forward_features(torch.zeros(1, 1, 224, 224))
    assert tokens.shape[1] == 1 + 14 * 14
    expected = (
        4 * [(64 * ratio, 56, 56)] + 4 * [(128 * ratio, 28, 28)] + 3 * [(256 * ratio, 14, 14)]
    )
    assert shapes == [*expected, (256 * ratio, 7, 7)]
    assert [block.down.stride for block in network.blocks] == 3 * [4] + 4 * [2] + 4 * [1]
    assert [block.up.stride for block in network.blocks] == 3 * [4] + 4 * [2] + 4 * [1]


def test_a_fresh_one_starts_as_the_papers_code_does():
    model = make("conformer_mini")
    for name, module in model.network.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.15), name
            assert not module.bias.any()
        elif isinstance(module, torch.nn.Conv2d):
            height, width = module.kernel_size
            expected = (2 / (module.out_channels * height * width)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.15), name
    assert model.network.class_token.std().item() == pytest.approx(0.02, rel=0.3)


def test_the_cnn_keeps_channels_last():
    network = make(**NARROW).network.to(memory_format=torch.channels_last)
    kept = {}
    for name, module in network.named_modules():
        if isinstance(module, torch.nn.Conv2d) and "down" not in name and "up" not in name:
            module.register_forward_hook(
                lambda m, args, output, name=name: kept.update(
                    {name: output.is_contiguous(memory_format=torch.channels_last)}
                )
            )
    pixels = torch.randn(2, 1, 64, 64).contiguous(memory_format=torch.channels_last)
    network(pixels)
    assert len(kept) > 30 and all(kept.values()), kept


def test_other_sizes_and_three_channels_work():
    model = make(**NARROW, num_channels=3)
    for height, width in ((64, 64), (96, 96), (112, 80)):
        assert ask(model, torch.randn(1, 3, height, width)).logits.isfinite().all()


# ------------------------------------------------------------------------------------- heatmaps


def scaled(cam, size):
    """Each image's positive part, to 0..1 before and after it gets the image's size."""

    def stretch(cam):
        low, high = cam.amin((1, 2), keepdim=True), cam.amax((1, 2), keepdim=True)
        return (cam - low) / (high - low + 1e-7)

    cam = stretch(cam.clamp(min=0))
    return stretch(F.interpolate(cam[:, None], size, mode="bilinear")[:, 0])


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_the_heat_of_the_cnn_is_its_heads_weights_times_its_maps(size):
    model = make("conformer_mini", **NARROW)
    torch.nn.init.normal_(model.network.cnn_head.weight)
    inputs = torch.randn(2, 1, *size)
    with torch.no_grad():
        maps, _ = model.network.forward_features(inputs)
        cams = torch.einsum("bchw,kc->kbhw", maps, model.network.cnn_head.weight)
    heatmaps = torch.stack([model.grad_cam(inputs, target) for target in range(3)])
    for found, cam in zip(heatmaps, cams, strict=True):
        torch.testing.assert_close(found, scaled(cam, size), atol=1e-4, rtol=0)
    assert heatmaps.max() > 0.999


@pytest.mark.parametrize("size", [(64, 64), (96, 64)])
def test_the_heat_of_the_transformer_is_the_gradient_times_its_tokens(size):
    model = make("conformer_mini", **NARROW)
    for head in model.heads:
        torch.nn.init.normal_(head.weight)
    inputs, heatmaps = torch.randn(2, 1, *size), []

    def keep(module, args, output):
        output.retain_grad()
        module.kept = output

    layer = model.network.blocks[-1].transformer_block.norm1
    for target in range(3):
        handle = layer.register_forward_hook(keep)
        logits = model(inputs).logits
        logits[:, target].sum().backward()
        handle.remove()
        tokens, gradients = layer.kept[:, 1:].detach(), layer.kept.grad[:, 1:]
        cam = (gradients.mean(1, keepdim=True) * tokens).sum(2)
        cam = cam.unflatten(1, (size[0] // 8, size[1] // 8))
        output = model.explain(inputs, target, "token_grad_cam")
        heatmaps.append(output.heatmaps)
        torch.testing.assert_close(output.logits, logits.detach(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(output.heatmaps, scaled(cam, size), atol=1e-3, rtol=0)
    assert torch.stack(heatmaps).max() > 0.999


def test_heat_of_tokens_is_for_networks_that_have_them_beside_maps():
    assert make().heatmap_methods[-1] == "token_grad_cam"
    for name in ("baseline", "small_vit", "vit_tiny_patch16_224"):
        model = make(name)
        assert "token_grad_cam" not in model.heatmap_methods
        with pytest.raises(
            ValueError, match="method is 'token_grad_cam'; it can be grad_cam, .*cam.$"
        ):
            model.explain(torch.zeros(1, 1, 64, 64), method="token_grad_cam")


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 100}, r"image_size is 100; .* multiples of 16 \(.*\), such as 96 or 112\.$"),
        ({"size": 8}, "image_size is 8; .* such as 16 or 32"),
        (
            {"num_heads": 5},
            "num_heads is 5, which does not divide embed_dim 384; near it, 2, 3, 4, 6 do",
        ),
        ({"num_heads": 0}, "num_heads is 0, which does not divide"),
        ({"embed_dim": 0}, "embed_dim is 0; it is 1 or more"),
        ({"depth": 10}, "depth is 10; .* multiples of 3 .* such as 9 or 12"),
        ({"channel_ratio": 0}, "channel_ratio is 0"),
        ({"stem_stride": 3}, "stem_stride is 3; it can be 2 or 4"),
        ({"width": 1}, "cxr-conformer has no option 'width'; it has .*channel_ratio"),
    ],
)
def test_what_does_not_fit_is_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make(**options)
    assert str(error.value).endswith(".")


def test_near_names_are_offered():
    with pytest.raises(ValueError, match="'conformer_tyni' is unknown.*mean conformer_tiny, "):
        make("conformer_tyni")


def test_pixels_that_the_strides_do_not_divide_are_refused():
    model = make("conformer_mini", **NARROW)
    with pytest.raises(ValueError, match="of 64 x 60 pixels; this network takes .* of 8.$"):
        model(torch.zeros(1, 1, 64, 60))


def test_a_names_preset_is_kept_and_can_be_overridden():
    model = make("conformer_small", **NARROW)
    assert (model.config.channel_ratio, model.config.embed_dim) == (4, 24)
    assert make("conformer_mini", stem_stride=4, depth=3).config.patch_size == 16
