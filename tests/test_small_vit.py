"""The small-data ViT against plain statements of its equations, its facts and refusals."""

import numpy as np
import pytest
import torch
from network_statements import arrays, attention, gelu, layer_norm, linear, part, seed_weights

from modeling import create_model
from modeling.small_vit_cxr import CxrSmallVitForImageClassification, diagonal_shifts

SMALL = {"embed_dim": 24, "num_heads": 3, "depth": 2}


def make(size=32, classes=("A", "B", "C"), **options):
    torch.manual_seed(0)
    return create_model("small_vit", list(classes), size, **options)[0].eval()


def pixel_values(size=32, channels=1):
    rng = np.random.default_rng(0)
    return rng.normal(size=(2, channels, size, size)).astype(np.float32)


# -------------------------------------------------------------------------------- its equations


def shifted(images, shift):
    """The images moved by `shift` pixels along each diagonal, a pixel at a time."""
    moved = []
    for down, right in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        out = np.zeros_like(images)
        for y in range(images.shape[2]):
            for x in range(images.shape[3]):
                source = y - down * shift, x - right * shift
                if all(0 <= s < side for s, side in zip(source, images.shape[2:])):
                    out[:, :, y, x] = images[:, :, source[0], source[1]]
        moved.append(out)
    return moved


def embed_patches(images, weights, side, is_shifted):
    if is_shifted:
        images = np.concatenate([images, *shifted(images, side // 2)], 1)
    rows = range(0, images.shape[2], side)
    patches = [images[:, :, y : y + side, x : x + side] for y in rows for x in rows]
    # values of a patch: rows, columns, then channels
    tokens = np.stack([p.transpose(0, 2, 3, 1).reshape(len(images), -1) for p in patches], 1)
    if is_shifted:
        tokens = layer_norm(tokens, part(weights, "norm"), 1e-5)
    return linear(tokens, part(weights, "project"))


def statement(images, weights, side, num_heads, depth, is_shifted, is_local):
    tokens = embed_patches(images, part(weights, "patch_embed"), side, is_shifted)
    tokens = np.concatenate([weights["class_token"].repeat(len(images), 0), tokens], 1)
    tokens = tokens + weights["positions"]
    for index in range(depth):
        block = part(weights, f"blocks.{index}")
        own = part(block, "attention")
        scales = own["scale"] if is_local else [(tokens.shape[2] // num_heads) ** -0.5] * num_heads
        normed = layer_norm(tokens, part(block, "norm1"), 1e-5)
        tokens = tokens + attention(normed, own, num_heads, scales, is_local, "project")
        hidden = gelu(linear(layer_norm(tokens, part(block, "norm2"), 1e-5), part(block, "mlp.0")))
        tokens = tokens + linear(hidden, part(block, "mlp.2"))
    token = layer_norm(tokens[:, 0], part(weights, "norm"), 1e-5)
    return token, linear(token, part(weights, "classifier"))


def test_shifts_are_half_a_patch_along_the_diagonals_with_zeros():
    images = pixel_values(8, 3)
    for found, expected in zip(diagonal_shifts(torch.from_numpy(images), 2), shifted(images, 2)):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("is_local", [True, False], ids=["local", "plain attention"])
@pytest.mark.parametrize("is_shifted", [True, False], ids=["shifted", "plain patches"])
def test_the_network_is_its_equations(is_shifted, is_local):
    model = make(**SMALL, shifted_patches=is_shifted, local_attention=is_local, num_channels=3)
    images, weights = pixel_values(channels=3), arrays(seed_weights(model).network)
    token, logits = statement(images, weights, 4, 3, 2, is_shifted, is_local)
    with torch.no_grad():
        output, embeddings = (ask(torch.from_numpy(images)) for ask in (model, model.embed))
    np.testing.assert_allclose(output.logits, logits, atol=1e-4)
    np.testing.assert_allclose(embeddings, token, atol=1e-4)


# ------------------------------------------------------------------------------------ its facts


def test_the_reference_is_the_papers():
    model = make(64, "AB")
    assert f"{model.num_parameters():,} parameters" in CxrSmallVitForImageClassification.__doc__
    network = model.network
    assert network.patch_embed.side == 8
    assert network.positions.shape == (1, 65, 192)
    assert len(network.blocks) == 9
    for block in network.blocks:
        assert block.mlp[0].out_features == 2 * 192
        scale = block.attention.scale  # of each head, a weight, from the inverse root of its width
        assert scale.shape == (12,) and scale.requires_grad
        torch.testing.assert_close(scale, torch.full((12,), 16**-0.5))


def test_temperatures_are_learned():
    model = make(**SMALL).train()
    model(torch.from_numpy(pixel_values()), torch.tensor([0, 1])).loss.backward()
    assert all(block.attention.scale.grad.abs().min() > 0 for block in model.network.blocks)


@pytest.mark.parametrize("off", ["shifted_patches", "local_attention"])
def test_each_part_can_be_left_out_and_stays_so_when_saved(off, tmp_path):
    model = make(**SMALL, **{off: False})
    parameters = {name.split(".")[-1] for name, _ in model.named_parameters()}
    assert ("scale" in parameters) == (off != "local_attention")
    assert model.network.patch_embed.project.in_features == (16 if off == "shifted_patches" else 80)
    model.save_pretrained(tmp_path)
    loaded = CxrSmallVitForImageClassification.from_pretrained(tmp_path)
    inputs = torch.from_numpy(pixel_values())
    assert torch.equal(loaded(inputs).logits, model(inputs).logits)


def test_patches_follow_the_image_or_the_option():
    assert make(96, **SMALL).network.positions.shape[1] == 1 + 8 * 8
    assert make(96, **SMALL, patch_size=8).network.positions.shape[1] == 1 + 12 * 12


def test_a_fresh_one_starts_as_the_papers_code_does():
    network = make(64).network
    for module in network.modules():
        if isinstance(module, torch.nn.Linear):
            expected = (2 / sum(module.weight.shape)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1)
            assert module.bias is None or not module.bias.any()
    assert network.positions.std().item() == pytest.approx(1, rel=0.1)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"size": 100}, r"image_size is 100; .* multiples of 8 .*, such as 96 or 104\.$"),
        ({"size": 64, "patch_size": 12}, "image_size is 64; .* multiples of 12 .* 60 or 72"),
        ({"size": 63, "patch_size": 7}, "patch_size is 7; .* multiples of 2 .* such as 6 or 8"),
        ({"size": 64, "patch_size": 0}, "patch_size is 0; it takes"),
        (
            {"num_heads": 10},
            "num_heads is 10, which does not divide embed_dim 192; near it, 4, 6, 8, 12",
        ),
        ({"depth": 0}, "depth is 0; it is 1 or more"),
        ({"patch": 8}, "cxr-small-vit has no option 'patch'; it has"),
    ],
)
def test_what_does_not_fit_is_a_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as error:
        make(**options)
    assert str(error.value).endswith(".")


def test_odd_patches_need_no_half_without_shifts():
    assert make(63, **SMALL, patch_size=7, shifted_patches=False)


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="of 64 x 32 pixels; this network takes 32 x 32.$"):
        make(**SMALL)(torch.zeros(1, 1, 64, 32))
