"""--pretrained PATH: ImageNet weights from a file, tensor by tensor or not at all."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from modeling import create_model

NAME = "test_resnet"  # timm's smallest
CLASSES = ["NORMAL", "OPACITY"]


def imagenet(seed=0):
    """Weights as a file of NAME would hold them: three channels, 1,000 classes."""
    torch.manual_seed(seed)
    state = timm.create_model(NAME).state_dict()
    return {
        key: torch.randn_like(value) if value.is_floating_point() else value
        for key, value in state.items()
    }


def renamed(weights):
    """The same tensors in the same order, under another library's names."""
    return {
        f"backbone.{row}.{key.rpartition('.')[2]}": value
        for row, (key, value) in enumerate(weights.items())
    }


def first_convolution(network):
    return next(m for m in network.modules() if isinstance(m, torch.nn.Conv2d)).weight


def start(path, **options):
    return create_model(NAME, CLASSES, 64, str(path), **options)


@pytest.mark.parametrize(
    ("suffix", "keys"),
    [
        (".safetensors", dict),
        (".pth", dict),
        (".pth", lambda weights: {key: weights[key] for key in sorted(weights)}),
        (".pth", renamed),
    ],
    ids=["safetensors", "pth", "another order", "other names"],
)
def test_weights_under_the_same_keys_or_others_in_the_same_order_are_taken(tmp_path, keys, suffix):
    weights, file = keys(imagenet()), tmp_path / f"weights{suffix}"
    save_file(weights, file) if suffix == ".safetensors" else torch.save(weights, file)
    model, processor = start(file, num_channels=3)
    network = model.network.state_dict()
    head = {key for key in network if network[key].shape[:1] == (len(CLASSES),)}
    for key, value in imagenet().items():
        if key not in head:
            assert torch.equal(network[key], value), key
    assert len(head) == 2
    assert processor.image_mean == list(timm.get_pretrained_cfg(NAME).mean)


@pytest.mark.parametrize("wrap", [lambda w: w, lambda w: {"state_dict": w, "epoch": 3}])
def test_one_channel_sees_the_sum_over_three(tmp_path, wrap):
    weights = imagenet()
    torch.save(wrap(weights), tmp_path / "weights.pt")
    (tmp_path / "README").write_text("where they come from")
    model, processor = start(tmp_path)  # the one file of weights in the folder
    three, three_processor = start(tmp_path / "weights.pt", num_channels=3)
    kernel = first_convolution(three.network).sum(1, keepdim=True)
    torch.testing.assert_close(first_convolution(model.network), kernel)
    assert processor.image_mean == pytest.approx([sum(three_processor.image_mean) / 3])
    assert processor.image_std == pytest.approx([sum(three_processor.image_std) / 3])


def spoil(weights, kind):
    first = next(iter(weights))
    if kind == "missing":
        del weights[first]
    elif kind == "left over":
        weights["another.weight"] = torch.zeros(3)
    else:
        weights[first] = weights[first][:-1]
    return weights


@pytest.mark.parametrize("keys", [dict, renamed])
@pytest.mark.parametrize("kind", ["missing", "left over", "another shape"])
def test_a_tensor_that_does_not_fit_is_named(tmp_path, kind, keys):
    file = tmp_path / "weights.pth"
    torch.save(spoil(keys(imagenet()), kind), file)
    with pytest.raises(ValueError, match=f"{file} does not fit: ") as caught:
        start(file)
    assert str(caught.value).endswith(".")


def test_other_keys_in_a_file_without_order_are_refused(tmp_path):
    file = tmp_path / "weights.safetensors"
    save_file(renamed(imagenet()), file)
    with pytest.raises(ValueError, match="does not fit: .* safetensors keep no order"):
        start(file)


@pytest.mark.parametrize(
    ("write", "sentence"),
    [
        (lambda f: torch.save([1, 2], f), "holds no state dict"),
        (lambda f: torch.save({"a": 1}, f), "holds no state dict"),
        (lambda f: torch.save(torch.nn.Linear(1, 1), f), "no state dict that can be read safely"),
        (lambda f: f.write_bytes(b"no weights"), "no state dict that can be read safely"),
        (lambda f: f.write_bytes(b""), "no state dict that can be read safely"),
        (lambda f: None, "no such file or folder of ImageNet weights"),
    ],
    ids=["list", "numbers", "pickled module", "text", "empty", "absent"],
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_something_else_is_refused(tmp_path, write, sentence, suffix):
    file = tmp_path / f"weights{suffix}"
    write(file)
    if suffix == ".safetensors" and file.exists():
        sentence = "no state dict that can be read safely"
    with pytest.raises((ValueError, OSError), match=sentence):
        start(file)


def test_a_folder_of_several_files_or_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"holds 0 files of weights \(none\); name one file"):
        start(tmp_path)
    for name in ("a.pth", "b.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ValueError, match=r"holds 2 files of weights \(a.pth, b.safetensors\)"):
        start(tmp_path)


def test_options_that_change_the_networks_shape_are_refused(tmp_path):
    file = tmp_path / "weights.pth"
    torch.manual_seed(0)
    torch.save(timm.create_model("densenet121").state_dict(), file)
    with pytest.raises(ValueError, match="do not fit this configuration"):
        create_model("densenet121", CLASSES, 64, str(file), block_config=[1, 1])
    with pytest.raises(ValueError, match="no pretrained weights"):
        create_model("baseline", CLASSES, 64, str(file))
