"""The part of RESULTS.md on ChestX-ray14, see `recipes.results`, from the files of study.sh."""

from collections.abc import Mapping
from pathlib import Path

from evaluation.metrics import format_metric
from evaluation.pages.wording import difference, listed
from evaluation.table import markdown_table, read_json
from recipes.chestxray14.gains import FLOORS, GREY, METADATA
from recipes.chestxray14.published import published_section

COLUMNS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "f1": "F1",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}


def collect(folder: Path, base: Path) -> dict:
    """What fills the holes of RESULTS.md.jinja.

    Args:
        folder: with seeds/ (runs of train.py), report/ (of validate.py), gains.json and floor.json;
            beside it peers/chexnet.
        base: the folder as the page's links name it.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    report = read_json(folder / "report" / "metrics.json", ("dataset", "models"), "validate.py")
    gains = read_json(folder / "gains.json", ("n", "pa", "models"), "gains.py")
    floor = read_json(folder / "floor.json", FLOORS, "floor.py")
    runs = {name: read_run(folder / "seeds" / name) for name in gains["models"]}
    chosen = max(runs, key=lambda name: runs[name]["validation"]["auroc"]["value"])
    first = runs[chosen]
    return {
        "base": base,
        "dataset": report["dataset"],
        "pa": gains["pa"],
        "splits": first["splits"],
        "absent": listed(first["validation"]["auroc"].get("without", [])),
        "runs": runs_table(runs, gains["models"], floor),
        "verdict": verdict(chosen, gains["models"][chosen]["gains"]),
        "chosen": chosen,
        "findings": findings_table(report["models"][chosen]["metrics"]["classes"], floor),
        "published": published_section(folder),
    }


def read_run(folder: Path) -> dict:
    """What the page says of a run: its arguments, its validation metrics, its splits."""
    metrics = read_json(folder / "metrics.json", ("validation", "train_seconds"))
    args = read_json(folder / "training_args.json", ("model", "pretrained", "image_size", "seed"))
    splits = read_json(folder / "dataset.json", ("splits",))["splits"]
    return {**metrics, "args": args, "splits": splits}


def start(args: Mapping) -> str:
    """Where a run's weights come from: a checkpoint's name, ImageNet, or scratch."""
    if args["pretrained"]:
        return "ImageNet"
    return args["model"] if args["model"].startswith("cxr-") else "scratch"


def runs_table(
    runs: Mapping[str, dict], models: Mapping[str, dict], floor: Mapping[str, dict]
) -> str:
    """A row a run, and one a floor: mean AUROC, within PA too, and what is above each floor."""
    header = ["Run", "Start", "Pixels", "Validation", "Test", "Test, PA alone"]
    rows = []
    for name, found in models.items():
        args, validation = runs[name]["args"], runs[name]["validation"]
        row = [name, start(args), str(args["image_size"]), f"{validation['auroc']['value']:.3f}"]
        row += [format_metric(found[key]) for key in ("auroc", "pa")]
        rows.append([*row, *(difference(found["gains"][name]) for name in FLOORS)])
    for name in FLOORS:
        rows.append([name, *["-"] * 3, format_metric(floor[name]["mean_auroc"]), *["-"] * 4])
    return markdown_table([*header, *(f"minus {name.split(' to ')[0]}" for name in FLOORS)], rows)


def verdict(name: str, gains: Mapping[str, dict]) -> str:
    """Whether the run chosen on validation is above each floor, a sentence."""
    groups: dict[str, list[str]] = {"is above": [], "cannot be told from": [], "is below": []}
    for floor, gain in gains.items():
        kind = "is above" if gain["low"] > 0 else "cannot be told from"
        groups["is below" if gain["high"] < 0 else kind].append(f"{floor} ({difference(gain)})")
    parts = [f"{kind} {'; '.join(floors)}" for kind, floors in groups.items() if floors]
    return f"`{name}`, chosen on validation, {', and '.join(parts)}."


def findings_table(classes: Mapping[str, dict], floor: Mapping[str, dict]) -> str:
    """A row a finding of one model at its operating point, and what the floors rank."""
    compared = {"AUROC, view, sex, age": METADATA, "AUROC, grey statistics": GREY}
    header = ["Finding", "n", "Prevalence", *COLUMNS.values(), *compared]
    rows = []
    for finding, metrics in classes.items():
        row = [finding, str(metrics["tp"] + metrics["fn"]), f"{metrics['prevalence']:.3f}"]
        row += [format_metric(metrics[key]) for key in COLUMNS]
        rows.append([*row, *(format_metric(floor[n]["auroc"][finding]) for n in compared.values())])
    return markdown_table(header, rows)
