"""train_detector.py as a user runs it: to the end, resumed, and on sets that teach nothing."""

import argparse
import csv
import json

import numpy as np
import pytest
import torch
from conftest import REPO
from datasets import DatasetDict
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from datasets_scripts import load_cxr_dataset
from datasets_scripts.schema import make_features, make_table
from evaluation.detection import overlaps, read_detection, summarize_detection
from modeling import CxrImageProcessor, load_detector
from training.augmentation import augment_with_boxes
from training.boxes import boxes_in_file, decode_boxed, select_boxed

DATA = {"num_train": 24, "num_validation": 6, "num_test": 5, "image_size": 64}
PHANTOM = ["--dataset_options", *(f"{key}={value}" for key, value in DATA.items())]
FLAGS = ["--architecture", "mobilenetv3_small_050", "--image_size", "64", "--fpn_channels", "8"]
FLAGS += ["--hidden_size", "16", "--num_proposals", "20", "--num_train_epochs", "2"]
FLAGS += ["--per_device_train_batch_size", "4", "--ema_decay", "0.8", "--learning_rate", "1e-3"]


# -------------------------------------------------------------------------------- boxes and images


def limits(**given):
    names = ("max_rotation", "max_scale", "max_shift", "max_contrast", "max_blur")
    return argparse.Namespace(**dict.fromkeys(names, 0.0) | given)


def squares(count=12, size=96):
    """Bright squares on black, and their boxes."""
    rng = np.random.default_rng(0)
    images, targets = torch.zeros(count, size, size), []
    for k in range(count):
        left, top = rng.integers(30, 46, 2).tolist()
        images[k, top : top + 20, left : left + 20] = 1
        box = torch.tensor([[left, top, left + 20, top + 20]], dtype=torch.float32)
        targets.append({"boxes": box, "class_labels": torch.tensor([k % 3])})
    return images, targets


@pytest.mark.parametrize(
    "given",
    [
        {"max_shift": 0.2},
        {"max_scale": 0.4},
        {"max_rotation": 30.0},
        {"max_contrast": 0.3, "max_blur": 0.3},
        {"max_shift": 0.1, "max_scale": 0.2, "max_rotation": 10.0, "max_contrast": 0.2},
    ],
    ids=" ".join,
)
def test_boxes_follow_each_augmentation(given):
    torch.manual_seed(0)
    images, targets = squares()
    moved, boxes = augment_with_boxes(images, targets, 2, limits(**given))
    assert moved.shape == images.shape and moved.dtype == torch.float32
    for k, (image, target) in enumerate(zip(moved, boxes)):
        inside = image > image.max() / 2
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        outline = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(target["boxes"][0], outline, atol=1.6)
        assert target["class_labels"].tolist() == [k % 3]
    if "max_contrast" not in given:
        assert not torch.equal(boxes[0]["boxes"], targets[0]["boxes"])


def test_a_box_that_is_moved_out_is_left_out_and_an_image_without_boxes_stays_one():
    images = torch.zeros(6, 64, 64, dtype=torch.uint16)
    box = {"boxes": torch.tensor([[0.0, 0, 3, 64]]), "class_labels": torch.tensor([1])}
    none = {"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.int64)}
    torch.manual_seed(0)
    _, targets = augment_with_boxes(images, [box] * 5 + [none], 2, limits(max_shift=0.5))
    counts = [len(target["boxes"]) for target in targets]
    assert set(counts[:5]) == {0, 1} and counts[5] == 0
    assert [len(target["class_labels"]) for target in targets] == counts
    assert targets[5]["boxes"].shape == (0, 4)
    left = torch.cat([target["boxes"] for target in targets])
    assert left.min() >= 0 and left.max() <= 64


def made(folder, objects, size=(50, 60), names=("NONE", "MASS", "NODULE"), **columns):
    """A split of noise images with boxes; None where nobody drew any."""
    rng, files = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    for k in range(len(objects)):
        files.append(str(folder / f"{k}.png"))
        Image.fromarray(rng.integers(0, 255, size, np.uint8)).save(files[-1])
    boxed = [
        None if one is None else {"bbox": [b for b, _ in one], "category": [c for _, c in one]}
        for one in objects
    ]
    ids = [f"{k}.png" for k in range(len(objects))]
    table = {"image": files, "label": [k % 2 for k in range(len(objects))], "image_id": ids}
    table |= {"patient_id": ids, "source": ["made"] * len(objects), "objects": boxed, **columns}
    return make_table(table, make_features(names, optional=("objects", *columns)))


def test_boxes_are_placed_where_their_images_are_decoded(tmp_path):
    """The stored image was stretched, and boxes are in its pixels."""
    objects = [[([10, 20, 30, 10], 2), ([0, 0, 60, 50], 1)], [], None]
    more = {"original_width": [200, 60, 60], "original_height": [50, 50, 50]}
    dataset = DatasetDict(train=made(tmp_path / "x", objects, **more))
    assert select_boxed(dataset) == ["MASS", "NODULE"]
    assert list(dataset["train"]["image_id"]) == ["0.png", "1.png"]
    processor = CxrImageProcessor(100, correct=False)
    decoded = decode_boxed(dataset, processor, ["MASS", "NODULE"], tmp_path, 0)["train"]
    batch = decoded.__getitems__([0, 1])
    assert batch["pixels"].shape == (2, 100, 100)
    # of 200 x 50 pixels, padded: scaled by half, under 37 rows of black, 25 rows high
    first, second = batch["targets"]
    expected = [[10 / 60 * 100, 37 + 10, 40 / 60 * 100, 37 + 15], [0, 37, 100, 62]]
    torch.testing.assert_close(first["boxes"], torch.tensor(expected))
    assert first["class_labels"].tolist() == [1, 0] and second["boxes"].shape == (0, 4)
    pixels = batch["pixels"][0].numpy()
    assert pixels[38:61].any(1).all() and not pixels[:37].any() and not pixels[62:].any()


@pytest.mark.parametrize(
    "box", [[50, 10, 20, 10], [-5, 0, 20, 10], [5, 5, 0, 10], [5, 5, 10, -3]], ids=str
)
def test_a_box_that_cannot_be_is_named_and_its_image_left_out(box, tmp_path, caplog):
    good = [([10, 10, 20, 20], 1)]
    dataset = DatasetDict(train=made(tmp_path / "x", [good, [(box, 1)], good]))
    processor = CxrImageProcessor(64, correct=False)
    decoded = decode_boxed(dataset, processor, ["MASS"], tmp_path, 0.5)["train"]
    assert decoded.image_ids.tolist() == ["0.png", "2.png"] and len(decoded.targets) == 2
    sentence = (
        f"1 of 3 images cannot be read (1.png: its box [{', '.join(map(str, box))}] (x, y, width, "
        "height) is empty or does not lie in the image, 60 x 50): "
    )
    assert sentence in caplog.text
    dataset = DatasetDict(train=made(tmp_path / "y", [good, [(box, 1)], good]))
    with pytest.raises(ValueError) as caught:
        decode_boxed(dataset, processor, ["MASS"], tmp_path, 0.0)
    assert str(caught.value).startswith(sentence)


def test_sets_without_boxes_are_refused_and_classes_that_train_lacks_left_out(tmp_path, caplog):
    mass, nodule = [([10, 10, 20, 20], 1)], [([10, 10, 20, 20], 2)]
    train = made(tmp_path / "a", [mass, None])
    for nothing in (made(tmp_path / "b", [[], None]), train.remove_columns("objects")):
        with pytest.raises(ValueError) as caught:
            select_boxed(DatasetDict(train=nothing))
        assert str(caught.value) == (
            "none of the 2 images of the train split has a box; give a set with boxes, as the "
            "RSNA's challenge."
        )
    with pytest.raises(ValueError, match=r"^none of the 1 images of the test split has a box of M"):
        select_boxed(DatasetDict(train=train, test=made(tmp_path / "c", [nodule])))
    dataset = DatasetDict(train=train, test=made(tmp_path / "d", [mass, nodule]))
    assert select_boxed(dataset) == ["MASS"]
    assert "Nobody drew boxes in 1 images of train: they are left out." in caplog.text
    assert "Boxes of NODULE in test are left out: train has none." in caplog.text


# --------------------------------------------------------------------------------------- as a user


@pytest.fixture(scope="module")
def train_detector(run_python, tmp_path_factory):
    cache = tmp_path_factory.mktemp("cache")

    def run(*flags, env=None):
        flags = [*FLAGS, *flags, "--cache_dir", cache]
        return run_python([REPO / "train_detector.py", *flags], env=env, cwd=REPO)

    return run


@pytest.fixture(scope="module")
def finished(train_detector, new_hub, tmp_path_factory):
    hub = new_hub(tmp_path_factory.mktemp("hub"))
    folder = tmp_path_factory.mktemp("runs") / "detector"
    push = ["--push_to_hub", "--hub_model_id", "org/cxr-detector"]
    result = train_detector(*PHANTOM, *push, "--output_dir", folder, env=hub.env)
    assert result.returncode == 0, result.stderr
    return folder, hub, result


def test_a_run_ends_with_a_detector_and_the_boxes_that_it_finds(finished):
    folder, _, result = finished
    model, processor = load_detector(str(folder))
    (test,) = load_cxr_dataset("phantom", **{**DATA, "num_train": 0, "num_validation": 0}).values()
    written = read_detection(folder / "detection_test.csv")
    assert [image.image_id for image in written] == list(test["image_id"])
    compared = 0
    for image, example in zip(written, test):
        opened = processor.open(example["image"])
        with torch.no_grad():
            output = model(processor(example["image"]).pixel_values)
        (found,) = processor.post_process_object_detection(output, 0, [opened.pixels.shape])
        np.testing.assert_allclose(found["scores"][:3], image.scores[:3], atol=0.02)
        if len(image.scores):
            assert overlaps(found["boxes"][:1].double().numpy(), image.boxes[:1])[0] > 0.9
            compared += 1
        np.testing.assert_allclose(
            image.true_boxes, boxes_in_file(example["objects"]["bbox"], opened)
        )
    assert compared
    metrics = json.loads((folder / "metrics.json").read_text())
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "OPACITY"}
    assert metrics["test"] == summarize_detection(written, config["threshold"])
    assert metrics["validation"]["threshold"] == config["threshold"]
    assert "Boxes of OPACITY: train" in result.stderr and "images/s" in result.stderr


def test_the_best_epoch_is_the_last_of_highest_precision(finished):
    folder, _, _ = finished
    with open(folder / "history.csv") as file:
        values = [float(row["validation_ap50"]) for row in csv.DictReader(file)]
    best = json.loads((folder / "metrics.json").read_text())["best_epoch"]
    assert best == max(k for k, value in enumerate(values, start=1) if value == max(values))


def test_the_card_says_what_the_files_say_and_no_table_of_patients_is_pushed(finished):
    folder, hub, result = finished
    card = ModelCard.load(folder / "README.md")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert f"{metrics['test']['froc']['mean']['value']:.3f}" in card.text
    assert f"{metrics['num_parameters']:,} parameters" in card.text
    assert f"score {metrics['test']['threshold']:.3f} or more" in card.text
    assert card.data.pipeline_tag == "object-detection"
    assert str(folder.parent) not in card.content
    names = set(hub.files("org/cxr-detector"))
    assert {"README.md", "config.json", "model.safetensors", "detection_cxr.py"} <= names
    assert not [name for name in names if name.startswith("detection_test")]
    assert "pushed will be the model and its card." in result.stderr
    weights = load_file(folder / "model.safetensors")
    assert weights["network.roi_heads.box_head.fc6.weight"].dtype == torch.float16


def test_an_interrupted_run_resumes_to_the_same_bits(finished, train_detector, tmp_path):
    folder = tmp_path / "resumed"
    flags = [*PHANTOM, "--output_dir", folder, "--checkpointing_steps", "5"]
    assert train_detector(*flags).returncode == 0
    for name in ("model.safetensors", "config.json"):
        (folder / name).unlink()
    last, *_ = sorted((folder / "checkpoints").iterdir(), reverse=True)
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    refused = train_detector(*flags)
    assert "holds a run already" in refused.stderr.splitlines()[-1]
    result = train_detector(*flags, "--resume_from_checkpoint")
    assert result.returncode == 0, result.stderr
    for name in ("model.safetensors", "detection_test.csv", "config.json"):
        assert (folder / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_a_set_without_boxes_ends_in_one_sentence(train_detector, tmp_path):
    lines = ["file,label,split"]
    for k in range(8):
        pixels = np.random.default_rng(k).integers(0, 255, (50, 60), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{k}.png")
        split = ("train", "train", "validation", "test")[k % 4]
        lines.append(f"{k}.png,{'AB'[k // 4 % 2]},{split}")
    (tmp_path / "set.csv").write_text("\n".join(lines) + "\n")
    result = train_detector("--dataset", tmp_path / "set.csv", "--output_dir", tmp_path / "run")
    assert result.returncode != 0
    assert result.stderr.splitlines()[-1] == (
        "train_detector.py: error: none of the 4 images of the train split has a box; give a set "
        "with boxes, as the RSNA's challenge."
    )
