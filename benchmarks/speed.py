"""What must stay fast, and how fast it is: `OMP_NUM_THREADS=1 python benchmarks/speed.py`.

A line a measurement, the best of several, beside its limit; the exit code is 1 where one is missed.
In CPU time, which other work on the machine changes little. Takes a minute.
"""

import time
from collections.abc import Callable

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from datasets_scripts.phantom import generate
from evaluation.metrics import compute_metrics
from evaluation.predictions import Predictions
from modeling import CxrLungSegmenter, CxrLungSegmenterConfig, create_model
from modeling.image_cxr import CxrImage
from modeling.screening_cxr import screen


def best(work: Callable[[], object], repeats: int) -> float:
    """CPU seconds of the fastest run."""
    seconds = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)


def phantom() -> float:
    """Milliseconds that a phantom of 128 pixels takes."""
    return 1000 * best(lambda: [generate(index) for index in range(10)], 40) / 10


def screening() -> float:
    """Milliseconds to screen an X-ray of 2500 x 2000 pixels."""
    rng = np.random.default_rng(0)
    image = CxrImage(rng.integers(0, 65536, (2500, 2000), dtype=np.uint16))
    return 1000 * best(lambda: screen(image), 5)


@torch.no_grad()
def heatmap() -> float:
    """Forward passes that the logits with their closed-form Grad-CAM take: DenseNet-121 at 224."""
    model, _ = create_model("densenet121", ["NORMAL", "PNEUMONIA"], image_size=224)
    pixel_values = torch.randn(1, model.config.num_channels, 224, 224)
    forward, explain = [], []
    for _ in range(25):  # in turn, so that both meet the same load
        forward.append(best(lambda: model.eval()(pixel_values), 1))
        explain.append(best(lambda: model.explain(pixel_values), 1))
    return min(explain) / min(forward)


@torch.no_grad()
def lungs() -> float:
    """DenseNet-121's forward passes that a lung mask takes: both of 8 images of 128 pixels."""
    segmenter = CxrLungSegmenter(CxrLungSegmenterConfig(image_size=128)).eval()
    classifier, _ = create_model("densenet121", ["NORMAL", "PNEUMONIA"], image_size=128)
    pixel_values = torch.randn(8, 1, 128, 128)
    segment, classify = [], []
    for _ in range(15):  # in turn, so that both meet the same load
        segment.append(best(lambda: segmenter.segment(pixel_values), 1))
        classify.append(best(lambda: classifier.eval()(pixel_values), 1))
    return min(segment) / min(classify)


def resamples() -> float:
    """All metrics with intervals of 2,000 resamples, as a share of a loop of AUROCs alone."""
    rng = np.random.default_rng(0)
    labels = (rng.random(624) < 0.6).astype(int)
    scores = rng.normal(size=624) + 1.5 * labels
    ids = np.arange(624).astype(str)
    predictions = Predictions(
        image_id=ids,
        patient_id=rng.integers(312, size=624).astype(str),
        labels=labels,
        logits=np.stack([-scores, scores], axis=1) / 2,
        class_names=("NORMAL", "PNEUMONIA"),
        split="test",
    )
    once = best(lambda: [roc_auc_score(labels, scores) for _ in range(40)], 2) / 40
    return best(lambda: compute_metrics(predictions), 2) / (2000 * once)


LIMITS = {phantom: 10, screening: 100, heatmap: 1.1, lungs: 1, resamples: 1}


def main() -> int:
    """Prints the measurements; 1 if one misses its limit, else 0."""
    missed = 0
    for measure, limit in LIMITS.items():
        value = measure()
        missed += value > limit
        print(f"{value:7.2f} of at most {limit:5.1f}: {measure.__doc__}", flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
