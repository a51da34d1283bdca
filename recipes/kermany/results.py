"""The part of RESULTS.md on the paediatric set, see `recipes.results`, from the files of the study.

Every number is read from a file and put into a hole of RESULTS.md.jinja, whose text says how the
study was done.
"""

import csv
import json
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from evaluation.bootstrap import CONFIDENCE_LEVEL
from evaluation.compare import delong
from evaluation.figures import plot_training_curves
from evaluation.metrics import METRIC_NAMES, format_metric
from evaluation.pages.wording import difference, listed
from evaluation.predictions import read_predictions
from evaluation.saliency import MEASURES
from evaluation.table import markdown_table, read_json
from recipes.kermany.outliers import flagged_table, unseen_packages

HEADLINE = {
    "auroc": "AUROC [95 % CI]",
    "accuracy": "Accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
}
VARIANTS = ("test", "borders", "corners", "padded", "lungs", "only_lungs", "no_lungs", "shift")
EXTERNAL = ("nih_pa", "actualmed", "covid_cxnet", "openist")
SHOWN = {
    "roc": "ROC curves with bootstrap bands, official test split",
    "pr": "Precision against recall",
    "reliability": "Reliability after calibration",
    "decision_curve": "Net benefit",
}
EACH = {
    "confusion_matrix": "Confusion matrix",
    "scores": "Scores by class",
    "threshold_sweep": "Threshold sweep",
    "forest": "Subgroups",
    "saliency_randomisation": "Heatmaps while layers are randomised",
}


def collect(folder: Path, base: Path) -> dict:
    """What fills the holes of RESULTS.md.jinja.

    The figure that no report holds is drawn into `folder/figures`.

    Args:
        folder: with search/, seeds/, leak/ (runs), outliers/ and reports/ (reports), see study.sh;
            seeds and the report "test" are needed, parts that are absent are left out.
        base: the folder as the page's links name it.

    Raises:
        ValueError, OSError: a file is missing or damaged.
    """
    (folder / "figures").mkdir(exist_ok=True)
    seeds, search, leak = (read_runs(folder / kind) for kind in ("seeds", "search", "leak"))
    reports = {
        report.name: read_json(report / "metrics.json", ("dataset", "models"), "validate.py")
        for report in sorted((folder / "reports").iterdir())
        if (report / "metrics.json").is_file()
    }
    test = reports["test"]
    models = list(test["models"])
    by_model = group_by_model(seeds)
    draw_training(by_model, folder)
    return dict(
        level=f"{CONFIDENCE_LEVEL * 100:.0f} %",
        test=test["dataset"],
        classes=", ".join(f"{count} {name}" for name, count in test["dataset"]["classes"].items()),
        shipped=shipped_table(test, models),
        shipped_differences=shipped_differences(test),
        seeds=seeds_table(by_model),
        pairs=pairs_table(by_model),
        figures=figure_links(folder, base, models),
        **leak_facts(leak),
        shortcuts=reports_table(reports, VARIANTS, models),
        external=reports_table(reports, EXTERNAL, models),
        **external_facts(reports, models),
        outliers=flagged_table(folder / "outliers") if (folder / "outliers").is_dir() else "",
        unseen_packages=unseen_packages(folder / "outliers"),
        calibration=calibration_table(test, models),
        **saliency_facts(test, models),
        cases=cases_table(folder / "reports" / "test", models),
        run=next(iter(seeds.values()))["args"],
        num_seeds=max(map(len, by_model.values())),
        devices=listed(sorted({f"`{run['metrics']['device']}`" for run in seeds.values()})),
        speeds=speeds([*seeds.values(), *search.values()], by_model),
        search=search_table(search),
    )


def read_runs(folder: Path) -> dict[str, dict]:
    """Name: files of each run below a folder, which may be absent."""
    found = {}
    for run in sorted(folder.iterdir()) if folder.is_dir() else []:
        found[run.name] = {
            "folder": run,
            "metrics": read_json(run / "metrics.json", ("validation", "train_seconds", "device")),
            "args": read_json(run / "training_args.json", ("model", "seed", "image_size")),
            "dataset": read_json(run / "dataset.json", ("splits",)),
        }
    return found


def group_by_model(seeds: dict[str, dict]) -> dict[str, dict[int, dict]]:
    """{model: {seed: run}} of runs named MODEL-SEED; the seed is that of the run's arguments.

    Raises:
        ValueError: two runs of a model with one seed.
    """
    found: dict[str, dict[int, dict]] = {}
    for name, run in seeds.items():
        own, seed = found.setdefault(name.rpartition("-")[0], {}), run["args"]["seed"]
        if seed in own:
            raise ValueError(f"{run['folder']} has the seed {seed} of {own[seed]['folder']}.")
        own[seed] = run
    return {model: dict(sorted(own.items())) for model, own in found.items()}


def search_table(runs: dict[str, dict]) -> str:
    """A row a run of the search, validation alone; "" without runs."""
    if not runs:
        return ""
    header = ["Setting", "Model", "Pixels", "Epochs", "Seed", "Validation", "Altered validation"]
    header += ["Minutes"]
    rows = []
    for name, run in runs.items():
        args, metrics = run["args"], run["metrics"]
        row = [name, args["model"], args["image_size"], args["num_train_epochs"], args["seed"]]
        row += [format_metric(metrics[key]["auroc"]) for key in ("validation", "operation")]
        rows.append([*map(str, row), f"{metrics['train_seconds'] / 60:.0f}"])
    return markdown_table(header, rows)


def seeds_table(by_model: dict[str, dict[int, dict]]) -> str:
    """A row a run on the test split, and the mean and spread of each model."""
    header = ["Run", "Altered validation AUROC", *HEADLINE.values(), "Minutes"]
    rows = []
    for model, runs in by_model.items():
        for run in runs.values():
            metrics = run["metrics"]
            row = [run["folder"].name, f"{metrics['operation']['auroc']['value']:.3f}"]
            row += [format_metric(metrics["uncalibrated_test"]["auroc"])]
            row += [f"{metrics['test'][key]['value']:.3f}" for key in list(HEADLINE)[1:]]
            rows.append([*row, f"{metrics['train_seconds'] / 60:.0f}"])
        values = [
            [run["metrics"]["test"][key]["value"] for run in runs.values()] for key in HEADLINE
        ]
        if len(runs) > 1:
            spread = [f"{np.mean(v):.3f} ± {np.std(v, ddof=1):.3f}" for v in values]
            rows.append([f"**{model}**, mean ± SD of {len(runs)}", "", *spread, ""])
    return markdown_table(header, rows)


def draw_training(by_model: dict[str, dict[int, dict]], folder: Path) -> None:
    """The training curves of all seeds."""
    histories = {
        model: [run["folder"] / "history.csv" for run in runs.values()]
        for model, runs in by_model.items()
    }
    plot_training_curves(histories, folder / "figures" / "training_curves.png")


def pairs_table(by_model: dict[str, dict[int, dict]]) -> str:
    """DeLong's test of the two models, seed by seed; "" for other than two models."""
    if len(by_model) != 2:
        return ""
    first, second = by_model.values()
    rows = []
    for seed in (seed for seed in first if seed in second):
        other, one = second[seed]["folder"], first[seed]["folder"]
        a, b = (read_predictions(run / "predictions_test.csv") for run in (other, one))
        found = delong(a.labels == 1, a.log_odds[:, 1], b.log_odds[:, 1], a.patient_id)
        entry = {"value": found["difference"], "low": found["low"], "high": found["high"]}
        p = "undefined" if found["p"] is None else f"{found['p']:.2g}"
        rows.append([f"{other.name} - {one.name}", difference(entry), p])
    header = ["Difference in test AUROC", "[95 % CI]", "p (DeLong, patients as clusters)"]
    return markdown_table(header, rows) if rows else ""


def shipped_table(test: dict, models: Sequence[str]) -> str:
    """A row a metric of the report on the test split, a column a model."""
    keys = [key for key in METRIC_NAMES if key in test["models"][models[0]]["metrics"]]
    rows = [
        [METRIC_NAMES[key], *(format_metric(test["models"][m]["metrics"][key]) for m in models)]
        for key in keys
    ]
    return markdown_table(["Metric", *models], rows)


def shipped_differences(test: dict) -> list[str]:
    """A sentence for each pair of models."""
    lines = []
    for pair in test["comparisons"]:
        found = pair["delong_clustered"]
        entry = {"value": found["difference"], "low": found["low"], "high": found["high"]}
        p = "" if found["p"] is None else f", p = {found['p']:.2g}"
        lines.append(
            f"AUROC of {pair['a']} minus {pair['b']}: {difference(entry)} (DeLong's test with "
            f"patients as clusters{p})."
        )
    return lines


def figure_links(folder: Path, base: Path, models: Sequence[str]) -> str:
    """The figures of the seeds and of the report on the test split that are there."""
    lines = [f"![Training curves of every seed]({base}/figures/training_curves.png)"]
    shown = folder / "reports" / "test" / "figures"
    wanted = SHOWN | {
        f"{name}_{m}": f"{title}, {m}" for name, title in EACH.items() for m in models
    }
    for name, title in wanted.items():
        if (shown / f"{name}.png").is_file():
            lines.append(f"![{title}]({base}/reports/test/figures/{name}.png)")
    return "\n\n".join(lines)


def leak_facts(runs: dict[str, dict]) -> dict:
    """The table of the pooled images, and what the two runs have in common."""
    if not runs:
        return {"leak": ""}
    header = ["Split of the pooled images", "n", "Patients", *HEADLINE.values()]
    rows = []
    for name, run in runs.items():
        test = run["metrics"]["test"]
        row = [name, str(test["n"]), str(test["patients"]) if "patient" in name else "unknown"]
        rows.append([*row, *(format_metric(test[key]) for key in HEADLINE)])
    first = next(iter(runs.values()))
    counts = {split: c["unique_images"] for split, c in first["dataset"]["splits"].items()}
    total = sum(counts.values())
    return {
        "leak": markdown_table(header, rows),
        "leak_args": first["args"],
        "leak_images": f"{total:,}",
        "leak_shares": ", ".join(f"{n / total:.0%} {split}" for split, n in counts.items()),
    }


def reports_table(reports: dict, names: Sequence[str], models: Sequence[str]) -> str:
    """A row a report that is there and model; "" without reports."""
    header = ["Images", "n", "Model", *HEADLINE.values(), "ECE"]
    rows = []
    for name in (name for name in names if name in reports):
        for model in models:
            metrics = reports[name]["models"][model]["metrics"]
            cells = [format_metric(metrics[key]) for key in (*HEADLINE, "ece")]
            rows.append([name, str(metrics["n"]), model, *cells])
    return markdown_table(header, rows) if rows else ""


def external_facts(reports: dict, models: Sequence[str]) -> dict:
    """The external sets with both classes, and what each model's AUROC loses there."""
    both, losses = [], []
    for name in (name for name in EXTERNAL if name in reports):
        for model in models:
            entry = reports[name]["models"][model]["metrics"]["auroc"]
            if entry["value"] is not None:
                both.append(f"`{name}`")
                own = reports["test"]["models"][model]["metrics"]["auroc"]["value"]
                lost = own - entry["value"]
                losses.append(f"{model} loses {lost:.3f} of its AUROC on `{name}`.")
    return {"both_classes": listed(dict.fromkeys(both) or ["none"]), "losses": losses}


def calibration_table(test: dict, models: Sequence[str]) -> str:
    """Accuracy and ECE, raw, calibrated, and at other shares of the classes."""
    header = ["Probabilities", "Model", "Accuracy", "ECE", f"Prevalence of {positive(test)}"]
    titles = {
        "validation": "as calibrated",
        "true": "corrected to the true prevalence",
        "em": "corrected to the EM estimate",
    }
    rows = []
    for model in models:
        content = test["models"][model]
        if content["operation"] is None:
            continue
        raw = content["uncalibrated"]
        rows.append(["raw", model, format_metric(raw["accuracy"]), format_metric(raw["ece"]), "-"])
        for key, title in titles.items():
            found = content["prevalence"][key]
            cells = [format_metric(found[metric]) for metric in ("accuracy", "ece")]
            rows.append([title, model, *cells, f"{found['prevalence'][1]:.3f}"])
        abstention = content["abstention"]
        if abstention is None:
            continue
        cells = [format_metric(abstention[key]) for key in ("accuracy", "coverage")]
        rows.append(["outside the abstention band", model, cells[0], f"coverage {cells[1]}", "-"])
    return markdown_table(header, rows)


def positive(test: dict) -> str:
    """The class that counts as positive."""
    return list(test["dataset"]["classes"])[-1]


def saliency_facts(test: dict, models: Sequence[str]) -> dict:
    """The table of the heatmaps' measures, and the comparison of each pair of models."""
    if any(test["models"][model]["saliency"] is None for model in models):
        return {"saliency": ""}
    rows = [
        [title, *(format_metric(test["models"][model]["saliency"][key]) for model in models)]
        for key, title in MEASURES.items()
    ]
    comparisons = []
    for pair in test["saliency_comparisons"]:
        cells = [[title, difference(pair[key])] for key, title in MEASURES.items() if key in pair]
        gain, verdict = pair["energy_in_lungs"], "is undecided by these images"
        if gain["value"] is not None and gain["low"] is not None:
            verdict = "holds" if gain["low"] > 0 else verdict
            verdict = "is refuted" if gain["high"] < 0 else verdict
        comparisons.append(
            {
                **{key: pair[key] for key in ("a", "b")},
                "table": markdown_table([f"{pair['a']} minus {pair['b']}", "[95 % CI]"], cells),
                "verdict": verdict,
                "gain": difference(gain),
            }
        )
    table = markdown_table(["Measure", *models], rows)
    return {"saliency": table, "saliency_comparisons": comparisons}


def cases_table(report: Path, models: Sequence[str]) -> str:
    """The cases of a report's gallery, without their pictures; "" where there is none."""
    if not (report / "gallery.json").is_file():
        return ""
    finding = positive(read_json(report / "metrics.json", ("dataset",), "validate.py"))
    rows = []
    for case in json.loads((report / "gallery.json").read_text(encoding="utf-8")):
        shown = [f"{case['probabilities'][model][finding]:.3f}" for model in models]
        wrong = ", ".join(case["wrong"]) or "-"
        rows.append([case["image_id"], case["kind"], case["truth"], *shown, wrong])
    header = ["Image", "Kind", "Truth", *(f"p({finding}), {m}" for m in models), "Wrong"]
    return markdown_table(header, rows)


def speeds(runs: Sequence[dict], models: Collection[str]) -> str:
    """The images a second of the fastest epoch of each of the models and image size."""
    fastest: dict[str, float] = {}
    for run in (run for run in runs if run["args"]["model"] in models):
        what = f"{run['args']['model']} at {run['args']['image_size']} pixels"
        with open(run["folder"] / "history.csv", newline="", encoding="utf-8") as file:
            found = [float(row["images_per_second"]) for row in csv.DictReader(file)]
        fastest[what] = max([fastest.get(what, 0), *found])
    return ", ".join(f"{what} {fast:.0f}" for what, fast in sorted(fastest.items()))
