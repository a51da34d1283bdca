"""Loaded models in the hands of transformers: other classes, Trainer, pipeline, precisions."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    ImageClassificationPipeline,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    ViTImageProcessor,
    pipeline,
)

from modeling import CxrImageClassificationPipeline, create_model
from modeling.answers_cxr import NO_MAPS
from modeling.configuration_cxr import FITTED
from modeling.heatmap_cxr import CAM_METHODS
from modeling.image_cxr import CxrImage
from modeling.outlier_cxr import OutlierDetector
from predict import predict
from prediction.table import to_row

CLASSES = ["NORMAL", "PNEUMONIA"]
FIT = {
    "calibration": {"method": "platt", "scale": [1.3], "bias": [-0.4]},
    "thresholds": [0.35],
    "abstention": [[0.3, 0.42]],
    "prevalence": [0.26, 0.74],
    "age_range": [1, 5],
    "class_weights": [2.0, 0.7],
    "focal_alpha": 0.25,
}


def make(name="baseline", class_names=CLASSES, image_size=64, **options):
    torch.manual_seed(0)
    if name == "baseline":
        options = {"hidden_sizes": [8, 8], **options}
    model, processor = create_model(name, class_names, image_size, **options)
    return model.eval(), processor


def batch(count=2, size=64):
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder of a model with all that is fitted to a training set, and an image in it."""
    model, processor = make(loss="focal", **FIT)
    model.set_outlier_detector(OutlierDetector(), 1e9)
    folder = tmp_path_factory.mktemp("fitted") / "model"
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    noise = np.random.default_rng(0).integers(0, 65536, (80, 90), dtype=np.uint16)
    Image.fromarray(noise).save(folder / "x.png")
    return folder


# -------------------------------------------------------------------------------- other classes


def names(*classes):
    return {"id2label": dict(enumerate(classes)), "label2id": {c: k for k, c in enumerate(classes)}}


OTHERS = {
    "a number": {"num_labels": 3},
    "names": names("NORMAL", "BACTERIA", "VIRUS"),
    "names without their inverse": {"id2label": {0: "NORMAL", 1: "BACTERIA", 2: "VIRUS"}},
    "names under text keys": {"id2label": {"0": "NORMAL", "1": "EFFUSION"}},
    "as many other names": names("NO_EFFUSION", "EFFUSION"),
    "the same in another order": names(*CLASSES[::-1]),
    "another problem": {"problem_type": "multi_label_classification"},
    "both": {"problem_type": "multi_label_classification", **names("A", "B", "C")},
}


@pytest.mark.parametrize("way", ["keywords", "configuration", "configuration with keywords"])
@pytest.mark.parametrize("change", OTHERS)
def test_other_classes_drop_what_was_fitted_and_can_be_saved(change, way, fitted, tmp_path, caplog):
    options = OTHERS[change]
    if way == "configuration":
        config = AutoConfig.from_pretrained(fitted)
        for name, value in options.items():
            setattr(config, name, value)
        options = {"config": config}
    elif way != "keywords":
        options = {"config": AutoConfig.from_pretrained(fitted, **options)}
    with caplog.at_level(logging.WARNING):
        model = AutoModelForImageClassification.from_pretrained(
            fitted, ignore_mismatched_sizes=True, **options
        )
    said = next(r.getMessage() for r in caplog.records if "Dropped" in r.getMessage())
    assert all(name in said for name in FITTED)
    assert all(getattr(model.config, name) is None for name in FITTED)
    assert model.outlier_detector is None
    assert model(batch()).probabilities.shape == (2, model.config.num_labels)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert again.config.id2label == model.config.id2label
    assert again.config.label2id == {name: k for k, name in model.config.id2label.items()}
    torch.testing.assert_close(again(batch()).logits, model.eval()(batch()).logits)


@pytest.mark.parametrize("options", [{}, names(*CLASSES), {"num_labels": 2}, {"dropout": 0.1}])
def test_the_same_classes_keep_what_was_fitted(options, fitted, caplog):
    model = AutoModelForImageClassification.from_pretrained(fitted, **options)
    assert {name: getattr(model.config, name) for name in FIT} == FIT
    assert model.outlier_detector is not None
    assert "Dropped" not in caplog.text


def test_what_is_given_for_the_new_classes_stays(fitted):
    given = {"class_weights": [1.0, 2.0, 3.0], "prevalence": [0.5, 0.3, 0.2], "age_range": [18, 99]}
    config = AutoConfig.from_pretrained(fitted, **given, **names("A", "B", "C"))
    assert {name: getattr(config, name) for name in given} == given
    assert config.thresholds is None and config.calibration is None
    with pytest.raises(ValueError, match="class_weights has 2 values for 3 classes"):
        AutoConfig.from_pretrained(fitted, num_labels=3, class_weights=[1.0, 2.0])


def test_new_names_on_a_loaded_model_drop_its_outlier_detector_too(fitted, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(fitted).eval()
    model.config.id2label = {0: "A", 1: "B"}
    assert model(batch()).outlier_score is None
    _, processor = make()
    (answer,) = model.assess([processor.open(fitted / "x.png")], processor)
    assert answer.refusal is None and set(answer.probabilities) == {"A", "B"}
    model.save_pretrained(tmp_path)
    again, report = AutoModelForImageClassification.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert again.outlier_detector is None and not report["unexpected_keys"]


def test_heads_follow_the_classes_that_are_asked_for(tmp_path, caplog):
    model, processor = make(class_names=["A", "B", "C"])
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    logits = model(batch()).logits

    def load(*classes):
        caplog.clear()
        loaded = [AutoModelForImageClassification.from_pretrained(tmp_path, **names(*classes))]
        loaded += [create_model(str(tmp_path), list(classes))[0]]
        return [one.eval()(batch()).logits for one in loaded], caplog.text.count(
            "Saved for A, B, C"
        )

    for found in (load("a", "b", "c"), load("A", "B", "C")):
        torch.testing.assert_close(found, ([logits] * 2, 0))
    torch.testing.assert_close(load("C", "A", "B"), ([logits[:, [2, 0, 1]]] * 2, 2))
    others, said = load("A", "B", "D")
    assert said == 2 and not any(torch.allclose(other, logits) for other in others)


def test_classes_edited_in_place_drop_what_was_fitted_when_saved(fitted, tmp_path, caplog):
    model = AutoModelForImageClassification.from_pretrained(fitted)
    model.config.id2label[1] = "TUBERCULOSIS"
    model.save_pretrained(tmp_path)
    assert "Dropped calibration, thresholds" in caplog.text
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.label2id == {"NORMAL": 0, "TUBERCULOSIS": 1}
    assert all(getattr(config, name) is None for name in FITTED)


def test_another_spelling_of_the_classes_keeps_what_was_fitted(fitted, tmp_path):
    AutoConfig.from_pretrained(fitted, id2label={0: "normal", 1: "Pneumonia"}).save_pretrained(
        tmp_path
    )
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.thresholds == FIT["thresholds"] and config.label2id["Pneumonia"] == 1


def test_names_in_another_order_than_the_network_are_not_saved(fitted, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(fitted)
    model.config.id2label[0], model.config.id2label[1] = CLASSES[::-1]
    with pytest.raises(ValueError, match=r"classes PNEUMONIA, NORMAL, the network NORMAL, PNEUMO"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"id2label": {1: "A", 2: "B"}}, "id2label has the indices 1, 2; they count from 0."),
        ({"id2label": {"a": "A", "b": "B"}}, "id2label has the indices a, b; they count from 0."),
        ({"id2label": {0: "A", 1: "A"}}, "id2label has 'A' more than once"),
        ({"label2id": {"A": 0, "B": 1}}, "give id2label alone, which label2id follows."),
        ({"id2label": {0: "A", 1: "B"}, "label2id": {"A": 1, "B": 0}}, "give id2label alone"),
    ],
)
def test_classes_that_contradict_themselves_are_refused(options, sentence, fitted):
    with pytest.raises(ValueError, match=sentence):
        AutoConfig.from_pretrained(fitted, **options)


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("num_labels", 3, "the configuration has 3 classes, the network 2; load the model with"),
        ("thresholds", [2], r"thresholds is \[2\]; it takes 1 in"),
        ("problem_type", "regression", "problem_type is 'regression'"),
    ],
)
def test_nothing_is_saved_that_cannot_be_loaded(field, value, sentence, tmp_path):
    model, _ = make()
    setattr(model.config, field, value)
    with pytest.raises(ValueError, match=sentence):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


# ------------------------------------------------------------------------------ Trainer, pipeline


@pytest.mark.parametrize("problem", ["single", "multi"])
def test_trainer_gives_compute_metrics_the_logits_alone(problem, tmp_path):
    model, _ = make(problem_type=f"{problem}_label_classification")
    model.set_outlier_detector(OutlierDetector(), 1e9)
    labels = torch.tensor([0, 1] * 4)
    if problem == "multi":
        labels = torch.eye(2)[labels]
    rows = [{"pixel_values": x, "labels": y} for x, y in zip(batch(8), labels)]
    arguments = TrainingArguments(
        tmp_path / "run",
        num_train_epochs=1,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(
        model,
        arguments,
        train_dataset=rows,
        eval_dataset=rows,
        compute_metrics=lambda given: {"shape": list(given.predictions.shape)},
    )
    trainer.train()
    assert trainer.evaluate()["eval_shape"] == [8, 2]
    trainer.save_model(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(batch()).logits, model.eval()(batch()).logits)


def test_a_pipeline_of_loaded_objects_answers_as_one_by_name(fitted):
    model = AutoModelForImageClassification.from_pretrained(fitted)
    _, processor = make()
    file = str(fitted / "x.png")
    named = pipeline("image-classification", model=str(fitted), trust_remote_code=True)
    objects = {
        "both": pipeline("image-classification", model=model, image_processor=processor),
        "a name of the processor": pipeline(
            "image-classification",
            model=model,
            image_processor=str(fitted),
            trust_remote_code=True,
            device="cpu",
            top_k=2,
        ),
    }
    for loaded in objects.values():
        assert type(loaded) is CxrImageClassificationPipeline
        assert loaded(file) == named(file)
        options = {"batch_size": 2, "prevalence": 0.1}
        assert loaded([file] * 3, **options) == named([file] * 3, **options)
    assert named(file)[0].keys() == {"label", "score", "logit", "outlier"}


def test_models_of_others_keep_transformers_pipeline():
    config = ViTConfig(
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=8,
        image_size=32,
        patch_size=16,
        id2label={0: "cat", 1: "dog"},
    )
    classify = pipeline(
        "image-classification",
        model=ViTForImageClassification(config),
        image_processor=ViTImageProcessor(size={"height": 32, "width": 32}),
    )
    assert type(classify) is ImageClassificationPipeline
    assert {row["label"] for row in classify(Image.new("RGB", (40, 40)))} == {"cat", "dog"}


@pytest.mark.parametrize("given", ["name", "model"])
def test_logits_are_not_given_for_features(given, fitted):
    model = str(fitted)
    if given == "model":
        model = AutoModelForImageClassification.from_pretrained(fitted)
    with pytest.raises(ValueError, match=r"logits, which are no features; use model.embed\("):
        pipeline(
            "image-feature-extraction",
            model=model,
            image_processor=make()[1],
            trust_remote_code=True,
        )


def test_nothing_is_assessed_of_no_images():
    model, processor = make()
    with pytest.raises(ValueError, match="there are no images; give one or more."):
        model.assess([], processor)


LOADED_OBJECTS = """
import json, sys
from transformers import AutoImageProcessor, AutoModel, pipeline
folder, trust = sys.argv[1], {"trust_remote_code": True}
loaded = pipeline("image-classification", model=AutoModel.from_pretrained(folder, **trust),
    image_processor=AutoImageProcessor.from_pretrained(folder, **trust))
named = pipeline("image-classification", model=folder, **trust)
print(json.dumps([type(loaded).__name__, loaded(folder + "/x.png"), named(folder + "/x.png")]))
"""


def test_a_pipeline_of_loaded_objects_needs_no_checkout(fitted, run_python, tmp_path):
    script = tmp_path / "ask.py"
    script.write_text(LOADED_OBJECTS)
    result = run_python([script, fitted], isolated=True)
    assert result.returncode == 0, result.stderr
    kind, loaded, named = json.loads(result.stdout.splitlines()[-1])
    assert kind == "CxrImageClassificationPipeline"
    assert loaded == named


# -------------------------------------------------------------------------------------- precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["baseline", "vit_tiny_patch16_224"])
def test_any_precision_answers_and_explains_like_float32(name, dtype, fitted):
    model, processor = make(name, **{k: v for k, v in FIT.items() if k != "focal_alpha"})
    model.set_outlier_detector(OutlierDetector().eval(), 1e9)
    image = processor.open(fitted / "x.png")
    inputs = processor(fitted / "x.png").pixel_values
    (expected,) = model.assess([image], processor, method="grad_cam")
    embedding = model.embed(inputs)
    model.to(dtype)
    (answer,) = model.assess([image], processor, method="grad_cam")
    assert answer.probabilities == pytest.approx(expected.probabilities, abs=0.02)
    assert answer.outlier_score == pytest.approx(expected.outlier_score, abs=0.02)
    assert answer.heatmap.dtype == np.float32
    for given in (inputs, inputs.to(dtype)):
        assert model(given).probabilities.dtype == torch.float32
        assert model.embed(given).dtype == torch.float32
        torch.testing.assert_close(model.embed(given), embedding, atol=0.05, rtol=0.05)
        for method in CAM_METHODS if name == "baseline" else ["grad_cam", "layer_cam"]:
            heatmaps = model.explain(given, method=method).heatmaps
            assert heatmaps.dtype == torch.float32 and heatmaps.shape == (1, 64, 64)
            assert heatmaps.isfinite().all()


def test_pixel_values_of_whole_numbers_are_refused():
    model, _ = make()
    with pytest.raises(ValueError, match="pixel_values is torch.uint8; this model takes floats"):
        model(torch.zeros(1, 1, 64, 64, dtype=torch.uint8))


# ------------------------------------------------------------------------- networks without maps


@pytest.mark.parametrize("name", ["resmlp_12_224", "coat_tiny"])
def test_a_network_without_feature_maps_answers_without_a_heatmap(name, tmp_path):
    model, processor = make(name)
    inputs = batch()
    for method in ("grad_cam", "layer_cam"):
        with pytest.warns(UserWarning, match="no feature maps"):
            output = model.explain(inputs, method=method)
        assert output.heatmaps is None
        torch.testing.assert_close(output.logits, model(inputs).logits, rtol=1e-4, atol=1e-5)
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="there is no heatmap"):
        model.grad_cam(inputs)
    image = CxrImage(np.random.default_rng(0).integers(0, 65536, (80, 90)).astype(np.uint16))
    (plain,) = model.assess([image], processor)
    with pytest.warns(UserWarning):
        (answer,) = model.assess([image], processor, method="grad_cam")
    assert answer.probabilities == pytest.approx(plain.probabilities, abs=1e-5)
    assert answer.heatmap is None and answer.explained is None
    assert answer.warnings == (NO_MAPS,) and plain.warnings == ()
    assert not answer.heat(processor, 10, 10).any()

    Image.fromarray(image.pixels).save(tmp_path / "x.png")
    maps = tmp_path / "maps"
    with pytest.warns(UserWarning):
        (one,) = predict(tmp_path / "x.png", model, processor, method="grad_cam", heatmaps=maps)
    row = to_row(one, ["a", "b"], {"method": "grad_cam"})
    assert row["status"] == "ok" and NO_MAPS in row["warnings"]
    assert row["heatmap"] == row["explained"] == ""
