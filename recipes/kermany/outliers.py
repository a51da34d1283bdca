"""The share of images that an outlier detector flags, from the scores of benchmarks/outliers.py."""

import csv
from pathlib import Path

import numpy as np
from scipy.stats import binomtest

from evaluation.bootstrap import interval, resample_weights
from evaluation.metrics import format_metric
from evaluation.table import markdown_table, read_json

NUM_RESAMPLES = 1000
TEST_SPLIT = "kermany test"


def flagged_table(folder: str | Path) -> str:
    """Markdown: a row a set of images and a group of sets; a column a model.

    Args:
        folder: with thresholds.json, {model: score above which it flags an image}, and scores.csv,
            a row an image: set, xray (1 or 0), cluster, and for each model its score, or the
            sentence of a check that refused the image for another reason.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    rows = read_scores(folder)
    thresholds = read_json(Path(folder) / "thresholds.json", (), "benchmarks/outliers.py")
    table = []
    for title in dict.fromkeys(title for row in rows for title in _titles(row)):
        chosen = [row for row in rows if title in _titles(row)]
        shares = [flagged_share(chosen, name, limit) for name, limit in thresholds.items()]
        table.append([title, str(len(chosen)), *map(format_metric, shares)])
    return markdown_table(["Images", "n", *(f"{name} flags" for name in thresholds)], table)


def read_scores(folder: str | Path) -> list[dict]:
    """The rows of scores.csv."""
    with open(Path(folder) / "scores.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def unseen_packages(folder: Path) -> int:
    """How many software packages the sets called unseen come from."""
    if not folder.is_dir():
        return 0
    return len({row["cluster"] for row in read_scores(folder) if row["set"].startswith("unseen")})


def flagged_share(rows: list[dict], model: str, threshold: float, seed: int = 0) -> dict:
    """`{"value", "low", "high"}` of the flagged share, 95 %, clusters resampled whole.

    Where all images fare alike the bootstrap is blind; the exact binomial interval of as many
    trials as there are clusters stands in.
    """
    flagged = np.array([_is_flagged(row[model], threshold) for row in rows], float)
    clusters = np.array([row["cluster"] for row in rows])
    count, value = len(np.unique(clusters)), flagged.mean()
    if value in (0, 1):
        exact = binomtest(round(value * count), count).proportion_ci()
        return {"value": float(value), "low": float(exact.low), "high": float(exact.high)}
    weights = np.concatenate(list(resample_weights(clusters, NUM_RESAMPLES, seed)))
    resampled = weights @ flagged / weights.sum(axis=1)
    return {"value": float(value), **interval(value, resampled, count, "logit")}


def _is_flagged(score: str, threshold: float) -> bool:
    try:
        return float(score) > threshold
    except ValueError:
        return True


def _titles(row: dict) -> list[str]:
    """The rows of the table that an image counts in."""
    kind = "X-rays" if row["xray"] == "1" else "Other images"
    titles = [f"**{kind}, all**", f"{kind}: {row['set']}"]
    if row["xray"] == "0":
        unseen = row["set"].startswith("unseen")
        titles.insert(1, f"**{kind}, {'unseen' if unseen else 'seen'}**")
    elif row["set"] != TEST_SPLIT:
        titles.insert(1, f"**{kind}, other hospitals**")
    return titles
