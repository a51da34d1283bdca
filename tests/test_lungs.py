"""The lung segmenter: its masks, which lung is which, and the frame of the image they belong to."""

import json

import numpy as np
import pytest
import torch
from conftest import REPO
from torch import nn

from modeling import (
    CxrImageProcessor,
    CxrLungSegmenter,
    CxrLungSegmenterConfig,
    create_model,
    load_segmenter,
)
from modeling.segmentation_cxr import segmentation_loss, split_sides

SMALL = {"image_size": 64, "hidden_sizes": [4, 8, 8]}


def segmenter(**options):
    torch.manual_seed(0)
    return CxrLungSegmenter(CxrLungSegmenterConfig(**{**SMALL, **options})).eval()


def drawn(*boxes, size=(40, 60), value=0.9):
    """A mask of boxes [top, left, bottom, right]: float (1, h, w)."""
    mask = torch.zeros(1, *size)
    for top, left, bottom, right in boxes:
        mask[:, top:bottom, left:right] = value
    return mask


class Bright(nn.Module):
    """Says lung where a pixel is above the middle of the scale."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(20.0))

    def forward(self, pixel_values):
        return pixel_values * self.scale


RIGHT, LEFT = (5, 10, 35, 25), (5, 35, 35, 50)


def test_masks_are_probabilities_at_the_input_s_size_whatever_that_is():
    model = segmenter()
    for size in ((64, 64), (70, 91), (32, 33)):
        masks = model.segment(torch.randn(2, 1, *size))
        assert masks.shape == (2, *size) and masks.dtype == torch.float32
        assert 0 <= masks.min() < masks.max() <= 1


def test_a_saved_segmenter_gives_the_same_masks(tmp_path):
    model = segmenter()
    model.train()(torch.randn(8, 1, 64, 64))  # statistics that are not all 0 and 1
    model.eval().save_pretrained(tmp_path)
    CxrImageProcessor(64, geometry="squash").save_pretrained(tmp_path)
    loaded, processor = load_segmenter(str(tmp_path))
    inputs = torch.randn(2, 1, 64, 64)
    torch.testing.assert_close(loaded.segment(inputs), model.segment(inputs), rtol=0, atol=0)
    assert processor.geometry == "squash"
    assert json.loads((tmp_path / "config.json").read_text())["id2label"] == {"0": "lungs"}


def test_the_largest_components_are_kept_and_the_rest_is_zero(monkeypatch):
    speck = (0, 0, 3, 3)
    model = segmenter()
    monkeypatch.setattr(model, "network", Bright())
    grey = drawn(RIGHT, LEFT, speck)[:, None] - 0.5
    both = model.segment(grey, largest=2)[0]
    assert torch.equal(both > 0.5, drawn(RIGHT, LEFT)[0] > 0)
    assert not both[:3, :3].any()
    larger = (5, 10, 35, 26)
    one = model.segment(drawn(larger, LEFT)[:, None] - 0.5, largest=1)[0]
    assert torch.equal(one > 0.5, drawn(larger)[0] > 0)
    nothing = model.segment(torch.full((1, 1, 40, 60), -0.5), largest=2)
    assert not nothing.any()
    with pytest.raises(ValueError, match=r"^largest is 0; it is 1 or more\.$"):
        model.segment(grey, largest=0)


@pytest.mark.parametrize("shift", [0, -9, 9])
def test_the_patient_s_right_lung_is_the_one_at_the_image_s_left(shift):
    boxes = [
        (top, left + shift, bottom, right + shift) for top, left, bottom, right in (RIGHT, LEFT)
    ]
    right, left = split_sides(drawn(*boxes))
    assert torch.equal(right, drawn(boxes[0])) and torch.equal(left, drawn(boxes[1]))


def test_a_lung_that_leans_over_the_middle_stays_whole():
    leaning = (30, 10, 35, 33)  # a foot that reaches over the middle, below a short left lung
    short = (5, 35, 25, 50)
    right, left = split_sides(drawn(RIGHT, leaning, short))
    assert torch.equal(right, drawn(RIGHT, leaning)) and torch.equal(left, drawn(short))


def test_lungs_that_touch_are_cut_halfway_and_a_lone_lung_is_not():
    right, left = split_sides(drawn((5, 10, 35, 50)))
    assert torch.equal(right, drawn((5, 10, 35, 30))) and torch.equal(left, drawn((5, 30, 35, 50)))
    right, left = split_sides(drawn(LEFT))
    assert not right.any() and torch.equal(left, drawn(LEFT))


def test_the_sides_add_up_to_the_mask_even_of_an_image_without_lungs():
    masks = torch.rand(4, 40, 60, generator=torch.Generator().manual_seed(0))
    masks[3] *= 0.4
    right, left = split_sides(masks)
    assert torch.equal(right + left, masks)
    assert ((right > 0) & (left > 0)).sum() == 0


@pytest.mark.parametrize("geometry", ["pad", "squash", "crop"])
def test_a_mask_lies_where_the_image_has_its_lungs(geometry, monkeypatch):
    model, processor = segmenter(), CxrImageProcessor(128, geometry=geometry, correct=False)
    monkeypatch.setattr(model, "network", Bright())
    image = np.zeros((200, 300), np.uint8)
    image[40:160, 100:200] = 255
    pixel_values = processor(image).pixel_values - processor.normalize(np.full((1, 1, 1), 0.5))
    mask = processor.restore(model.segment(pixel_values)[0], *image.shape) > 0.5
    true = image > 0
    assert (mask & true).sum() / (mask | true).sum() > 0.95


def test_the_loss_is_none_for_the_truth_and_none_for_nothing_found_of_nothing():
    masks = torch.cat([drawn(RIGHT, LEFT, value=1.0), drawn()])
    certain = (masks[:, None] - 0.5) * 100
    assert segmentation_loss(certain, masks) < 1e-3
    assert segmentation_loss(-certain, masks) > 10
    # half of a lung is found: Dice 2/3, and the cross-entropy of the other half
    found = (drawn((5, 10, 35, 17), (5, 35, 35, 42), value=1.0)[:, None] - 0.5) * 100
    assert 0.3 < segmentation_loss(found, masks[:1]) - 50 * 480 / 2400 < 0.4
    with pytest.raises(
        ValueError, match=r"^the masks have shape .*; this batch takes \(2, 40, 60\)"
    ):
        segmentation_loss(certain, masks[:, :30])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"num_channels": 2}, "num_channels is 2; it can be 1 or 3."),
        ({"hidden_sizes": [8]}, "hidden_sizes is [8]; it needs two stages or more."),
    ],
)
def test_a_configuration_that_makes_no_u_net_is_refused(options, sentence):
    with pytest.raises(ValueError) as caught:
        CxrLungSegmenterConfig(**options)
    assert str(caught.value) == sentence


def test_another_number_of_channels_is_one_sentence():
    with pytest.raises(ValueError, match=r"takes \(batch, 1, height, width\)\.$"):
        segmenter().segment(torch.zeros(1, 3, 64, 64))


def test_a_classifier_is_no_segmenter_and_a_segmenter_no_classifier(tmp_path, run_python):
    model, processor = create_model("baseline", ["A", "B"], 32, hidden_sizes=[4, 4])
    model.save_pretrained(tmp_path / "classifier")
    processor.save_pretrained(tmp_path / "classifier")
    with pytest.raises(ValueError, match="holds a 'cxr-baseline' model; it takes a lung segmenter"):
        load_segmenter(str(tmp_path / "classifier"))

    segmenter().save_pretrained(tmp_path / "lungs")
    processor.save_pretrained(tmp_path / "lungs")
    (tmp_path / "x.png").touch()
    args = [tmp_path / "x.png", "--model", tmp_path / "lungs", "--output", tmp_path / "x.csv"]
    result = run_python([REPO / "predict.py", *args])
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1] == (
        f"predict.py: error: {tmp_path / 'lungs'} holds a 'cxr-lungs' model; it takes a classifier "
        "saved by this project, or a timm name."
    )
