"""The losses against the papers' and torch's own."""

import pytest
import torch
import torch.nn.functional as F
from torchvision.ops import sigmoid_focal_loss

from modeling import CxrBaselineConfig
from modeling.loss_cxr import classification_loss

LOGITS = torch.tensor([[2.0, -1.0], [0.5, 0.3], [-1.0, 1.5]])
LABELS = torch.tensor([0, 1, 0])
MULTI = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0]])


def loss(labels=LABELS, **options):
    problem = "multi" if labels.ndim == 2 else "single"
    config = CxrBaselineConfig(problem_type=f"{problem}_label_classification", **options)
    return classification_loss(LOGITS, labels, config)


def test_cross_entropy_with_smoothing_and_weights_is_torchs():
    weights = torch.tensor([1.0, 3.0])
    expected = F.cross_entropy(LOGITS, LABELS, weights, label_smoothing=0.1)
    assert loss(class_weights=[1, 3], label_smoothing=0.1) == expected


def test_focal_loss_is_the_papers():
    p = LOGITS.softmax(1)[torch.arange(3), LABELS]
    expected = (-((1 - p) ** 2) * p.log()).mean()
    torch.testing.assert_close(loss(loss="focal"), expected)
    alpha = torch.tensor([0.75, 0.25, 0.75])
    expected = (-alpha * (1 - p) ** 3 * p.log()).mean()
    torch.testing.assert_close(loss(loss="focal", focal_gamma=3, focal_alpha=0.25), expected)
    # On two classes, a sigmoid on the difference of the logits is the softmax.
    difference = LOGITS[:, 1] - LOGITS[:, 0]
    expected = sigmoid_focal_loss(difference, LABELS.float(), 0.25, 3, "mean")
    torch.testing.assert_close(loss(loss="focal", focal_gamma=3, focal_alpha=0.25), expected)


def test_focal_loss_without_focus_is_weighted_cross_entropy():
    weighted = loss(class_weights=[1, 3])
    torch.testing.assert_close(loss(loss="focal", focal_gamma=0, class_weights=[1, 3]), weighted)


def test_multi_label_losses():
    expected = F.binary_cross_entropy_with_logits(
        LOGITS, MULTI * 0.8 + 0.1, pos_weight=torch.tensor([1.0, 3.0])
    )
    assert loss(MULTI, class_weights=[1, 3], label_smoothing=0.2) == expected
    expected = sigmoid_focal_loss(LOGITS, MULTI, 0.25, 2, "mean")
    torch.testing.assert_close(loss(MULTI, loss="focal", focal_alpha=0.25), expected)
    plain = loss(MULTI, class_weights=[1, 3])
    torch.testing.assert_close(
        loss(MULTI, loss="focal", focal_gamma=0, class_weights=[1, 3]), plain
    )


@pytest.mark.parametrize(
    "options", [{}, {"class_weights": [1, 3], "label_smoothing": 0.1}, {"loss": "focal"}], ids=str
)
def test_images_without_a_label_are_left_out(options):
    config = CxrBaselineConfig(**options)
    logits = LOGITS.clone().requires_grad_()
    classification_loss(logits, torch.tensor([0, -1, 0]), config).backward()
    assert (logits.grad[1] == 0).all() and (logits.grad[[0, 2]] != 0).all()
    expected = classification_loss(LOGITS[[0, 2]], torch.tensor([0, 0]), config)
    assert classification_loss(LOGITS, torch.tensor([0, -1, 0]), config) == expected
    logits.grad = None
    nothing = classification_loss(logits, torch.full((3,), -1), config)
    nothing.backward()
    assert nothing == 0
    assert (logits.grad == 0).all()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_weights": [1, 3], "label_smoothing": 0.1},
        {"loss": "focal", "focal_alpha": 0.25, "class_weights": [1, 3]},
    ],
    ids=str,
)
def test_unknown_findings_are_left_out_of_the_mean(options):
    config = CxrBaselineConfig(problem_type="multi_label_classification", **options)
    labels = torch.tensor([[1.0, torch.nan], [torch.nan, torch.nan], [0.0, 1.0]])
    logits = LOGITS.clone().requires_grad_()
    found = classification_loss(logits, labels, config)
    found.backward()
    assert torch.equal(logits.grad == 0, labels.isnan())
    # The mean of the cells' own losses, each as the one cell of a batch.
    cells = [
        classification_loss(
            LOGITS[i : i + 1, k : k + 1],
            labels[i : i + 1, k : k + 1],
            CxrBaselineConfig(
                problem_type="multi_label_classification",
                num_labels=1,
                **{
                    **options,
                    **({"class_weights": [[1, 3][k]]} if "class_weights" in options else {}),
                },
            ),
        )
        for i, k in [(0, 0), (2, 0), (2, 1)]
    ]
    torch.testing.assert_close(found, torch.stack(cells).mean())
    logits.grad = None
    nothing = classification_loss(logits, torch.full((3, 2), torch.nan), config)
    nothing.backward()
    assert nothing == 0 and (logits.grad == 0).all()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": "hinge"}, "loss is 'hinge'; it can be cross_entropy or focal"),
        ({"problem_type": "regression"}, "problem_type is 'regression'"),
        ({"num_channels": 2}, "num_channels is 2; it can be 1 or 3"),
        ({"class_weights": [1, 2, 3]}, "class_weights has 3 values for 2 classes"),
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"loss": "focal", "label_smoothing": 0.1}, "label_smoothing goes with"),
        ({"loss": "focal", "focal_gamma": -1}, "focal_gamma is -1"),
        ({"loss": "focal", "focal_alpha": 2}, "focal_alpha is 2"),
        ({"loss": "focal", "focal_alpha": 0.5, "num_labels": 3}, "use class_weights instead"),
    ],
)
def test_a_wrong_setting_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        CxrBaselineConfig(**options)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.tensor([0, 2, 1]), "a label is 2; the classes are 0 to 1."),
        (torch.tensor([0.0, 1.0, 1.0]), "labels is torch.float32; single_label_classification"),
        (torch.tensor([[0], [1], [1]]), r"labels has shape \(3, 1\)"),
    ],
)
def test_labels_that_are_no_classes_are_one_sentence(labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        classification_loss(LOGITS, labels, CxrBaselineConfig())
