"""Published CheXNet checkpoints become models of this project, tensor by tensor or not at all."""

import gzip
import re

import numpy as np
import pytest
import torch
import torchvision
from datasets import Dataset, DatasetDict
from PIL import Image

from datasets_scripts.chestxray14 import FINDINGS
from modeling import create_model, load_model
from modeling.convert import (
    CHEXNET_FINDINGS,
    convert_chexnet,
    convert_xrv,
    load_xrv,
    main,
    read_image_list,
)
from space.models import Classifier
from training.subject import refuse_trained_on


@pytest.fixture(scope="module")
def original():
    """The network of these projects, its weights and statistics at random."""
    torch.manual_seed(0)
    network = torchvision.models.densenet121()
    network.classifier = torch.nn.Sequential(torch.nn.Linear(1024, 14), torch.nn.Sigmoid())
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
    return network.eval()


def of_2017(weights):
    """As PyTorch 0.3 and its torchvision named them, in parallel and inside a class."""
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))")
    return {
        "module.densenet121." + old.sub(r"\1.", key): value
        for key, value in weights.items()
        if not key.endswith("num_batches_tracked")
    }


def save_2017(weights, file):
    more = {"epoch": 7, "best_loss": 0.15, "optimizer": {"state": {}, "param_groups": []}}
    content = {"state_dict": of_2017(weights), **more}
    torch.save(content, file, _use_new_zipfile_serialization=False)


def save_parallel(weights, file):
    torch.save({"state_dict": {f"module.{key}": value for key, value in weights.items()}}, file)


@pytest.mark.parametrize("save", [save_2017, save_parallel, torch.save])
def test_the_logits_are_those_before_the_originals_sigmoid(original, tmp_path, save):
    save(original.state_dict(), tmp_path / "model.pth.tar")
    main(["chexnet", str(tmp_path / "model.pth.tar"), str(tmp_path / "out")])
    model, processor = load_model(str(tmp_path / "out"))
    assert list(model.config.id2label.values()) == list(CHEXNET_FINDINGS)
    pixels = np.random.default_rng(0).integers(0, 65536, (2, 300, 280)).astype(np.uint16)
    pixel_values = processor(list(pixels))["pixel_values"]
    assert pixel_values.shape == (2, 3, 224, 224)
    with torch.no_grad():
        expected = original(pixel_values)
        output = model(pixel_values)
        before = original.classifier[0](
            torch.relu(original.features(pixel_values)).mean(dim=(2, 3))
        )
    torch.testing.assert_close(output.logits, before, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.probabilities, expected, atol=1e-5, rtol=0)


def test_the_processor_makes_the_pixels_that_the_originals_made(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    convert_chexnet(tmp_path / "weights.pth", tmp_path / "out")
    # Square, as those of ChestX-ray14 are; the originals round other sides to whole pixels.
    y, x = np.mgrid[0:600, 0:600]
    grey = np.round(127 + 120 * np.sin(x / 40) * np.cos(y / 50)).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "chest.png")
    transforms = torchvision.transforms
    expected = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
    )(Image.open(tmp_path / "chest.png").convert("RGB"))
    _, processor = load_model(str(tmp_path / "out"))
    found = processor(tmp_path / "chest.png")["pixel_values"][0]
    torch.testing.assert_close(found, expected, atol=0.02, rtol=0)  # a grey level of 256


def spoil(weights, kind):
    if kind == "missing":
        del weights["features.norm5.bias"]
    elif kind == "left over":
        weights["aux.weight"] = torch.zeros(3)
    elif kind == "of 15 findings":
        weights["classifier.0.weight"] = torch.zeros(15, 1024)
        weights["classifier.0.bias"] = torch.zeros(15)
    else:
        weights = {f"layer{n}.weight": torch.zeros(n + 1) for n in range(3)}
    return weights


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("missing", "features.norm5.bias is missing"),
        ("left over", "aux.weight is left over"),
        ("of 15 findings", r"classifier.weight is \(15, 1024\), not \(14, 1024\)"),
        ("another network", "is no DenseNet"),
    ],
)
def test_a_checkpoint_that_does_not_fit_writes_nothing(original, tmp_path, kind, sentence):
    torch.save(spoil(dict(original.state_dict()), kind), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=sentence):
        convert_chexnet(tmp_path / "weights.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_pickled_module_is_refused_with_what_to_do(original, tmp_path):
    torch.save({"model": original, "best_loss": 0.1}, tmp_path / "checkpoint")
    with pytest.raises(ValueError) as caught:
        convert_chexnet(tmp_path / "checkpoint", tmp_path / "out")
    assert "torchvision.models.densenet.DenseNet would run code" in str(caught.value)
    assert str(caught.value).endswith("save the network's state_dict() alone with torch.save.")


def test_a_folder_with_content_is_not_written_over(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="is not empty"):
        convert_chexnet(tmp_path / "weights.pth", tmp_path)


def test_a_checkpoint_named_as_model_is_to_be_converted_first(tmp_path):
    file = tmp_path / "m.pth.tar"
    torch.save({}, file)
    sentence = f"python -m modeling.convert chexnet {file} OUT, and give OUT."
    for use in (
        load_model,
        lambda name: create_model(name, ["a", "b"]),
        Classifier,
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            use(str(file))


def test_patients_that_a_converted_model_was_trained_on_are_refused(original, tmp_path):
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    with gzip.open(tmp_path / "train.txt.gz", "wt") as file:
        file.write("images_001/00000001_000.png 0 1 0\n00000002_000.png 0 0 1\n")
    lists = [tmp_path / "train.txt.gz"]
    convert_chexnet(tmp_path / "weights.pth", tmp_path / "out", lists)

    def check(split="test", **images):
        """Images as {name: (source, patient)} of each split."""
        parts = {}
        for name, rows in images.items():
            sources, patients = zip(*rows.values())
            columns = {"image_id": list(rows), "source": sources, "patient_id": patients}
            parts[name] = Dataset.from_dict(columns)
        refuse_trained_on(str(tmp_path / "out"), DatasetDict(parts), split)

    other = {"00000003_000.png": ("chestxray14", "3")}
    check(test=other)
    for seen in (
        {"images/00000001_000.jpg": ("mine", "anyone")},
        {"00000002_000.png": ("chestxray14", "2")},
        {"00000001_001.png": ("chestxray14", "1")},  # another image of the patient
        {"00000001_001.png": ("chestxray14", "chestxray14/00000001")},  # in a merged set
        {"c1a5-rsna.dcm": ("rsna", "1")},  # of the same people, under another name
    ):
        (name,) = seen
        with pytest.raises(ValueError, match=f"patients of 1 of these 2 images, as {name}; vali"):
            check(test=other | seen)
        check(train=seen, test=other)
        with pytest.raises(ValueError, match="patients of 1 of these 2 images"):
            check("all", train=seen, test=other)
    check(test={"1.png": ("mine", "1")})
    # Whoever is named in the list by an image of the set is known by all images of the set.
    listed = {"00000001_000.png": ("mine", "anna")}
    with pytest.raises(ValueError, match="patients of 1 of these 1 images, as x.png"):
        check(train=listed, test={"x.png": ("mine", "anna")})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("list.txt", b"", "is empty; give"),
        ("list.txt", b"\xff\xfe\x00", "is no text; give"),
        ("list.txt.gz", b"a.png\n", "is no text; give"),
        ("list.txt.gz", gzip.compress(b"a.png\n" * 999)[:-12], "is no text; give"),
    ],
    ids=["empty", "binary", "not compressed", "cut off"],
)
def test_a_list_of_no_images_is_refused(original, tmp_path, name, content, sentence):
    torch.save(original.state_dict(), tmp_path / "weights.pth")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        convert_chexnet(tmp_path / "weights.pth", tmp_path / "out", [tmp_path / name])


def test_most_official_test_images_are_in_the_train_list_of_arnoweng(cxr_data):
    trained = set(read_image_list(cxr_data / "chestxray14" / "arnoweng_train_list.txt.gz"))
    official = read_image_list(cxr_data / "chestxray14" / "test_list.txt")
    assert len(official) == 25_596
    assert sum(name in trained for name in official) == 17_920


def test_the_findings_are_those_of_the_source_in_its_order():
    assert CHEXNET_FINDINGS == FINDINGS


# ---------------------------------------------------------------------------------- TorchXRayVision

UNTRAINED = {3: "", 14: None}  # an output without a name, and one without an operating point


@pytest.fixture(scope="module")
def xrv_network(original):
    """TorchXRayVision's class as it loads its weights, these at random."""
    models = pytest.importorskip("torchxrayvision").models
    torch.manual_seed(1)
    points = torch.rand(18) * 0.9 + 0.05
    points[list(UNTRAINED)] = torch.nan
    network = models.DenseNet(op_threshs=points)
    network.targets = [UNTRAINED.get(k, name) or "" for k, name in enumerate(network.targets)]
    network.targets[14] = "Lung Lesion"
    weights = {
        key: value for key, value in original.state_dict().items() if "classifier" not in key
    }
    weights["features.conv0.weight"] = weights["features.conv0.weight"].sum(1, keepdim=True) / 2048
    network.load_state_dict(weights, strict=False)
    network.classifier.weight.data.mul_(5)
    return network.eval()


def test_torchxrayvisions_answers_are_kept(xrv_network, tmp_path):
    convert_xrv(xrv_network, tmp_path / "out")
    model, processor = load_model(str(tmp_path / "out"))
    trained = [k for k in range(18) if k not in UNTRAINED]
    assert list(model.config.id2label.values()) == [xrv_network.targets[k] for k in trained]
    pixels = np.random.default_rng(0).integers(0, 65536, (3, 300, 300)).astype(np.uint16)
    pixel_values = processor(list(pixels))["pixel_values"]
    assert pixel_values.shape == (3, 1, 224, 224)
    assert -1024 <= pixel_values.min() < -300 and 300 < pixel_values.max() <= 1024
    with torch.no_grad():
        before = xrv_network.classifier(xrv_network.features2(pixel_values))
        expected = xrv_network(pixel_values)
        output = model(pixel_values)
    assert expected[:, trained].min() < 0.45 and expected[:, trained].max() > 0.55
    torch.testing.assert_close(output.logits, before[:, trained], atol=1e-5, rtol=1e-5)
    told = model.probabilities(output.logits)
    torch.testing.assert_close(told, expected[:, trained], atol=1e-5, rtol=0)
    decided = expected[:, trained] >= 0.5
    assert torch.equal(model.decide(told).bool(), decided)


def test_full_scale_is_torchxrayvisions_range(xrv_network, tmp_path):
    utils = pytest.importorskip("torchxrayvision").utils
    convert_xrv(xrv_network, tmp_path / "out")
    _, processor = load_model(str(tmp_path / "out"))
    grey = np.tile(np.arange(256, dtype=np.uint8)[:, None], (1, 256))
    expected = utils.normalize(grey, 255)[16:240, 16:240]
    image = Image.fromarray(grey).crop((16, 16, 240, 240))
    found = processor(np.asarray(image))["pixel_values"][0, 0].numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_a_network_without_operating_points_is_refused(tmp_path):
    models = pytest.importorskip("torchxrayvision").models
    with pytest.raises(ValueError, match="no operating points; take one with weights."):
        convert_xrv(models.DenseNet(block_config=(1, 1, 1, 1)), tmp_path / "out")


def test_an_unknown_name_of_torchxrayvision_is_refused():
    pytest.importorskip("torchxrayvision")
    with pytest.raises(ValueError, match="no DenseNet 'densenet-all'; it has densenet121-"):
        load_xrv("densenet-all")


def test_a_model_named_as_torchxrayvisions_says_how_to_convert_it():
    with pytest.raises(ValueError, match="convert xrv densenet121-res224-all OUT, and give OUT"):
        load_model("xrv:densenet121-res224-all")
