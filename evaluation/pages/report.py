"""The report of a folder's files: `report.md`, and `report.html` made of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from evaluation.bootstrap import MAX_UNDEFINED_SHARE
from evaluation.metrics import METRIC_NAMES, format_metric
from evaluation.pages.gallery import gallery, names_in_figures, place_figures
from evaluation.pages.html import render_page
from evaluation.pages.markdown import Notes, code, escape, table
from evaluation.pages.wording import (
    ECE_REMARK,
    NOTICE,
    describe_abstention,
    describe_calibration,
    describe_thresholds,
    difference,
    fixed_points,
    listed,
    p_value,
    plain,
    shares,
)
from evaluation.predictions import write_text
from evaluation.saliency import MEASURES
from evaluation.table import read_json

MODEL_KEYS = ("id", "weights_sha256", "num_parameters", "operation", "metrics", "uncalibrated")
CASE_KEYS = ("kind", "image_id", "truth", "probabilities", "images")
DATASET_KEYS = ("name", "source", "split", "n", "patients", "classes", "fingerprint")
CLASS_COLUMNS = ("source", "view", "age", "sex")  # broken down class by class, too
MAX_SVG_BYTES = 500_000  # beyond it, a figure of many points is smaller as PNG
AVERAGES = {
    "macro": "Mean over the classes (macro)",
    "micro": "All pairs of image and class together (micro)",
}
PRIOR_NAMES = {
    "validation": "validation's share, as calibrated",
    "true": "the split's own share",
    "em": "estimated by EM",
}
PROBABILITY_METRICS = ("brier", "ece", "ece_mass", "log_loss")


def write_report(folder: str | Path) -> None:
    """Write `report.html` and `report.md` into a report folder, from the files in it.

    Read are metrics.json and, where they are, gallery.json with its images and the figures/ (SVG
    before PNG; a figure is placed by the words in its name, and none is left out). Sections without
    input are left out. The page embeds every image, runs no script and asks for nothing outside it.

    Raises:
        ValueError: a file that is not JSON or lacks a key, or an image of an unknown type.
        OSError: a file is missing, or the report cannot be written.
    """
    folder = Path(folder)
    report = read_json(
        folder / "metrics.json", ("title", "command", "dataset", "models"), "validate.py"
    )
    _require(report["dataset"], DATASET_KEYS, "dataset", folder)
    if not report["models"]:
        raise ValueError(f"{folder / 'metrics.json'} has no model; validate.py writes one or more.")
    for name, model in report["models"].items():
        _require(model, MODEL_KEYS, f"model {name!r}", folder)
    cases = []
    # Results that are passed on may leave the X-rays out.
    if (folder / "gallery.json").is_file() and (folder / "gallery").is_dir():
        cases = read_json(folder / "gallery.json", CASE_KEYS, "validate.py", many=True)
    markdown = _markdown(report, cases, _figures(folder))
    html = render_page(markdown, folder)
    write_text(folder / "report.html", html)
    write_text(folder / "report.md", markdown)


def _require(content: dict, keys: tuple[str, ...], what: str, folder: Path) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{folder / 'metrics.json'}: {what} lacks {', '.join(missing)}.")


def _figures(folder: Path) -> dict[str, str]:
    """Name of each figure: its file below `folder`."""
    paths = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    for path in sorted((folder / "figures").glob("*.svg")):
        if path.stem not in paths or path.stat().st_size <= MAX_SVG_BYTES:
            paths[path.stem] = path
    return {stem: paths[stem].relative_to(folder).as_posix() for stem in sorted(paths)}


def _markdown(report: dict, cases: Sequence[dict], figures: dict[str, str]) -> str:
    """The page, sections without input left out.

    Args:
        report: metrics.json of a report folder.
        cases: gallery.json, empty where there is none.
        figures: name (a word in it tells the section) and file of each; all appear, once.
    """
    data = report["dataset"]
    variant = f", variant {data['variant']}" if data.get("variant") else ""
    lead = (
        f"{listed(report['models'])} on the split {data['split']} of {data['name']}{variant}: "
        f"{data['n']:,} images of {data['patients']:,} patients, {_class_counts(data)}."
    )
    pictures = place_figures(figures, f"{data['name']}, split {data['split']}")
    sections = [
        ("results", "Results", _results(report)),
        ("comparison", "Comparison", _comparison(report)),
        ("discrimination", "ROC, precision and recall", []),
        ("confusion", "Confusion matrices", _confusion(report)),
        ("calibration", "Calibration", _calibration(report)),
        ("operation", "Operating point", _operating_point(report)),
        ("abstention", "Abstention", _abstention(report)),
        ("subgroups", "Subgroups", _subgroups(report)),
        ("saliency", "Where the models look", _saliency(report)),
        ("errors", "Errors and doubtful cases", gallery(cases)),
        ("figures", "Further figures", []),
        ("validated", "What was validated", _validated(report)),
        ("recompute", "Compute it again", _recompute(report, bool(cases))),
    ]
    parts = [f"# {escape(report['title'])}", escape(lead), f"**{NOTICE}**"]
    for name, title, content in sections:
        content = content + pictures.get(name, [])
        parts += [f"## {title}", *content] if content else []
    return "\n\n".join(parts) + "\n"


def _validated(report: dict) -> list[str]:
    data, models = report["dataset"], report["models"]
    facts = [["Data set", data["name"]], ["Source", data["source"]], ["Split", data["split"]]]
    facts += [["Variant", data["variant"]]] if data.get("variant") else []
    facts += [["Images", f"{data['n']:,}"], ["Patients", f"{data['patients']:,}"]]
    facts += [["Images of each class", _class_counts(data)], ["Fingerprint", data["fingerprint"]]]
    rows = [
        [title, *(_fact(model.get(key)) for model in models.values())]
        for title, key in (
            ("Model", "id"),
            ("SHA-256 of the weights", "weights_sha256"),
            ("Parameters", "num_parameters"),
        )
    ]
    fitted = [(model["operation"] or {}, model["metrics"]) for model in models.values()]
    rows.append(["Calibration", *(describe_calibration(o.get("calibration")) for o, _ in fitted)])
    for title, key, describe in (
        ("Decision", "thresholds", describe_thresholds),
        ("Abstention", "abstention", describe_abstention),
    ):
        cells = [describe(o.get(key), m["class_names"], m["task"]) for o, m in fitted]
        rows.append([title, *cells])
    prevalence = [
        shares(o["prevalence"], m["class_names"], m["task"]) if o.get("prevalence") else "unknown"
        for o, m in fitted
    ]
    rows.append(["Share of the classes in validation", *prevalence])
    metrics = fitted[0][1]
    fixed = [
        "Calibration, decision thresholds and abstention were fitted on each model's validation "
        "images (altered ones where its training_args.json has an operation_variant) and left as "
        "they were."
    ] * any(operation for operation, _ in fitted)
    return [
        table(["Fact", "Value"], facts, left=2, caption="Data"),
        table(["Fact", *models], rows, left=1 + len(models), caption="Models"),
        *fixed,
        "Intervals are 95 % intervals of a bootstrap over patients "
        f"({metrics['num_resamples']:,} resamples, seed {metrics['seed']}).",
    ]


def _results(report: dict) -> list[str]:
    first = first_metrics(report)
    metrics = {name: model["metrics"] for name, model in report["models"].items()}
    binary = first["task"] == "binary"
    subject = f", {first['positive_class']} being the positive class" if binary else ""
    caption = f"Value and 95 % interval at each model's operating point{subject}"
    blocks = _side_by_side(caption, METRIC_NAMES, metrics)
    for group, caption in AVERAGES.items():
        means = {name: own[group] for name, own in metrics.items() if group in own}
        blocks += _side_by_side(caption, METRIC_NAMES, means)
    if not binary:
        keys = ("auroc", "auprc", "f1", "sensitivity", "specificity", "ppv", "npv")
        columns = [Column("Images", "n"), Column("Prevalence", "prevalence")]
        columns += [Column(METRIC_NAMES[key], key) for key in keys]
        blocks += tables_by_class(report, "Each class against the rest", columns)
    names = [*report["models"], *first["class_names"]]
    return [*blocks, ECE_REMARK, *names_in_figures(names)]


def _side_by_side(caption: str, titles: dict[str, str], models: dict[str, dict]) -> list[str]:
    """A row a title whose entry any model has, a column a model; nothing without rows."""
    notes = Notes()
    rows = [
        [title, *(notes.cell(entries.get(key)) for entries in models.values())]
        for key, title in titles.items()
        if any(key in entries for entries in models.values())
    ]
    header = ["Metric", *models]
    return [table(header, rows, notes=notes, caption=caption)] if rows else []


def _comparison(report: dict) -> list[str]:
    blocks = []
    for pair in report.get("comparisons", []):
        a, b = pair["a"], pair["b"]
        notes, rows = Notes(), []
        tested = pair.get("classes", {"": pair})
        blocks += [escape(_delong_sentence(a, b, name, part)) for name, part in tested.items()]
        differences = {name: part["differences"] for name, part in tested.items()}
        averages = {plain(group): pair[group] for group in AVERAGES if group in pair}
        for name, found in {**averages, **differences}.items():
            entries = {METRIC_NAMES[key]: found[key] for key in METRIC_NAMES if key in found}
            entries |= {title: found[key][point] for title, key, point in fixed_points(found)}
            for title, entry in entries.items():
                title = f"{name}: {title}" if name else title
                rows.append([title, notes.cell(entry, signed=True)])
        caption = (
            f"Paired differences, {a} minus {b}, on the same {pair['n']:,} images of "
            f"{pair['patients']:,} patients [95 % interval]"
        )
        blocks.append(table(["Metric", "Difference"], rows, notes=notes, caption=caption))
    if len(report.get("comparisons", [])) > 1:
        blocks.append("The p-values are not corrected for the number of comparisons.")
    if blocks:
        blocks.append(
            "Two trained models are compared here, not two architectures: for those, several seeds "
            "of each are needed."
        )
    return blocks


def _delong_sentence(a: str, b: str, name: str, part: dict) -> str:
    delong, clustered = part["delong"], part.get("delong_clustered", {})
    what = f"AUROC of {name}" if name else "AUROC"
    if delong.get("difference") is None:
        reason = delong.get("reason", "both models order the images alike")
        return f"DeLong's test of {a} against {b} ({what}) is undefined: {reason}."
    size = difference({**delong, "value": delong["difference"]})
    text = f"{what}, {a} minus {b}: {size}"
    if delong.get("p") is None:
        return f"{text}; DeLong's test is undefined: {delong.get('reason', 'no variance')}."
    text += f" (DeLong, z = {delong['z']:.2f}, {p_value(delong['p'])}"
    if clustered.get("p") is not None:
        text += f"; with the images of a patient taken together, {p_value(clustered['p'])}"
    text += ")"
    if max(delong["p"], clustered.get("p") or 0) >= 0.05:
        return f"{text}; these images do not tell the two models apart."
    better = a if delong["difference"] > 0 else b
    return f"{text}; {better} ranks these images better."


def _confusion(report: dict) -> list[str]:
    models = report["models"]
    if first_metrics(report)["task"] == "multi_class":
        blocks = []
        for name, model in models.items():
            metrics = model["metrics"]
            names, counts = metrics["class_names"], metrics["confusion_matrix"]
            rows = [[truth, *map(str, row)] for truth, row in zip(names, counts)]
            header = ["True class", *(f"decided {k}" for k in names)]
            blocks.append(table(header, rows, caption=f"{name}: images"))
        return blocks
    cells = {"tp": "True positive", "fn": "False negative", "fp": "False positive"}
    cells["tn"] = "True negative"
    columns = [Column(title, key) for key, title in cells.items()]
    return tables_by_class(report, "Images by truth and decision", columns)


def _calibration(report: dict) -> list[str]:
    binary = first_metrics(report)["task"] == "binary"
    keys = PROBABILITY_METRICS if binary else ("brier", "ece")
    columns = []
    calibrated = any((m["operation"] or {}).get("calibration") for m in report["models"].values())
    for key in keys:
        if any(key in metrics for metrics in class_metrics(first_metrics(report)).values()):
            if calibrated:
                title = f"{METRIC_NAMES[key]}, before"
                columns.append(Column(title, key, source="uncalibrated"))
            after = f"{METRIC_NAMES[key]}, after" if calibrated else METRIC_NAMES[key]
            columns.append(Column(after, key))
    caption = "Before (raw logits) and after calibration" if calibrated else "As the network gives"
    blocks = tables_by_class(report, caption, columns)
    if not calibrated:
        blocks.append("No calibration was fitted; the probabilities are the network's own.")
    for name, model in report["models"].items():
        before, after = (model[key].get("log_loss") for key in ("uncalibrated", "metrics"))
        if before and after and after["value"] > before["value"]:
            blocks.append(
                f"The calibration of {escape(name)} does harm here: the log loss rises from "
                f"{before['value']:.3f} to {after['value']:.3f}. A calibration holds on images "
                "like those that it was fitted on."
            )
    notes, rows = Notes(), []
    for name, model in report["models"].items():
        metrics = model["metrics"]
        for prior, entry in (model.get("prevalence") or {}).items():
            text = shares(entry["prevalence"], metrics["class_names"], metrics["task"])
            cells = [notes.cell(entry.get(key)) for key in ("accuracy", "ece")]
            rows.append([name, PRIOR_NAMES.get(prior, prior), text, *cells])
    if rows:
        caption = "Probabilities moved to another share of the classes (prior correction)"
        header = ["Model", "Share taken", "Assumed", "Accuracy", "ECE"]
        blocks.append(table(header, rows, notes=notes, caption=caption))
        blocks.append(
            "Prior correction weighs each class's probability by its assumed share over its share "
            "in validation; EM estimates the share from the scores alone (Saerens et al. "
            "2002), and is wrong where more than the share has changed. All rows decide at p = 0.5."
        )
    return blocks


def _operating_point(report: dict) -> list[str]:
    first = first_metrics(report)
    columns = []
    if any((m["operation"] or {}).get("thresholds") for m in report["models"].values()):
        for key in ("sensitivity", "specificity"):
            title = METRIC_NAMES[key]
            columns.append(Column(f"{title}, raw at 0.5", key, source="uncalibrated"))
            columns.append(Column(f"{title}, operating point", key))
    points = fixed_points(next(iter(class_metrics(first).values())))
    columns += [Column(*point) for point in points]
    return tables_by_class(report, "At the operating point and at fixed points", columns)


def _abstention(report: dict) -> list[str]:
    found = {name: m["abstention"] for name, m in report["models"].items() if m.get("abstention")}
    caption = "On the images that are decided, those inside the abstention band left out"
    return _side_by_side(caption, {"coverage": "Decided images", **METRIC_NAMES}, found)


def _subgroups(report: dict) -> list[str]:
    blocks = []
    for name, model in report["models"].items():
        groups = model.get("subgroups") or []
        keys = list(dict.fromkeys(key for group in groups for key in group["metrics"]))
        titles = [METRIC_NAMES[key] for key in keys]
        notes, rows, gap_notes, gaps = Notes(), [], Notes(), []
        for group in groups:
            remark = f"against {group['against']}" if "against" in group else ""
            cells = [
                notes.cell(group["metrics"].get(key), remark=remark if key == "auroc" else "")
                for key in keys
            ]
            rows.append([_label(group), f"{group['n']:,}", f"{group['patients']:,}", *cells])
            if gap := group.get("gap"):
                cells = [gap_notes.cell(gap["metrics"].get(key), signed=True) for key in keys]
                gaps.append([f"{_label(group)}, minus {gap['against']}", *cells])
        if rows:
            mean = "" if first_metrics(report)["task"] == "binary" else ", mean over the classes"
            header = ["Subgroup", "Images", "Patients", *titles]
            blocks.append(table(header, rows, notes=notes, caption=f"{name} by subgroup{mean}"))
        if gaps:
            mean = f"{mean} that both have" if mean else ""
            caption = f"{name}: gap to the largest group of each kind{mean} [95 % interval]"
            blocks.append(table(["Gap", *titles], gaps, notes=gap_notes, caption=caption))
        blocks += classes_by_subgroup(name, [group for group in groups if "classes" in group])
    return blocks


def classes_by_subgroup(name: str, groups: list[dict]) -> list[str]:
    """A table a column of `CLASS_COLUMNS`: the AUROC of each class in each group."""
    blocks = []
    for column in CLASS_COLUMNS:
        found = [group for group in groups if group["column"] == column]
        if not found:
            continue
        rows = []
        for k in found[0]["classes"]:
            rows.append([k])
            for entry in (group["classes"][k] for group in found):
                present = round((entry["prevalence"] or 0) * entry["n"])
                known = entry["n"] > 0
                rows[-1].append(f"{present:,} of {entry['n']:,}" if known else "unknown")
                rows[-1].append(format_metric(entry["auroc"]) if known else "-")
        header = ["Class"]
        for group in found:
            header += [f"{group['value']}: images", "AUROC"]
        caption = f"{name}: each class by {column}, images that have it and AUROC"
        blocks.append(table(header, rows, caption=caption))
    if blocks:
        blocks.append(
            "An AUROC is undefined without images of both kinds, and has no interval where more "
            f"than {MAX_UNDEFINED_SHARE:.0%} of the resamples leave it so."
        )
    return blocks


def _label(group: dict) -> str:
    return f"{plain(group['column'])}: {group['value'] or 'unknown'}"


def _saliency(report: dict) -> list[str]:
    found = {name: m["saliency"] for name, m in report["models"].items() if m.get("saliency")}
    caption = "Grad-CAM heatmaps, mean over the images where a measure is defined [95 % interval]"
    blocks = _side_by_side(caption, MEASURES, found)
    if "energy_gain" in next(iter(found.values()), {}):
        blocks.append(
            "A heatmap that knows nothing of the image has as much energy inside the lungs as they "
            "have area, so 0 beyond it."
        )
    for pair in report.get("saliency_comparisons", []):
        notes = Notes()
        rows = [
            [title, notes.cell(pair[key], signed=True)]
            for key, title in MEASURES.items()
            if key in pair
        ]
        caption = f"{pair['a']} minus {pair['b']}, image by image [95 % interval]"
        blocks.append(table(["Measure", "Difference"], rows, notes=notes, caption=caption))
        if "energy_in_lungs" in pair:
            text = _saliency_sentence(pair["a"], pair["b"], pair["energy_in_lungs"])
            blocks.append(escape(text))
    return blocks


def _saliency_sentence(a: str, b: str, entry: dict) -> str:
    text = f"Does {a} look at the lungs more than {b}?"
    if entry["value"] is None or entry.get("low") is None:
        return f"{text} There is no interval to say so: {entry.get('reason', 'none was drawn')}."
    size = f"the share of its heatmap inside them differs by {difference(entry)}"
    if entry["low"] <= 0 <= entry["high"]:
        return f"{text} These images do not tell: {size}."
    return f"{text} {'Yes' if entry['value'] > 0 else 'No, less'}: {size}."


def _recompute(report: dict, has_gallery: bool) -> list[str]:
    text = (
        "predictions.csv holds the truth and the logits of every image, context.json what was "
        "fitted on validation. Metrics, intervals, comparisons and curves follow from these two:"
    )
    blocks = [text, code("python validate.py --rescore predictions.csv --output_dir rescored")]
    if not has_gallery:
        blocks.append("There is no gallery of errors: it needs the images and the models.")
    return [*blocks, "This report was made by:", code(report["command"])]


def _class_counts(data: dict) -> str:
    known = data.get("known", {})
    texts = []
    for name, count in data["classes"].items():
        n = known.get(name, data["n"])
        share = f"{count / n:.1%}" if n else "all unknown"
        texts.append(f"{count:,} {name} ({share}{f' of {n:,} known' if 0 < n < data['n'] else ''})")
    return ", ".join(texts)


def _fact(value: str | int | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else value


class Column(NamedTuple):
    """A number of a class's metrics: `key`, at `point` of it; `source` is a key of the model."""

    title: str
    key: str
    point: str | None = None
    source: str = "metrics"

    def cell(self, model: dict, name: str, notes: Notes) -> str:
        """The number of the class `name` as text, from a model's entry in metrics.json."""
        entry = class_metrics(model[self.source])[name].get(self.key)
        if self.point is not None and entry is not None:
            entry = entry.get(self.point)
        if isinstance(entry, float):
            return f"{entry:.3f}"
        return f"{entry:,}" if isinstance(entry, int) else notes.cell(entry)


def tables_by_class(report: dict, caption: str, columns: Sequence[Column]) -> list[str]:
    """Two classes: one table, a column a model. Else a table a model, its classes as rows."""
    models, first = report["models"], first_metrics(report)
    if not columns:
        return []
    if first["task"] == "binary":
        notes = Notes()
        rows = [
            [
                column.title,
                *(column.cell(model, first["positive_class"], notes) for model in models.values()),
            ]
            for column in columns
        ]
        return [table(["Metric", *models], rows, notes=notes, caption=caption)]
    tables = []
    for title, model in models.items():
        notes = Notes()
        rows = [
            [name, *(column.cell(model, name, notes) for column in columns)]
            for name in class_metrics(model["metrics"])
        ]
        header = ["Class", *(column.title for column in columns)]
        tables.append(table(header, rows, notes=notes, caption=f"{title}: {caption}"))
    return tables


def first_metrics(report: dict) -> dict:
    """The first model's metrics, for what all models share: the task and its classes."""
    return next(iter(report["models"].values()))["metrics"]


def class_metrics(metrics: dict) -> dict[str, dict]:
    """The metrics of each class against the rest; in a binary task, of the positive one alone."""
    if metrics["task"] == "binary":
        return {metrics["positive_class"]: metrics}
    return metrics["classes"]
