"""The part of RESULTS.md on ChestX-ray14, see `recipes.results`, from the files of study.sh."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from evaluation.metrics import format_metric
from evaluation.pages.wording import difference, listed
from evaluation.table import markdown_table, read_json
from recipes.chestxray14.gains import FLOORS, GREY, METADATA, METRICS
from recipes.chestxray14.published import published_section

TITLES = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}


def collect(folder: Path, base: Path) -> dict:
    """What fills the holes of RESULTS.md.jinja.

    Args:
        folder: with seeds/ (runs of train.py), gains.json and floor.json; beside it peers/chexnet.
        base: the folder as the page's links name it.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    gains = read_json(folder / "gains.json", ("pa", "arms", "dataset", "runs"), "gains.py")
    floor = read_json(folder / "floor.json", FLOORS, "floor.py")
    arms = {name: read_runs(folder / "seeds", name, gains["runs"]) for name in gains["arms"]}
    chosen = max(arms, key=lambda name: mean_validation(arms[name]))
    name, first = next(iter(arms[chosen].items()))
    return {
        "base": base,
        "dataset": gains["dataset"],
        "pa": gains["pa"],
        "splits": first["splits"],
        "seeds": len(arms[chosen]),
        "absent": listed(first["validation"]["auroc"].get("without", [])),
        "arms": arms_table(arms, gains["arms"], floor),
        "verdict": verdict(chosen, gains["arms"][chosen]["gains"]),
        "shown": name,
        "findings": findings_table(gains["runs"][name], floor),
        "published": published_section(folder),
    }


def read_runs(folder: Path, arm: str, names: Iterable[str]) -> dict[str, dict]:
    """By name what the page says of an arm's runs: arguments, validation metrics, splits."""
    runs = {}
    for name in (name for name in names if name.rpartition("-")[0] == arm):
        metrics = read_json(folder / name / "metrics.json", ("validation",))
        keys = ("model", "pretrained", "image_size")
        args = read_json(folder / name / "training_args.json", keys)
        splits = read_json(folder / name / "dataset.json", ("splits",))["splits"]
        runs[name] = {**metrics, "args": args, "splits": splits}
    return runs


def mean_validation(runs: Mapping[str, dict]) -> float:
    """Mean AUROC on validation of an arm's runs."""
    return float(np.mean([run["validation"]["auroc"]["value"] for run in runs.values()]))


def start(args: Mapping) -> str:
    """Where a run's weights come from: a checkpoint's name, ImageNet, or scratch."""
    if args["pretrained"]:
        return "ImageNet"
    return args["model"] if args["model"].startswith("cxr-") else "scratch"


def arms_table(
    arms: Mapping[str, dict], measured: Mapping[str, dict], floors: Mapping[str, dict]
) -> str:
    """A row an arm, and one a floor: mean AUROC, within PA too, and what is above each floor."""
    header = ["Arm", "Start", "Pixels", "Validation", "Test", "Each seed", "Test, PA alone"]
    rows = []
    for name, found in measured.items():
        args = next(iter(arms[name].values()))["args"]
        row = [name, start(args), str(args["image_size"]), f"{mean_validation(arms[name]):.3f}"]
        seeds = ", ".join(f"{value:.3f}" for value in found["auroc"]["seeds"])
        row += [format_metric(found["auroc"]), seeds, format_metric(found["pa"])]
        rows.append([*row, *(difference(found["gains"][floor]) for floor in FLOORS)])
    for floor in FLOORS:
        rows.append([floor, *["-"] * 3, format_metric(floors[floor]["mean_auroc"]), *["-"] * 5])
    return markdown_table([*header, *(f"minus {floor.split(' to ')[0]}" for floor in FLOORS)], rows)


def verdict(name: str, gains: Mapping[str, dict]) -> str:
    """Whether the arm chosen on validation is above each floor, a sentence."""
    groups: dict[str, list[str]] = {"is above": [], "cannot be told from": [], "is below": []}
    for floor, gain in gains.items():
        kind = "is above" if gain["low"] > 0 else "cannot be told from"
        groups["is below" if gain["high"] < 0 else kind].append(f"{floor} ({difference(gain)})")
    parts = [f"{kind} {'; '.join(floors)}" for kind, floors in groups.items() if floors]
    return f"`{name}`, chosen on validation, {', and '.join(parts)}."


def findings_table(classes: Mapping[str, dict], floor: Mapping[str, dict]) -> str:
    """A row a finding of one model at its operating point, and what the floors rank."""
    compared = {"AUROC, view, sex, age": METADATA, "AUROC, grey statistics": GREY}
    titles = [TITLES.get(name, name.capitalize()) for name in METRICS]
    rows = []
    for finding, metrics in classes.items():
        row = [finding, str(metrics["n"]), f"{metrics['prevalence']:.3f}"]
        row += [format_metric(metrics[key]) for key in METRICS]
        rows.append([*row, *(format_metric(floor[n]["auroc"][finding]) for n in compared.values())])
    return markdown_table(["Finding", "n", "Prevalence", *titles, *compared], rows)
