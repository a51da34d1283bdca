"""The model card, generated from a run's files: no number in it is typed."""

import json
import re
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from evaluation.metrics import METRIC_NAMES
from evaluation.pages.gallery import figure_title, names_in_figures
from evaluation.pages.markdown import Notes, escape, table
from evaluation.pages.model_card_text import (
    arguments_of,
    intended_use,
    items,
    limitations,
    source_of_data,
    tripod_items,
)
from evaluation.pages.report import classes_by_subgroup
from evaluation.pages.wording import (
    ECE_REMARK,
    NOTICE,
    describe_abstention,
    describe_calibration,
    describe_thresholds,
    fixed_points,
    shares,
)
from evaluation.predictions import write_text
from evaluation.table import read_json

# The Hub's ids of the metrics that it knows under another name.
HUB_METRICS = {
    "auroc": "roc_auc",
    "sensitivity": "recall",
    "ppv": "precision",
    "mcc": "matthews_correlation",
    "brier": "brier_score",
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
EVIDENCE_METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "ece")
CALIBRATED_METRICS = ("brier", "ece", "ece_mass", "log_loss")


def write_model_card(run_dir: str | Path, repo_id: str | None = None) -> Path:
    """Write `run_dir/README.md` from the run's config, training_args, metrics and dataset .json.

    Results stand first, the arguments folded. What is said comes from the run: of the test split
    only where metrics.json has one, of the data what dataset.json holds as `facts` (`title`,
    `citation`, `licence`, `population`, and, a sentence or several each, `limits` and
    `out_of_scope`) and as `warnings` ({what the reader noticed: number of images}). Optional are
    `calibration`, `thresholds`, `abstention`, `prevalence`, `outlier_threshold` and `age_range` in
    config.json, the test metrics of the raw logits as `uncalibrated_test` in metrics.json, and
    evidence.json: a list of `{"name", "n", "patients", "metrics"}`, each with a "note" or without,
    of the model on other data or on altered images; `metrics` holds entries of `compute_metrics`;
    and the groups of `evaluation.subgroups.subgroups` as `subgroups` in metrics.json.

    Args:
        run_dir: the model folder; the PNG figures in its `figures/` are embedded.
        repo_id: Hub id that the loading example names; None names the folder.

    Returns:
        The path of the card, which `huggingface_hub.ModelCard.load` parses: its `eval_results` are
        the values of metrics.json.

    Raises:
        ValueError: a file that is not JSON, or that lacks a key.
        OSError: a file is missing, or the card cannot be written.
    """
    run_dir = Path(run_dir)
    config, arguments, metrics, dataset = (
        read_json(run_dir / f"{name}.json", keys)
        for name, keys in (
            ("config", ("id2label", "model_type", "image_size")),
            ("training_args", ()),
            ("metrics", ("validation", "best_epoch", "train_seconds", "num_parameters")),
            ("dataset", ("source", "name", "splits")),
        )
    )
    evidence = []
    if (run_dir / "evidence.json").is_file():
        keys = ("name", "n", "patients", "metrics")
        evidence = read_json(run_dir / "evidence.json", keys, "a validation", many=True)
    facts = dataset.get("facts") or {}
    name = repo_id or run_dir.resolve().name
    data = ModelCardData(
        license="apache-2.0",
        library_name="transformers",
        pipeline_tag="image-classification",
        tags=["image-classification", "chest-x-ray", "medical-imaging", config["model_type"]],
        base_model=_base_model(arguments),
        datasets=[dataset["name"]] if "/" in dataset["source"] else None,
        model_name=name.split("/")[-1],
        eval_results=_eval_results(metrics["test"], dataset) if "test" in metrics else None,
    )
    splits = {split: metrics[split] for split in ("validation", "test") if split in metrics}
    parts = [
        _introduction(name, config, dataset, splits["validation"]),
        _results(splits, metrics.get("subgroups", [])),
        _figures(run_dir, splits["validation"]["class_names"]),
        _calibration(config, metrics, splits["validation"]),
        _evidence(evidence, metrics.get("test")),
        intended_use(facts, config),
        _usage(name, config, splits["validation"]),
        _data(dataset, facts),
        _protocol(config, arguments, splits),
        _training(arguments, metrics),
        limitations(facts),
        "" if dataset["source"] == "phantom" else tripod_items(facts, arguments, bool(evidence)),
    ]
    body = "\n\n".join(part for part in parts if part)
    card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}\n")
    write_text(run_dir / "README.md", str(card))
    return run_dir / "README.md"


def _base_model(arguments: dict) -> str | None:
    """The Hub id of the weights that training began with, where the arguments tell it."""
    model = arguments.get("model", "")
    if HUB_ID.fullmatch(model):
        return model
    if (
        arguments.get("pretrained") is True and "." in model
    ):  # a timm name with its tag is its Hub name
        return f"timm/{model}"
    return None


def _eval_results(test: dict, dataset: dict) -> list[EvalResult] | None:
    results = [
        EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=dataset["name"] if "/" in dataset["source"] else dataset["source"],
            dataset_name=dataset["name"],
            dataset_split="test",
            metric_type=HUB_METRICS.get(metric, metric),
            metric_name=metric_name,
            metric_value=test[metric]["value"],
        )
        for metric, metric_name in METRIC_NAMES.items()
        if metric in test and test[metric]["value"] is not None
    ]
    return results or None  # a model-index without results does not parse


def _introduction(name: str, config: dict, dataset: dict, metrics: dict) -> str:
    channels = "grey" if config.get("num_channels", 1) == 1 else "three-channel"
    rule = describe_thresholds(config.get("thresholds"), metrics["class_names"], metrics["task"])
    if metrics["task"] == "binary":
        rule += f"; {metrics['positive_class']} counts as positive"
    classes = ", ".join(config["id2label"].values())
    return f"""# {name.split("/")[-1]}

A chest X-ray classifier (`{config["model_type"]}`, {channels} input of {config["image_size"]} x \
{config["image_size"]} pixels) for the classes {escape(classes)}, trained on \
{escape(dataset["name"])}. Its Grad-CAM heatmap is a method of the model.

**{NOTICE}**

**Decision rule:** {escape(rule)}."""


def _usage(name: str, config: dict, metrics: dict) -> str:
    kind = "calibrated" if config.get("calibration") else "the network's own"
    prior = ""
    if config.get("prevalence") and metrics["task"] == "binary":
        prior = f"""
model.probabilities(logits, prevalence=[0.9, 0.1])  # where 10 % have {metrics["positive_class"]}"""
    return f"""## Use

Probabilities and raw logits:

```python
from transformers import AutoImageProcessor, AutoModel

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoImageProcessor.from_pretrained("{name}", trust_remote_code=True)
inputs = processor("chest.png", return_tensors="pt")
logits = model(**inputs).logits  # raw
model.probabilities(logits)  # {kind}, in the order of model.config.id2label{prior}
heatmaps = model.explain(**inputs).heatmaps  # float (B, H, W) in [0, 1]
model.assess([processor.open("chest.dcm")], processor)  # decision and warnings, or a refusal
```

The same probabilities by name, through a pipeline:

```python
from transformers import pipeline

pipeline("image-classification", model="{name}", trust_remote_code=True)("chest.png")
```

In the browser, from the folder of the Space:

```sh
MODEL_ID={name} python app.py
```"""


def _data(dataset: dict, facts: dict) -> str:
    splits = dataset["splits"]
    classes = list(next(iter(splits.values()))["classes"])
    header = ["Split", "Images", "Unique images", "Patients", *classes]
    rows = []
    for split, counts in splits.items():
        row = [split, *(str(counts[key]) for key in ("images", "unique_images", "patients"))]
        for name in classes:
            count, known = counts["classes"][name], counts.get("known", {}).get(name)
            if known is None or known == counts["images"]:
                row.append(f"{count} ({count / counts['images']:.1%})")
            else:
                row.append(
                    f"{count} ({count / known:.1%} of {known} known)" if known else "unknown"
                )
        rows.append(row)
    parts = [
        "## Data",
        source_of_data(facts),
        f"{escape(dataset['name'])} (source `{dataset['source']}`), images and prevalence of each "
        "class:",
        table(header, rows),
        "No patient id and no identical file is in two splits: training stops where its leak check "
        "finds one.",
    ]
    if noticed := dataset.get("warnings"):
        counts = [f"{kind}: {count:,}" for kind, count in noticed.items()]
        parts += ["What the reader noticed in these images, and how many:", items(counts).strip()]
    return "\n\n".join(parts)


def _protocol(config: dict, arguments: dict, splits: dict[str, dict]) -> str:
    fitted = ""
    if config.get("calibration"):
        altered = arguments.get("operation_variant")
        images = f"its images altered by `{altered}`" if altered else "it"
        fitted = f"Calibration, decision thresholds and abstention were fitted on {images}. "
    epoch = "The epoch was chosen on the validation split."
    if arguments.get("keep") == "last":
        epoch = "The last epoch was kept, whatever it gave on the validation split."
    test = "The run left the test split alone."
    if "test" in splits:
        test = "The run scored the test split at its end, and chose nothing by it."
    return f"""## Protocol

{epoch} {fitted}{test} The image processor saved with the \
model does all preprocessing, in training as in use. Intervals are 95 % intervals of a bootstrap \
of {splits["validation"]["num_resamples"]:,} resamples of patients."""


def _training(arguments: dict, metrics: dict) -> str:
    rows = [[f"`{key}`", _plain(value)] for key, value in arguments.items()]
    device = f" on {metrics['device']}" if "device" in metrics else ""
    start = ""
    if pretrained := arguments.get("pretrained"):
        whose = "timm's" if pretrained is True else f"`{pretrained}`:"
        start = f" Training began with {whose} ImageNet weights of `{arguments['model']}`."
    kept = "last" if arguments.get("keep") == "last" else "best on validation AUROC"
    return f"""## Training, hardware and time

{metrics["num_parameters"]:,} parameters, {metrics["train_seconds"] / 60:.1f} minutes{device}; \
the weights are those of epoch {metrics["best_epoch"]}, the {kept}.{start}

{arguments_of(rows)}"""


def _results(splits: dict[str, dict], subgroups: list[dict]) -> str:
    *_, last = splits.values()
    binary = last["task"] == "binary"
    header = ["Metric", *(split.capitalize() for split in splits)]
    rows = [
        [title, *(str(metrics[key]) for metrics in splits.values())]
        for title, key in (("Images", "n"), ("Patients", "patients"))
    ]
    notes = Notes()
    for key, title in METRIC_NAMES.items():
        # Of more classes, the mean over them; the accuracy of the one decision has no mean.
        own = binary or key == "accuracy"
        shown = [split if own else split.get("macro", split) for split in splits.values()]
        if key in shown[-1]:
            title += "" if own else " (macro)"
            rows.append([title, *(notes.cell(metrics.get(key)) for metrics in shown)])
    if binary:
        for title, key, point in fixed_points(last):
            fixed = (metrics.get(key, {}).get(point) for metrics in splits.values())
            rows.append([title, *map(notes.cell, fixed)])
    files = " and ".join(f"`predictions_{split}.csv`" for split in splits)
    parts = [
        "## Results",
        table(header, rows, notes=notes),
        f"Value and 95 % interval, at the decision rule above. {files} hold every logit, so that "
        "all of it can be computed again. The validation column is optimistic, as choices were "
        f"made on that split. {ECE_REMARK}",
    ]
    if not binary:
        notes = Notes()
        keys = ("auroc", "auprc", "f1", "sensitivity", "specificity")
        titles = [METRIC_NAMES[key] for key in keys]
        header = [f"Class ({last['split']})", "Images", "Prevalence", *titles]
        rows = [
            [
                name,
                str(entry["n"]),
                "-" if entry["prevalence"] is None else f"{entry['prevalence']:.3f}",
                *(notes.cell(entry[key]) for key in keys),
            ]
            for name, entry in last["classes"].items()
        ]
        parts.insert(2, table(header, rows, notes=notes))
        groups = [group for group in subgroups if "classes" in group]
        parts[3:3] = classes_by_subgroup(last["split"].capitalize(), groups)
    return "\n\n".join(parts)


def _figures(run_dir: Path, names: list[str]) -> str:
    found = [
        f"![{escape(figure_title(path.stem))}](figures/{path.name})"
        for path in sorted((run_dir / "figures").glob("*.png"))
    ]
    return "\n\n".join(["## Figures", *found, *names_in_figures(names)]) if found else ""


def _calibration(config: dict, metrics: dict, validation: dict) -> str:
    calibration = config.get("calibration")
    names, task = validation["class_names"], validation["task"]
    rows = [
        ["Calibration", describe_calibration(calibration)],
        ["Decision", describe_thresholds(config.get("thresholds"), names, task)],
        ["Abstention", describe_abstention(config.get("abstention"), names, task)],
    ]
    if config.get("prevalence"):
        rows.append(["Share in validation", shares(config["prevalence"], names, task)])
    parts = ["## Calibration and thresholds", table(["What", "How"], rows, left=2)]
    if calibration and "log_loss" in calibration:
        losses = ", ".join(f"{name} {loss:.4f}" for name, loss in calibration["log_loss"].items())
        parts.append(
            f"Cross-validated log loss of the candidates on {calibration['n']:,} validation "
            f"images: {losses}."
        )
    raw, test = metrics.get("uncalibrated_test"), metrics.get("test")
    if raw and test:
        header = ["Test", "Before calibration", "After"]
        pairs = [("", raw, test)]
        if task != "binary":
            pairs = [(f"{name}: ", raw["classes"][name], test["classes"][name]) for name in names]
        notes = Notes()
        rows = [
            [f"{prefix}{METRIC_NAMES[key]}", notes.cell(before[key]), notes.cell(after[key])]
            for prefix, before, after in pairs
            for key in CALIBRATED_METRICS
            if key in before and key in after
        ]
        parts.append(table(header, rows, notes=notes))
    return "\n\n".join(parts)


def _evidence(evidence: list[dict], test: dict | None) -> str:
    if not evidence:
        return ""
    header = ["Images", "n", "Patients", *(METRIC_NAMES[key] for key in EVIDENCE_METRICS)]
    rows, lines, notes = [], [], Notes()
    own = [{**test, "name": "test split", "metrics": test}] if test else []
    for item in [*own, *evidence]:
        cells = [notes.cell(item["metrics"].get(key)) for key in EVIDENCE_METRICS]
        rows.append([item["name"], f"{item['n']:,}", f"{item['patients']:,}", *cells])
    for item in evidence:
        fall = _fall(item["metrics"].get("auroc"), test["auroc"]) if test else ""
        text = " ".join(sentence for sentence in (fall, item.get("note", "")) if sentence)
        lines += [f"{item['name']}: {text}"] if text else []
    parts = [
        "## External validation and shortcuts",
        "The model as it stands, nothing fitted again, on other data and on altered images:",
        table(header, rows, notes=notes),
        items(lines).strip(),
    ]
    return "\n\n".join(part for part in parts if part)


def _fall(found: dict | None, test: dict) -> str:
    """A sentence where the AUROC is below that of the test split, else ""."""
    if not found or found["value"] is None or test["value"] is None:
        return ""
    fall = test["value"] - found["value"]
    if fall <= 0:
        return ""
    text = f"AUROC falls by {fall:.3f}, from {test['value']:.3f} to {found['value']:.3f}"
    if found.get("high") is None or test.get("low") is None:
        return f"{text}."
    apart = found["high"] < test["low"]
    return f"{text}; the two intervals {'do not overlap' if apart else 'overlap'}."


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)
