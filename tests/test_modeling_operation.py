"""Calibrated probabilities and decisions of a model, alive and saved."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from evaluation.calibration import abstained, adjust_prevalence, apply_operation
from evaluation.predictions import Predictions
from modeling import (
    CxrBaselineConfig,
    CxrBaselineForImageClassification,
    CxrImageClassificationPipeline,
    create_model,
)
from training.half import save_half

NOTHING = {"calibration": None, "thresholds": None, "abstention": None, "prevalence": None}
TASKS = {"binary": 2, "multi_class": 3, "multi_label": 3}
TEMPERATURE = {"method": "temperature", "temperature": 1.7, "n": 9, "log_loss": {"identity": 0.3}}
BINARY = {
    "calibration": {"method": "platt", "scale": [1.3], "bias": [-0.4]},
    "thresholds": [0.35],
    "abstention": [[0.3, 0.42]],
    "prevalence": [0.26, 0.74],
}


def make(task="binary", operation=NOTHING, **options):
    torch.manual_seed(0)
    kind = "multi" if task == "multi_label" else "single"
    names = list("ABC"[: TASKS[task]])
    model, processor = create_model(
        "baseline", names, 32, problem_type=f"{kind}_label_classification", **operation, **options
    )
    return model.eval(), processor


def operation_of(task, method):
    """An operation with another map, threshold and band a class."""
    maps = {"binary": 1, "multi_class": 0, "multi_label": 3}[task]
    rng = np.random.default_rng(0)
    knots = np.sort(rng.normal(0, 4, (maps, 7)), axis=1)
    calibrations = {
        "none": None,
        "temperature": TEMPERATURE,
        "platt": {
            "method": "platt",
            "scale": [0.7, 1.4, 2.1][:maps],
            "bias": [0.5, -1.0, 2.0][:maps],
        },
        "isotonic": {
            "method": "isotonic",
            "log_odds": knots.tolist(),
            "calibrated": np.sort(rng.normal(0, 3, (maps, 7)), axis=1).tolist(),
        },
    }
    return {
        "calibration": calibrations[method],
        "thresholds": [0.4, 0.6, 0.2][:maps] or None,
        "abstention": [[0.35, 0.5], [0.5, 0.6], [0.1, 0.3]][:maps] or None,
        "prevalence": {"binary": [0.3, 0.7]}.get(task, [0.2, 0.5, 0.3]),
    }


METHODS = [("binary", name) for name in ("none", "temperature", "platt", "isotonic")]
METHODS += [("multi_label", name) for name in ("none", "temperature", "platt", "isotonic")]
METHODS += [("multi_class", name) for name in ("none", "temperature")]


@pytest.mark.parametrize(("task", "method"), METHODS)
def test_the_model_and_the_evaluation_agree(task, method):
    operation = operation_of(task, method)
    model, _ = make(task, operation)
    logits = torch.randn(300, TASKS[task], generator=torch.Generator().manual_seed(0)) * 5
    ids = np.array([str(i) for i in range(300)])
    multi_label = task == "multi_label"
    labels = np.zeros((300, 3), dtype=bool) if multi_label else np.zeros(300, dtype=np.int64)
    raw = Predictions(
        ids, ids, labels, logits.double().numpy(), tuple("ABC"[: TASKS[task]]), "x", multi_label
    )
    expected = apply_operation(raw, operation)
    probabilities = model.probabilities(logits)
    assert probabilities.dtype == torch.float32
    np.testing.assert_allclose(probabilities.numpy(), expected.probabilities, atol=1e-6, rtol=0)

    decided = model.decide(probabilities)
    wanted = expected.decisions.astype(np.int64)
    if operation["abstention"] is not None:
        wanted = np.where(abstained(expected, operation), -1, wanted)
        assert set(wanted.ravel().tolist()) == {-1, 0, 1}
    assert decided.dtype == torch.int64
    np.testing.assert_array_equal(decided.numpy(), wanted)

    new = {"binary": [0.9, 0.1]}.get(task, [0.6, 0.1, 0.3])
    moved = adjust_prevalence(expected, operation["prevalence"], new).probabilities
    np.testing.assert_allclose(model.probabilities(logits, new).numpy(), moved, atol=1e-6, rtol=0)
    if task == "binary":
        torch.testing.assert_close(
            model.probabilities(logits, 0.1), model.probabilities(logits, np.array(new))
        )


def test_forward_gives_loss_logits_and_calibrated_probabilities():
    plain, _ = make()
    model, _ = make(operation=BINARY)
    inputs = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    output = model(inputs)
    assert list(output) == ["logits", "probabilities"]
    torch.testing.assert_close(output.logits, plain(inputs).logits)
    z = 1.3 * (output.logits[:, 1] - output.logits[:, 0]) - 0.4
    torch.testing.assert_close(output.probabilities[:, 1], z.sigmoid())
    torch.testing.assert_close(output.probabilities.sum(1), torch.ones(4))
    labelled = model(inputs, torch.tensor([0, 1, 1, 0]))
    assert list(labelled) == ["loss", "logits", "probabilities"]
    expected = plain(inputs, torch.tensor([0, 1, 1, 0])).loss  # trained on the raw logits
    torch.testing.assert_close(labelled.loss, expected)
    as_tuple = model(inputs, torch.tensor([0, 1, 1, 0]), return_dict=False)
    for given, wanted in zip(as_tuple, labelled.to_tuple(), strict=True):
        torch.testing.assert_close(given, wanted)


def test_a_calibrated_model_trains_in_mixed_precision_through_accelerate(no_accelerator):
    model, _ = make(operation=BINARY)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    prepared = accelerator.prepare(model.train())
    output = prepared(torch.randn(4, 1, 32, 32), torch.tensor([0, 1, 1, 0]))
    assert output.loss.isfinite()
    assert output.logits.shape == output.probabilities.shape == (4, 2)
    assert output.probabilities.dtype == torch.float32
    accelerator.backward(output.loss)
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_the_explained_class_is_that_of_the_logits():
    operation = {**BINARY, "calibration": {"method": "platt", "scale": [1.0], "bias": [9.0]}}
    plain, _ = make()
    model, _ = make(operation=operation)
    inputs = torch.randn(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    given, expected = model.explain(inputs), plain.explain(inputs)
    torch.testing.assert_close(given.logits, expected.logits)
    torch.testing.assert_close(given.heatmaps, expected.heatmaps)


def test_a_prevalence_needs_a_model_that_knows_its_own_and_must_fit():
    logits = torch.zeros(1, 2)
    with pytest.raises(ValueError, match="config.prevalence is None; calibrate the model first"):
        make()[0].probabilities(logits, prevalence=0.1)
    model, _ = make(operation=BINARY)
    for wrong in (0, 1.2, [0.5], [0.5, 0.6]):
        with pytest.raises(ValueError, match="it takes 2 shares between 0 and 1, that add up to 1"):
            model.probabilities(logits, prevalence=wrong)
    many, _ = make("multi_label", operation_of("multi_label", "platt"))
    with pytest.raises(ValueError, match=r"prevalence is \[0.1\]; it takes 3 shares"):
        many.probabilities(torch.zeros(1, 3), prevalence=0.1)


def test_scores_of_another_shape_are_named():
    model, _ = make(operation=BINARY)
    with pytest.raises(ValueError, match=r"logits has shape \(2,\); this model takes \(batch, 2\)"):
        model.probabilities(torch.zeros(2))
    with pytest.raises(ValueError, match=r"probabilities has shape \(2, 1\)"):
        model.decide(torch.zeros(2, 1))


# ------------------------------------------------------------------------------------ configuration

WRONG = {
    "calibration is 'platt'; it takes a dict": {"calibration": "platt"},
    "with the method temperature, platt, isotonic": {"calibration": {"method": "beta"}},
    "temperature is 0; it takes a number above 0": {
        "calibration": {"method": "temperature", "temperature": 0}
    },
    "temperature is nan": {"calibration": {"method": "temperature", "temperature": float("nan")}},
    r"scale and bias are \[-1\] and \[0\]": {
        "calibration": {"method": "platt", "scale": [-1], "bias": [0]}
    },
    r"are \[1, 1\] and \[0, 0\]; it takes 1 numbers each": {
        "calibration": {"method": "platt", "scale": [1, 1], "bias": [0, 0]}
    },
    "the first rising and the second not falling": {
        "calibration": {"method": "isotonic", "log_odds": [[0, 0]], "calibrated": [[0, 1]]}
    },
    "take 1 lists of as many knots": {
        "calibration": {"method": "isotonic", "log_odds": [[0, 1]], "calibrated": [[0]]}
    },
    "thresholds is 0.5; it takes 1 in": {"thresholds": 0.5},
    r"thresholds is \[1.5\]; it takes 1 in": {"thresholds": [1.5]},
    r"abstention is \[\[0.6, 0.4\]\]": {"abstention": [[0.6, 0.4]]},
    r"abstention is \[0.4, 0.6\]": {"abstention": [0.4, 0.6]},
    r"prevalence is \[0.7\]; it takes 2 shares": {"prevalence": [0.7]},
    r"prevalence is \[0, 1\]": {"prevalence": [0, 1]},
}


@pytest.mark.parametrize("sentence", WRONG)
def test_a_configuration_refuses_what_does_not_fit(sentence):
    with pytest.raises(ValueError, match=sentence):
        CxrBaselineConfig(**WRONG[sentence])


def test_exclusive_classes_have_a_temperature_and_no_threshold():
    CxrBaselineConfig(num_labels=3, calibration=TEMPERATURE)
    for wrong in (
        {"thresholds": [0.5]},
        {"abstention": [[0.4, 0.6]]},
        {"calibration": BINARY["calibration"]},
    ):
        with pytest.raises(ValueError, match="3 exclusive classes|more than two exclusive classes"):
            CxrBaselineConfig(num_labels=3, **wrong)


def test_an_operation_is_taken_whole_or_not_at_all():
    config = CxrBaselineConfig()
    config.set_operation(BINARY)
    assert {name: getattr(config, name) for name in BINARY} == BINARY
    with pytest.raises(ValueError, match="an operation holds calibration, .*, not thresholds"):
        config.set_operation({"thresholds": [0.1]})
    with pytest.raises(ValueError, match="thresholds is"):
        config.set_operation({**NOTHING, "thresholds": [2]})
    assert config.thresholds == [0.35]
    config.set_operation(None)
    assert {name: getattr(config, name) for name in BINARY} == NOTHING


def test_a_folder_from_before_calibration_loads_as_it_was(tmp_path):
    model, _ = make()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name in NOTHING:
        config.pop(name, None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    old = CxrBaselineForImageClassification.from_pretrained(tmp_path)
    logits = torch.randn(5, 2)
    torch.testing.assert_close(old.probabilities(logits), logits.softmax(1))
    assert old.decide(old.probabilities(logits)).tolist() == logits.argmax(1).tolist()


# ------------------------------------------------------------------------------------- saved models

FRESH_PROCESS = """
import json, sys
import torch
from transformers import AutoModel, pipeline

folder = sys.argv[1]
model = AutoModel.from_pretrained(folder, trust_remote_code=True)
with torch.no_grad():
    output = model(torch.load(folder + "/input.pt"))
classify = pipeline("image-classification", model=folder, trust_remote_code=True)
print(json.dumps({
    "dtype": str(model.dtype),
    "dtypes": sorted({str(value.dtype) for value in model.state_dict().values()}),
    "pipeline_dtype": str(classify.model.dtype),
    "logits": output.logits.tolist(),
    "probabilities": output.probabilities.tolist(),
    "decisions": model.decide(output.probabilities).tolist(),
    "prevalence": model.probabilities(output.logits, 0.1).tolist(),
    "pipeline": classify(folder + "/x.png"),
    "top": classify(folder + "/x.png", top_k=1),
    "moved": classify(folder + "/x.png", prevalence=0.1),
}))
"""


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """A reduced DenseNet in float16 with an operation, an input and an image beside it."""
    torch.manual_seed(0)
    reduced = {"block_config": [2, 2], "growth_rate": 8}
    model, processor = create_model("densenet121", ["NORMAL", "PNEUMONIA"], 32, **reduced, **BINARY)
    model.train()(torch.randn(16, 1, 32, 32) * 3)  # statistics that are not all 0 and 1
    with torch.no_grad():
        model.network.classifier.weight *= 100
    folder = tmp_path_factory.mktemp("half")
    save_half(model.eval(), folder)
    processor.save_pretrained(folder)
    torch.save(torch.randn(6, 1, 32, 32), folder / "input.pt")
    pixels = np.random.default_rng(0).integers(0, 65536, (40, 50), dtype=np.uint16)
    Image.fromarray(pixels).save(folder / "x.png")
    return model, processor, folder


def rounded(model):
    """The model with its kernels rounded to float16, the rest as it is."""
    twin = type(model)(model.config).eval()
    state = model.state_dict()
    twin.load_state_dict({k: v.half().float() if v.ndim > 1 else v for k, v in state.items()})
    return twin


def test_a_fresh_process_gives_calibrated_numbers_in_float32_from_a_float16_folder(
    half, run_python, tmp_path
):
    model, processor, folder = half
    script = tmp_path / "load.py"
    script.write_text(FRESH_PROCESS)
    result = run_python([script, folder], isolated=True)
    assert result.returncode == 0, result.stderr
    loaded = json.loads(result.stdout.splitlines()[-1])
    assert loaded["dtype"] == loaded["pipeline_dtype"] == "torch.float32"
    assert loaded["dtypes"] == ["torch.float32", "torch.int64"]  # int64 counts batches

    twin = rounded(model)
    with torch.no_grad():
        output = twin(torch.load(folder / "input.pt"))
        image = twin(processor(folder / "x.png").pixel_values)
        original = model(torch.load(folder / "input.pt"))
    close = {"rtol": 1e-5, "atol": 1e-6}
    for name in ("logits", "probabilities"):
        torch.testing.assert_close(torch.tensor(loaded[name]), output[name], **close)
    torch.testing.assert_close(output.probabilities, original.probabilities, atol=5e-3, rtol=0)
    assert loaded["decisions"] == twin.decide(output.probabilities).tolist()
    moved = twin.probabilities(output.logits, 0.1)
    torch.testing.assert_close(torch.tensor(loaded["prevalence"]), moved, **close)

    probabilities = {
        "pipeline": image.probabilities,
        "moved": twin.probabilities(image.logits, 0.1),
    }
    for name, expected in probabilities.items():
        best = expected[0].argsort(descending=True).tolist()
        wanted = [["NORMAL", "PNEUMONIA"][k] for k in best]
        assert [row["label"] for row in loaded[name]] == wanted
        scores = [row["score"] for row in loaded[name]]
        assert scores == pytest.approx(expected[0, best].tolist(), abs=1e-6)
        logits = [row["logit"] for row in loaded[name]]
        assert logits == pytest.approx(image.logits[0, best].tolist(), rel=1e-5, abs=1e-6)
    assert loaded["top"] == loaded["pipeline"][:1]


def test_a_half_folder_is_half_as_large_and_its_kernels_are_float16(half, tmp_path):
    model, _, folder = half
    model.save_pretrained(tmp_path)
    sizes = [(path / "model.safetensors").stat().st_size for path in (folder, tmp_path)]
    assert sizes[0] < 0.65 * sizes[1]  # this small network is mostly normalisation
    for name, value in load_file(folder / "model.safetensors").items():
        wanted = torch.float16 if value.ndim > 1 else model.state_dict()[name].dtype
        assert value.dtype == wanted, name
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert model.dtype == torch.float32


def test_a_weight_beyond_float16_is_named(tmp_path):
    model, _ = make()
    with torch.no_grad():
        model.network.classifier.weight[0, 0] = 1e6
    with pytest.raises(ValueError, match="network.classifier.weight has a weight beyond float16"):
        save_half(model, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_pipeline_takes_batches_and_refuses_a_function_of_its_own(half):
    model, processor, folder = half
    classify = CxrImageClassificationPipeline(model=rounded(model), image_processor=processor)
    one, batch = (
        classify(str(folder / "x.png")),
        classify([str(folder / "x.png")] * 3, batch_size=2),
    )
    assert len(batch) == 3
    for rows in batch:
        assert [row["label"] for row in rows] == [row["label"] for row in one]
        assert rows[0]["score"] == pytest.approx(one[0]["score"], abs=1e-6)
    with pytest.raises(ValueError, match="function_to_apply is 'softmax'; .*leave it out"):
        classify(str(folder / "x.png"), function_to_apply="softmax")


def test_a_multi_label_pipeline_scores_each_class(half):
    _, _, folder = half
    model, processor = make("multi_label", operation_of("multi_label", "isotonic"))
    classify = CxrImageClassificationPipeline(model=model, image_processor=processor)
    rows = classify(str(folder / "x.png"), top_k=2)
    with torch.no_grad():
        expected = model(processor(folder / "x.png").pixel_values).probabilities[0]
    best = expected.argsort(descending=True)[:2].tolist()
    assert [row["label"] for row in rows] == ["ABC"[k] for k in best]
    assert [row["score"] for row in rows] == pytest.approx(expected[best].tolist(), abs=1e-6)
