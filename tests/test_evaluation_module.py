"""The metric as a module of the library `evaluate`, loaded in a fresh process without a network."""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions

REPO = Path(__file__).parent.parent
NAMES = {"default": ("NORMAL", "PNEUMONIA"), "multilabel": ("A", "B", "C")}
THRESHOLDS = {"default": (0.3,), "multilabel": (0.3, 0.4, 0.5)}

LOAD_AND_COMPUTE = """
import json, socket, sys

def refuse(*args):
    raise OSError("the network is off")

socket.socket.connect = socket.getaddrinfo = refuse
import evaluate

results = []
for path, config, inputs, options in json.load(sys.stdin):
    try:
        metric = evaluate.load(path, config)
        for half in (slice(None, 40), slice(40, None)):
            metric.add_batch(**{name: column[half] for name, column in inputs.items()})
        results.append(metric.compute(**options))
    except ValueError as error:
        results.append(str(error))
print(json.dumps(results, allow_nan=False))
"""


def table(config):
    rng = np.random.default_rng(0)
    labels = rng.random((90, 3)) < 0.4 if config == "multilabel" else rng.integers(2, size=90)
    logits = rng.normal(size=(90, len(NAMES[config])))
    return labels, logits, rng.integers(50, size=90).astype(str)


def job(path, config, logits=None, **options):
    labels, drawn, patients = table(config)
    inputs = {
        "predictions": (drawn if logits is None else logits).tolist(),
        "references": labels.astype(int).tolist(),
        "patient_ids": patients.tolist(),
    }
    return [path, config, inputs, options]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of one process, which has no home and no network."""
    with_nan = table("default")[1]
    with_nan[5, 0] = np.nan
    here, anywhere = "evaluation/cxr_metrics", str(REPO / "evaluation/cxr_metrics")
    options = {"num_resamples": 50, "seed": 3, "prevalences": [0.2]}
    jobs = {
        config: job(
            here, config, class_names=NAMES[config], thresholds=THRESHOLDS[config], **options
        )
        for config in NAMES
    }
    for blank in (None, math.nan):
        job_here = job(here, "multilabel", num_resamples=0)
        for row in job_here[2]["references"][::3]:
            row[1] = blank
        jobs[f"unknown {blank}"] = job_here
    jobs["two"] = job(here, "multilabel")
    jobs["two"][2]["references"][7][2] = 2
    jobs["one logit"] = job(anywhere, "default", table("default")[1][:, 1:], num_resamples=0)
    jobs["nan"] = job(here, "default", with_nan)
    jobs["configuration"] = [here, "multiclass", *job(here, "default")[2:]]
    home = tmp_path_factory.mktemp("home")
    found = subprocess.run(
        [sys.executable, "-c", LOAD_AND_COMPUTE],
        input=json.dumps(list(jobs.values())),
        cwd=REPO,
        env={"HF_HOME": str(home), "HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    return dict(zip(jobs, json.loads(found.stdout.splitlines()[-1])))


@pytest.mark.parametrize("config", NAMES)
def test_it_loads_offline_and_equals_compute_metrics(results, config):
    labels, logits, patients = table(config)
    predictions = Predictions(
        image_id=np.arange(90).astype(str),
        patient_id=patients,
        labels=labels,
        logits=logits,
        class_names=NAMES[config],
        split="test",
        multi_label=config == "multilabel",
        thresholds=THRESHOLDS[config],
    )
    assert results[config] == compute_metrics(predictions, 50, seed=3, prevalences=[0.2])


def test_it_takes_one_logit_an_image_and_a_full_path(results):
    labels, logits, patients = table("default")
    both = np.stack([np.zeros(90), logits[:, 1]], axis=1)
    predictions = Predictions(np.arange(90).astype(str), patients, labels, both, ("0", "1"), "test")
    assert results["one logit"] == compute_metrics(predictions, 0)


@pytest.mark.parametrize("blank", [None, math.nan])
def test_what_is_unknown_of_an_image_is_left_out(results, blank):
    labels, logits, patients = table("multilabel")
    unknown = np.zeros((90, 3), bool)
    unknown[::3, 1] = True
    names = ("0", "1", "2")
    shared = {"split": "test", "multi_label": True, "unknown": unknown}
    ids = np.arange(90).astype(str)
    predictions = Predictions(ids, patients, labels & ~unknown, logits, names, **shared)
    assert results[f"unknown {blank}"] == compute_metrics(predictions, 0)
    assert results[f"unknown {blank}"]["classes"]["1"]["n"] == 60


def test_it_refuses_with_a_sentence(results):
    assert results["two"] == "multilabel references must all be 0, 1, or NaN for unknown."
    assert results["nan"].startswith("image '5' has a logit that is NaN")
    assert results["configuration"].startswith("'multiclass' is no configuration")
