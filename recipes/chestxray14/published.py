"""Figures that others published on ChestX-ray14 beside ours, a table a split, never mixed.

    python -m recipes.chestxray14.published results/chestxray14

The folder holds floor.json, and ../peers/chexnet/metrics.json is a report of `validate.py
--rescore` on published scores. What was published is in published.yaml, with its sources.
"""

import argparse
import sys
from pathlib import Path

import yaml

from datasets_scripts.chestxray14 import FINDINGS
from evaluation.metrics import format_metric
from evaluation.table import markdown_table, read_json

PUBLISHED = Path(__file__).with_name("published.yaml")
TESTED_ON = {"chexnet": "CheXNet's test", "official": "official test"}  # as floor.json calls them


def comparison_table(split: str, measured: dict[str, dict]) -> str:
    """A Markdown table of AUROCs on a split: the mean and each finding, published ones first.

    Args:
        split: "chexnet" or "official".
        measured: {name: `compute_metrics` of the 14 findings on the test images of the split}.

    Raises:
        ValueError: an unknown split, or metrics of another number of images.
    """
    published = read_published()
    if split not in published:
        raise ValueError(
            f"{split!r} is no split of {PUBLISHED.name}; it has {', '.join(published)}."
        )
    images, models = (published[split][key] for key in ("images", "models"))
    for name, metrics in measured.items():
        if metrics["n"] != images:
            raise ValueError(
                f"{name} was measured on {metrics['n']:,} images; {published[split]['title']} has "
                f"{images:,} for the test."
            )
    rows = [["Mean", *(_stated(model.get("mean")) for model in models)]]
    rows[0] += [format_metric(metrics["auroc"]) for metrics in measured.values()]
    for finding in FINDINGS:
        row = [_stated(model.get("findings", {}).get(finding)) for model in models]
        row += [format_metric(part["classes"][finding]["auroc"]) for part in measured.values()]
        rows.append([finding, *row])
    return markdown_table(["Finding", *(model["name"] for model in models), *measured], rows)


def published_section(folder: Path) -> str:
    """The comparison on all splits as Markdown: of each a heading, a sentence, a table, sources.

    Args:
        folder: results/chestxray14, with floor.json and, beside it, peers/chexnet.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    report = folder.parent / "peers" / "chexnet" / "metrics.json"
    peers = read_json(report, ("models",), "validate.py")
    floors = read_json(folder / "floor.json", (), "floor.py")
    scores = {"scores of jrzech, here": next(iter(peers["models"].values()))["metrics"]}
    parts = []
    for split, published in read_published().items():
        measured = dict(scores) if split == "chexnet" else {}
        for name, floor in floors.items():
            if name.endswith(f" to {TESTED_ON[split]}"):
                measured[name.partition(":")[0]] = {
                    "n": floor["n"],
                    "auroc": floor["mean_auroc"],
                    "classes": {one: {"auroc": entry} for one, entry in floor["auroc"].items()},
                }
        sources = "; ".join(f"{model['name']}: {model['source']}" for model in published["models"])
        parts += [f"## Published on {published['title']}", published["about"]]
        parts += [comparison_table(split, measured), f"Sources: {sources}."]
    return "\n\n".join(parts)


def read_published() -> dict[str, dict]:
    """What published.yaml holds: {split: `title`, `about`, `images` of its test, `models`}."""
    return yaml.safe_load(PUBLISHED.read_text("utf-8"))


def _stated(auroc: float | None) -> str:
    return "" if auroc is None else f"{auroc:.3f}"


def main() -> None:
    """Prints the section."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="results/chestxray14")
    options = parser.parse_args()
    try:
        print(published_section(options.folder))
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
