"""Learning from trained models: what the teachers say, and what the student's loss makes of it."""

import math

import pytest
import torch
import torch.nn.functional as F

from modeling import create_model
from modeling.loss_cxr import classification_loss
from training.distillation import Teachers, student_loss

CLASSES = ["NORMAL", "OPACITY"]
MULTI = {"problem_type": "multi_label_classification"}


def model(size=64, classes=CLASSES, seed=0, geometry="pad", **options):
    torch.manual_seed(seed)
    network, processor = create_model("baseline", classes, size, hidden_sizes=[4, 8], **options)
    torch.nn.init.normal_(network.network.get_classifier().weight)
    processor.geometry = geometry
    return network.eval(), processor


def teachers(models, student):
    return Teachers(models, student[1], student[0].config, torch.device("cpu"))


def images(count=3, size=64):
    return torch.rand(count, size, size, generator=torch.Generator().manual_seed(1))


def test_one_teacher_says_its_tempered_probabilities():
    teacher = model()
    told = teachers({"a": teacher}, model(seed=1))(images(), temperature=2.0)
    with torch.no_grad():
        logits = teacher[0](teacher[1].normalize(images())).logits
    torch.testing.assert_close(told, (logits / 2).softmax(1))
    assert not told.requires_grad
    assert all(not weight.requires_grad for weight in teacher[0].parameters())


@pytest.mark.parametrize("options", [{}, MULTI], ids=["single", "multi"])
def test_several_teachers_of_other_sizes_and_channels_say_their_mean(options):
    a, b = model(**options), model(96, seed=1, num_channels=3, **options)
    seen = F.interpolate(images()[:, None], (96, 96), mode="bilinear", antialias=True)[:, 0]
    with torch.no_grad():
        logits = [a[0](a[1].normalize(images())).logits, b[0](b[1].normalize(seen)).logits]
    squash = torch.sigmoid if options else lambda z: z.softmax(1)
    told = teachers({"a": a, "b": b}, model(seed=2, **options))(images(), temperature=1.0)
    torch.testing.assert_close(told, (squash(logits[0]) + squash(logits[1])) / 2)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"classes": ["OPACITY", "NORMAL"]}, "teacher t tells OPACITY, NORMAL apart, the student"),
        ({"classes": ["A", "B", "C"]}, "they need the same classes in the same order"),
        (MULTI, "the same classes in the same order, and one label an image or several alike"),
        ({"geometry": "crop"}, "teacher t has the geometry crop.*set --geometry crop"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        teachers({"t": model(**options)}, model())


def test_the_students_loss_is_the_one_computed_by_hand():
    config = model()[0].config
    logits, labels = torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([1, -1])
    targets = torch.tensor([[0.25, 0.75], [0.5, 0.5]])
    # At temperature 2 the students' log-probabilities are those of logits (0, 1) and (0.5, 0).
    log_p = [(-math.log1p(math.e), 1 - math.log1p(math.e))]
    log_p += [(0.5 - math.log1p(math.e**0.5), -math.log1p(math.e**0.5))]
    distance = -sum(t * p for row, ps in zip(targets.tolist(), log_p) for t, p in zip(row, ps)) / 2
    labelled = math.log1p(math.e**-2)  # of the first image alone
    expected = 0.3 * labelled + 0.7 * 4 * distance
    found = student_loss([logits], labels, config, targets, weight=0.7, temperature=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_the_students_loss_of_several_labels_is_the_one_computed_by_hand():
    config = model(**MULTI)[0].config
    logits, labels = torch.tensor([[2.0, -2.0]]), torch.tensor([[1.0, 0.0]])
    targets = torch.tensor([[0.75, 0.25]])
    softplus = math.log1p(math.exp(-1))  # -log sigmoid(1), at temperature 2
    distance = 0.75 * softplus + 0.25 * (softplus + 1)
    expected = 0.5 * math.log1p(math.exp(-2)) + 0.5 * 4 * distance
    found = student_loss([logits], labels, config, targets, weight=0.5, temperature=2.0)
    assert found.item() == pytest.approx(expected, abs=1e-6)


def test_heads_with_a_loss_each_count_alike():
    config = model()[0].config
    heads, labels = torch.randn(2, 4, 2), torch.tensor([0, 1, -1, 1])
    targets = torch.randn(4, 2).softmax(1)
    for others in ((), (targets, 0.3, 2.0)):
        apart = [student_loss([head], labels, config, *others) for head in heads]
        torch.testing.assert_close(student_loss(heads, labels, config, *others), sum(apart) / 2)


def test_without_teachers_it_is_the_configurations_loss():
    config = model(label_smoothing=0.1)[0].config
    logits, labels = torch.randn(4, 2), torch.tensor([0, 1, -1, 1])
    assert student_loss([logits], labels, config) == classification_loss(logits, labels, config)


def test_a_student_who_agrees_with_its_teachers_stands_still():
    config = model()[0].config
    logits = torch.randn(5, 2, requires_grad=True)
    targets = (logits / 3).softmax(1).detach()
    student_loss([logits], torch.full((5,), -1), config, targets, 0.5, 3.0).backward()
    torch.testing.assert_close(logits.grad, torch.zeros(5, 2))
