"""The detector: its boxes, the frame of the image they belong to, and the ways to load it."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForObjectDetection, pipeline

from datasets_scripts.phantom import generate
from modeling import (
    CxrDetector,
    CxrDetectorConfig,
    CxrImageProcessor,
    create_model,
    load_detector,
    load_model,
)
from modeling.detection_cxr import CxrDetectorOutput
from modeling.preprocessing_cxr import GEOMETRIES

SMALL = {"architecture": "mobilenetv3_small_050", "image_size": 64, "fpn_channels": 8}
SMALL |= {"hidden_size": 16, "num_proposals": 20, "detections_per_image": 10}
SMALL |= {"id2label": {0: "MASS", 1: "NODULE"}}


def detector(**options):
    torch.manual_seed(0)
    return CxrDetector(CxrDetectorConfig(**{**SMALL, **options})).eval()


def target(*boxes, classes=None):
    return {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "class_labels": torch.tensor(classes or [0] * len(boxes), dtype=torch.int64),
    }


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of a detector whose statistics are not all 0 and 1, and the detector."""
    folder = tmp_path_factory.mktemp("detector")
    model = detector(threshold=0.2)
    with torch.no_grad():
        model.train()(torch.randn(8, 1, 64, 64), [target((5, 5, 40, 40))] * 8)
    model.eval().save_pretrained(folder)
    CxrImageProcessor(64, correct=False).save_pretrained(folder)
    return folder, model


# ------------------------------------------------------------------------------------------- boxes


@torch.no_grad()
def test_boxes_lie_in_the_input_and_fall_in_score_whatever_its_size():
    model = detector(num_channels=3)
    for size in ((64, 64), (70, 91), (128, 33)):
        output = model(torch.randn(2, 3, *size))
        assert output.scores.shape == output.labels.shape == (2, 10)
        assert output.boxes.shape == (2, 10, 4) and output.boxes.dtype == torch.float32
        assert (output.scores.diff(dim=1) <= 0).all() and 0 < output.scores[0, 0] <= 1
        found = output.boxes[output.labels >= 0]
        assert len(found) and (found[:, 2:] > found[:, :2]).all()
        assert found.min() >= 0 and (found[:, 2:] <= torch.tensor(size[::-1])).all()
        assert set(output.labels.unique().tolist()) <= {-1, 0, 1}


@torch.no_grad()
def test_what_is_not_found_has_no_class_and_no_score():
    output = detector(min_score=1.0)(torch.randn(1, 1, 64, 64))
    assert (output.labels == -1).all() and not output.scores.any() and not output.boxes.any()


@pytest.mark.parametrize("name", ["densenet121", "resnet50"])
def test_the_networks_of_the_field_make_a_pyramid_of_five(name):
    with torch.device("meta"):
        model = CxrDetector(CxrDetectorConfig(name, fpn_channels=16, hidden_size=16))
        maps = model.network.backbone(torch.empty(1, 1, 64, 64))
    assert [value.shape[-1] for value in maps.values()] == [16, 8, 4, 2, 1]
    assert {value.shape[1] for value in maps.values()} == {16}


def test_it_learns_where_a_bright_square_is_and_that_others_hold_none():
    model = detector(architecture="mobilenetv3_small_050", id2label={0: "MASS"})
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(0)

    def draw():
        images, targets = 0.1 * torch.randn(8, 1, 64, 64, generator=generator), []
        for index in range(8):
            left, top = torch.randint(0, 40, (2,), generator=generator).tolist()
            targets.append(target((left, top, left + 24, top + 24)) if index % 4 else target())
            if index % 4:
                images[index, :, top : top + 24, left : left + 24] += 1
        return images, targets

    losses = []
    for _ in range(30):
        output = model.train()(*draw())
        output.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(output.loss.item())
    assert set(output.losses) == {
        *("loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg")
    }
    assert np.mean(losses[-5:]) < 0.6 * np.mean(losses[:5])
    assert output.scores is None and output.boxes is None


def test_a_batch_without_any_box_is_learned_from():
    output = detector().train()(torch.randn(2, 1, 64, 64), [target(), target()])
    output.loss.backward()
    assert output.loss > 0 and output.losses["loss_box_reg"] == 0


# --------------------------------------------------------------------------------------- geometry


@pytest.mark.parametrize("geometry", GEOMETRIES)
@pytest.mark.parametrize("shape", [None, (150, 400)], ids=["as it is", "stretched before"])
def test_a_box_is_shown_where_its_part_of_the_image_is(geometry, shape):
    """A bright rectangle is decoded; its outline is where `resize_boxes` puts its box."""
    processor = CxrImageProcessor(128, geometry=geometry, correct=False)
    image = np.zeros((200, 300), np.uint16)
    box = (120, 60, 190, 150)
    image[box[1] : box[3], box[0] : box[2]] = 65535
    shown = processor.resize(image, shape) > 32767
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    outline = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    placed = processor.resize_boxes(np.array([box]), *image.shape, shape)
    np.testing.assert_allclose(placed[0], outline, atol=0.6)
    back = processor.restore_boxes(placed, *image.shape, shape)
    np.testing.assert_allclose(back[0], box, atol=1e-9)


def test_what_the_geometry_does_to_a_box_by_hand():
    box = np.array([[100, 50, 200, 100]])  # of an image of 200 x 400 pixels
    placed = {
        name: CxrImageProcessor(100, geometry=name).resize_boxes(box, 200, 400)[0].tolist()
        for name in GEOMETRIES[:3]
    }
    assert placed["squash"] == [25, 25, 50, 50]
    assert placed["pad"] == [25, 25 + 12.5, 50, 25 + 25]  # 50 rows, under 25 of black
    assert placed["crop"] == [0, 25, 50, 50]  # the middle 200 columns, of 100 to 300


def test_a_box_that_is_cut_off_has_no_area_and_one_in_part_is_cut():
    processor = CxrImageProcessor(100, geometry="crop")
    boxes = np.array([[0, 0, 90, 200], [50, 0, 150, 200]])
    placed = processor.resize_boxes(boxes, 200, 400)
    assert placed.tolist() == [[0, 0, 0, 100], [0, 0, 25, 100]]
    # what is boxed in the black around an image is cut at the image's edges
    padded = CxrImageProcessor(100).restore_boxes([[10, 0, 20, 100]], 200, 400)
    assert padded.tolist() == [[40, 0, 80, 200]]


def answer(*rows):
    """An output of (left, top, right, bottom, score, label)."""
    rows = torch.tensor(rows, dtype=torch.float32).reshape(1, -1, 6)
    return CxrDetectorOutput(scores=rows[..., 4], labels=rows[..., 5].long(), boxes=rows[..., :4])


def test_boxes_are_put_into_the_image_and_those_below_the_threshold_left_out():
    processor = CxrImageProcessor(100)
    output = answer((25, 25, 50, 75, 0.9, 1), (0, 0, 100, 100, 0.5, 0), (0, 0, 0, 0, 0, -1))
    (found,) = processor.post_process_object_detection(output, 0.6, [(200, 400)])
    assert found["boxes"].tolist() == [[100, 0, 200, 200]]
    assert found["labels"].tolist() == [1]
    assert found["scores"].tolist() == pytest.approx([0.9])
    (found,) = processor.post_process_object_detection(output, 0.0)
    assert found["boxes"].tolist() == [[25, 25, 50, 75], [0, 0, 100, 100]]
    with pytest.raises(ValueError, match=r"^2 target_sizes for 1 images\.$"):
        processor.post_process_object_detection(output, 0.5, [(200, 400)] * 2)


# ----------------------------------------------------------------------------------- saved, loaded


@torch.no_grad()
def test_a_saved_detector_finds_the_same_boxes(saved):
    folder, model = saved
    loaded, processor = load_detector(str(folder))
    inputs = torch.randn(2, 1, 64, 64)
    for name, value in model(inputs).items():
        torch.testing.assert_close(loaded(inputs)[name], value, rtol=0, atol=0)
    assert processor.size == {"height": 64, "width": 64}
    config = json.loads((folder / "config.json").read_text())
    assert config["id2label"] == {"0": "MASS", "1": "NODULE"}
    assert config["label2id"] == {"MASS": 0, "NODULE": 1}


def test_other_classes_get_a_fresh_head_on_what_was_learned(saved):
    folder, model = saved
    loaded = AutoModelForObjectDetection.from_pretrained(
        *(folder,),
        trust_remote_code=True,
        id2label={0: "A", 1: "B", 2: "C"},
        label2id={"A": 0, "B": 1, "C": 2},
        ignore_mismatched_sizes=True,
    )
    old, new = model.state_dict(), loaded.state_dict()
    fresh = {
        name
        for name in old
        if old[name].shape != new[name].shape or not torch.equal(old[name], new[name])
    }
    assert fresh and all("box_predictor" in name for name in fresh)
    for name in fresh:
        assert new[name].isfinite().all() and new[name].std() > 0
    with torch.no_grad():
        assert loaded.eval()(torch.randn(1, 1, 64, 64)).labels.max() <= 2


FRESH = """
import numpy as np
from transformers import AutoModelForObjectDetection, pipeline
model = AutoModelForObjectDetection.from_pretrained("{folder}", trust_remote_code=True)
assert str(model.dtype) == "torch.float32"
ask = pipeline("object-detection", model="{folder}", image_processor="{folder}",
               trust_remote_code=True)
image = np.random.default_rng(0).integers(0, 65536, (90, 150)).astype(np.uint16)
print([[round(row["score"], 4), row["label"], *row["box"].values()] for row in ask(image)])
"""


def test_a_detector_answers_in_a_fresh_process_without_the_checkout(saved, run_python):
    folder, model = saved
    result = run_python(FRESH.format(folder=folder), env={"HF_HUB_OFFLINE": "1"}, isolated=True)
    assert result.returncode == 0, result.stderr
    assert "not supported" not in result.stderr
    image = np.random.default_rng(0).integers(0, 65536, (90, 150)).astype(np.uint16)
    processor = CxrImageProcessor(64, correct=False)
    with torch.no_grad():
        output = model(processor(image).pixel_values)
    (found,) = processor.post_process_object_detection(output, 0.2, [image.shape])
    expected = [
        [round(score, 4), model.config.id2label[label], *box]
        for score, label, box in zip(
            found["scores"].tolist(), found["labels"].tolist(), found["boxes"].int().tolist()
        )
    ]
    assert expected and result.stdout.strip() == str(expected)


def asked(monkeypatch, output, correct=False):
    """A pipeline whose detector answers `output` to everything."""
    model = detector(threshold=0.6)
    monkeypatch.setattr(model, "forward", lambda pixel_values: output)
    processor = CxrImageProcessor(100, correct=correct)
    return pipeline("object-detection", model=model, image_processor=processor)


def test_the_pipeline_answers_in_pixels_of_the_file(monkeypatch):
    ask = asked(monkeypatch, answer((25, 25, 50, 75, 0.9, 1), (0, 30, 100, 70, 0.5, 0)))
    image = np.random.default_rng(0).integers(0, 256, (200, 400), np.uint8)
    box = {"xmin": 100, "ymin": 0, "xmax": 200, "ymax": 200}
    (row,) = ask(image)  # from the configuration's threshold on
    assert row == {"score": pytest.approx(0.9), "label": "NODULE", "box": box}
    assert [row["label"] for row in ask(image, threshold=0.4)] == ["NODULE", "MASS"]
    assert ask([image, image], threshold=0.95) == [[], []]


def test_a_plain_frame_that_was_cut_away_is_counted_in(monkeypatch):
    ask = asked(monkeypatch, answer((0, 0, 50, 100, 0.9, 0)), correct=True)
    (row,) = ask(np.pad(generate(1, size=200).image, ((40, 60), (80, 40))))
    assert row["box"] == {"xmin": 80, "ymin": 40, "xmax": 180, "ymax": 240}


# --------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_channels": 2}, "num_channels is 2; it can be 1 or 3."),
        ({"anchor_sizes": [8, 16]}, "anchor_sizes is [8, 16]; it needs 5 sides above 0."),
        ({"threshold": 1.5}, "threshold is 1.5; it lies in [0, 1]."),
        ({"num_proposals": 0}, "num_proposals is 0; it is 1 or more."),
        ({"architecture": "resnet5"}, "architecture is 'resnet5', which timm does not know."),
        (
            {"architecture": "vit_tiny_patch16_224"},
            "architecture is 'vit_tiny_patch16_224', whose feature maps have strides "
            "16, 16, 16; needed are 4, 8, 16, 32, as of densenet121, resnet50 or "
            "mobilenetv3_small_100.",
        ),
    ],
)
def test_a_configuration_that_makes_no_detector_is_refused(options, sentence):
    with pytest.raises(ValueError) as caught, torch.device("meta"):
        detector(**options)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (None, "a detector in training mode needs labels."),
        ([target()], "labels has 1 entries for 2 images."),
        (
            [target((5, 5, 5, 9)), target()],
            "the box [5.0, 5.0, 5.0, 9.0] (left, top, right, bottom) is empty or does not lie in "
            "an image of 64 x 64 pixels.",
        ),
        (
            [target(), target((5, 5, 70, 9))],
            "the box [5.0, 5.0, 70.0, 9.0] (left, top, right, bottom) is empty or does not lie in "
            "an image of 64 x 64 pixels.",
        ),
        (
            [target((5, 5, 9, 9), classes=[2]), target()],
            "class_labels has 2; the classes are 0 to 1.",
        ),
    ],
)
def test_labels_that_cannot_be_learned_from_are_one_sentence(labels, sentence):
    with pytest.raises(ValueError) as caught:
        detector().train()(torch.zeros(2, 1, 64, 64), labels)
    assert str(caught.value) == sentence


def test_another_number_of_channels_and_labels_in_evaluation_are_one_sentence():
    with pytest.raises(ValueError, match=r"takes \(batch, 1, height, width\)\.$"):
        detector()(torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match=r"^a detector in evaluation mode takes no labels\.$"):
        detector()(torch.zeros(1, 1, 64, 64), [target()])


def test_a_classifier_is_no_detector_and_a_detector_no_classifier(saved, tmp_path):
    model, processor = create_model("baseline", ["A", "B"], 32, hidden_sizes=[4, 4])
    model.save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="holds a 'cxr-baseline' model; it takes a detector saved"):
        load_detector(str(tmp_path / "classifier"))

    folder, _ = saved
    for load in (load_model, lambda name: create_model(name, ["A", "B"])):
        with pytest.raises(ValueError) as caught:
            load(str(folder))
        assert str(caught.value) == (
            f"{folder} holds a 'cxr-detector' model; it takes a classifier saved by this project, "
            "or a timm name."
        )
