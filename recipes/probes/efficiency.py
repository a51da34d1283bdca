"""How many labelled patients an encoder needs: AUROC of a logistic head against their number.

    python -m recipes.probes.efficiency results/probes NAME=EMBEDDINGS [NAME=EMBEDDINGS ...]

Heads learn from 8, 16, 32, ... patients of the training split, ten draws each, and are scored on
the validation split, whose patients are others; the test split stays untouched. A finding that a
draw does not show twice counts as AUROC 0.5. RESULTS gets NAME.csv, a row a draw, and, of all that
lie there, efficiency.md and efficiency.png.
"""

import argparse
import csv
import sys
from itertools import takewhile
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from embedding.heads import fit_logistic
from embedding.table import Embeddings, read_embeddings
from evaluation.figures.style import COLORS, STYLE, WIDTH, legend_below, look, save
from evaluation.predictions import write_text
from evaluation.table import markdown_table

DRAWS = 10
FEWEST = 8
BAND = (10, 90)  # percentiles of the draws
COLUMNS = ("encoder", "patients", "images", "draw", "auroc")


def sizes(count: int) -> list[int]:
    """8, 16, 32, ... below a number of patients, and that number."""
    doubled = (FEWEST * 2**k for k in range(40))
    return [*takewhile(lambda size: size < count, doubled), count]


def mean_auroc(train: Embeddings, validation: Embeddings, multi_label: bool, seed: int) -> float:
    """Mean over the findings, or AUROC of class 1 of two, on the validation images."""
    scores = []
    for k in range(train.labels.shape[1]) if multi_label else [1]:
        truth, known = validation.labels[:, k], ~validation.unknown[:, k]
        if len(np.unique(truth[known])) < 2:
            continue
        learnt = train.take(np.flatnonzero(~train.unknown[:, k]))
        present = learnt.labels[:, k].sum()
        if min(present, len(learnt.labels) - present) < 2:
            scores.append(0.5)
            continue
        one = Embeddings(
            learnt.image_id,
            learnt.patient_id,
            learnt.labels[:, [k]],
            learnt.unknown[:, [k]],
            learnt.vectors,
        )
        logits = fit_logistic(one, ["finding"], True, seed)(validation.vectors)[:, 0]
        scores.append(roc_auc_score(truth[known], logits[known]))
    return float(np.mean(scores))


def draw_all(name: str, folder: str) -> list[dict]:
    """A row a draw of an encoder's embeddings.

    Raises:
        ValueError: no embeddings, or not of both splits.
    """
    facts, splits = read_embeddings(folder)
    if missing := {"train", "validation"} - set(splits):
        raise ValueError(f"{folder} has no {missing.pop()} split; embed a set that has one.")
    train, multi_label = splits["train"], facts["task"] == "multi_label"
    patients = np.unique(train.patient_id)
    rows = []
    for size in tqdm(sizes(len(patients)), desc=name):
        for draw in range(DRAWS if size < len(patients) else 1):
            chosen = np.random.default_rng(draw).permutation(patients)[:size]
            some = train.of_patients(chosen)
            auroc = mean_auroc(some, splits["validation"], multi_label, draw)
            row = (name, size, len(some.image_id), draw, f"{auroc:.6f}")
            rows.append(dict(zip(COLUMNS, row)))
    return rows


def summarize(folder: Path) -> dict[str, dict[int, np.ndarray]]:
    """{encoder: {patients: AUROC of each draw}} of the tables in a folder."""
    found: dict[str, dict[int, list[float]]] = {}
    for path in sorted(folder.glob("*.csv")):
        with open(path, newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                own = found.setdefault(row["encoder"], {})
                own.setdefault(int(row["patients"]), []).append(float(row["auroc"]))
    return {name: {n: np.array(v) for n, v in own.items()} for name, own in found.items()}


def table(found: dict[str, dict[int, np.ndarray]]) -> str:
    """A row an encoder, a column a number of patients: mean of the draws and their band."""
    numbers = sorted({number for own in found.values() for number in own})
    rows = [
        [name, *(_cell(own[number]) if number in own else "-" for number in numbers)]
        for name, own in found.items()
    ]
    return markdown_table(["Encoder", *map(str, numbers)], rows)


def _cell(values: np.ndarray) -> str:
    low, high = np.percentile(values, BAND)
    return f"{values.mean():.3f} ({low:.3f}-{high:.3f})" if len(values) > 1 else f"{values[0]:.3f}"


@matplotlib.rc_context(STYLE)
def plot(found: dict[str, dict[int, np.ndarray]], path: Path) -> None:
    """The means against the number of patients, with their bands."""
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots()
    entries = {}
    for k, (name, own) in enumerate(found.items()):
        numbers = sorted(own)
        low, high = np.array([np.percentile(own[number], BAND) for number in numbers]).T
        axes.plot(numbers, [own[number].mean() for number in numbers], **look(k), marker="o")
        axes.fill_between(numbers, low, high, color=COLORS[k % len(COLORS)], alpha=0.15, lw=0)
        entries[name] = Line2D([], [], **look(k), marker="o")
    axes.set(xscale="log", xlabel="Labelled patients", ylabel="AUROC, validation")
    axes.set_title("What few labels give")
    legend_below(figure, entries)
    save(figure, path)


def main() -> None:
    """Writes the tables, the page and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder for the tables and the figure")
    parser.add_argument("encoders", nargs="+", metavar="NAME=DIR", help="folders of embed.py")
    options = parser.parse_args()
    try:
        options.results.mkdir(parents=True, exist_ok=True)
        for encoder in options.encoders:
            name, _, folder = encoder.partition("=")
            file = options.results / f"{name.replace(' ', '_')}.csv"
            with open(file, "w", newline="", encoding="utf-8") as output:
                writer = csv.DictWriter(output, COLUMNS)
                writer.writeheader()
                writer.writerows(draw_all(name, folder))
        found = summarize(options.results)
        write_text(options.results / "efficiency.md", f"{table(found)}\n")
        plot(found, options.results / "efficiency.png")
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
