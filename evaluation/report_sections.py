"""What a report says, from the content of its files: sections of text, tables and figures.

The blocks carry plain text; `evaluation.report` escapes and lays them out, once for each format.
"""

from collections.abc import Iterable, Sequence

from evaluation.metrics import METRIC_NAMES
from evaluation.report_blocks import (
    Code,
    Column,
    Gallery,
    Picture,
    Section,
    Table,
    class_metrics,
    first_metrics,
    place_figures,
    plain,
    tables_by_class,
)
from evaluation.saliency import MEASURES
from evaluation.wording import (
    ECE_REMARK,
    Notes,
    describe_abstention,
    describe_calibration,
    describe_thresholds,
    difference,
    fixed_points,
    p_value,
    percent,
    shares,
)

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


def build_sections(report: dict, gallery: Sequence[dict], figures: dict[str, str]) -> list[Section]:
    """The sections of a report, those without input left out.

    Args:
        report: metrics.json of a report folder.
        gallery: gallery.json, empty where there is none.
        figures: name (a word in it tells the section) and file of each; all appear, once.
    """
    data = report["dataset"]
    pictures = place_figures(figures, f"{data['name']}, split {data['split']}")
    parts = [
        ("validated", "What was validated", _validated(report)),
        ("results", "Results", _results(report)),
        ("comparison", "Comparison", _comparison(report)),
        ("confusion", "Confusion matrices", _confusion(report)),
        ("discrimination", "ROC, precision and recall", []),
        ("calibration", "Calibration", _calibration(report)),
        ("operation", "Operating point", _operating_point(report)),
        ("abstention", "Abstention", _abstention(report)),
        ("subgroups", "Subgroups", _subgroups(report)),
        ("saliency", "Where the models look", _saliency(report)),
        ("errors", "Errors and doubtful cases", _gallery(gallery)),
        ("figures", "Further figures", []),
        ("recompute", "Compute it again", _recompute(report, bool(gallery))),
    ]
    sections = [
        Section(name, title, blocks + pictures.get(name, [])) for name, title, blocks in parts
    ]
    return [section for section in sections if section.blocks]


def lead(report: dict) -> str:
    """One sentence: which models, on what."""
    data = report["dataset"]
    variant = f", variant {data['variant']}" if data.get("variant") else ""
    return (
        f"{_listed(report['models'])} on the split {data['split']} of {data['name']}{variant}: "
        f"{data['n']:,} images of {data['patients']:,} patients, {_class_counts(data)}."
    )


def _validated(report: dict) -> list:
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
    return [
        Table("Data", ["Fact", "Value"], facts, words=True),
        Table("Models", ["Fact", *models], rows, words=True),
        "Calibration, decision thresholds and abstention were fitted on each model's validation "
        "images (altered ones where its training_args.json has an operation_variant) and left as "
        "they were. Intervals are 95 % intervals of a bootstrap over patients "
        f"({metrics['num_resamples']:,} resamples, seed {metrics['seed']}).",
    ]


def _results(report: dict) -> list:
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
        keys = ("auroc", "auprc", "sensitivity", "specificity", "ppv", "npv", "f1")
        columns = [Column(METRIC_NAMES[key], key) for key in keys]
        blocks += tables_by_class(report, "Each class against the rest", columns)
    return [*blocks, ECE_REMARK]


def _side_by_side(caption: str, titles: dict[str, str], models: dict[str, dict]) -> list[Table]:
    """A row a title whose entry any model has, a column a model; nothing without rows."""
    notes = Notes()
    rows = [
        [title, *(notes.cell(entries.get(key)) for entries in models.values())]
        for key, title in titles.items()
        if any(key in entries for entries in models.values())
    ]
    return [Table(caption, ["Metric", *models], rows, notes.lines)] if rows else []


def _comparison(report: dict) -> list:
    blocks = []
    for pair in report.get("comparisons", []):
        a, b = pair["a"], pair["b"]
        notes, rows = Notes(), []
        tested = pair.get("classes", {"": pair})
        blocks += [_delong_sentence(a, b, name, part) for name, part in tested.items()]
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
        blocks.append(Table(caption, ["Metric", "Difference"], rows, notes.lines))
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


def _confusion(report: dict) -> list:
    models = report["models"]
    if first_metrics(report)["task"] == "multi_class":
        blocks = []
        for name, model in models.items():
            metrics = model["metrics"]
            names, counts = metrics["class_names"], metrics["confusion_matrix"]
            rows = [[truth, *map(str, row)] for truth, row in zip(names, counts)]
            header = ["True class", *(f"decided {k}" for k in names)]
            blocks.append(Table(f"{name}: images", header, rows))
        return blocks
    cells = {"tp": "True positive", "fn": "False negative", "fp": "False positive"}
    cells["tn"] = "True negative"
    columns = [Column(title, key) for key, title in cells.items()]
    return tables_by_class(report, "Images by truth and decision", columns)


def _calibration(report: dict) -> list:
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
                f"The calibration of {name} does harm here: the log loss rises from "
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
        blocks.append(Table(caption, header, rows, notes.lines))
        blocks.append(
            "Prior correction weighs each class's probability by its assumed share over its share "
            "in validation; EM estimates the share from the scores alone (Saerens et al. "
            "2002), and is wrong where more than the share has changed. All rows decide at p = 0.5."
        )
    return blocks


def _operating_point(report: dict) -> list:
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


def _abstention(report: dict) -> list:
    found = {name: m["abstention"] for name, m in report["models"].items() if m.get("abstention")}
    caption = "On the images that are decided, those inside the abstention band left out"
    return _side_by_side(caption, {"coverage": "Decided images", **METRIC_NAMES}, found)


def _subgroups(report: dict) -> list:
    blocks = []
    for name, model in report["models"].items():
        groups = model.get("subgroups") or []
        keys = list(dict.fromkeys(key for group in groups for key in group["metrics"]))
        notes, rows = Notes(), []
        for group in groups:
            remark = f"against {group['against']}" if "against" in group else ""
            cells = [
                notes.cell(group["metrics"].get(key), remark=remark if key == "auroc" else "")
                for key in keys
            ]
            label = f"{plain(group['column'])}: {group['value'] or 'unknown'}"
            rows.append([label, f"{group['n']:,}", f"{group['patients']:,}", *cells])
        if rows:
            header = ["Subgroup", "Images", "Patients", *(METRIC_NAMES[key] for key in keys)]
            blocks.append(Table(f"{name} by subgroup", header, rows, notes.lines))
    return blocks


def _saliency(report: dict) -> list:
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
        blocks.append(Table(caption, ["Measure", "Difference"], rows, notes.lines))
        if "energy_in_lungs" in pair:
            blocks.append(_saliency_sentence(pair["a"], pair["b"], pair["energy_in_lungs"]))
    return blocks


def _saliency_sentence(a: str, b: str, entry: dict) -> str:
    text = f"Does {a} look at the lungs more than {b}?"
    if entry["value"] is None or entry.get("low") is None:
        return f"{text} There is no interval to say so: {entry.get('reason', 'none was drawn')}."
    size = f"the share of its heatmap inside them differs by {difference(entry)}"
    if entry["low"] <= 0 <= entry["high"]:
        return f"{text} These images do not tell: {size}."
    return f"{text} {'Yes' if entry['value'] > 0 else 'No, less'}: {size}."


def _gallery(gallery: Sequence[dict]) -> list:
    kinds = {}
    for case in gallery:
        lines = [f"Truth: {case['truth']}"]
        for name, probabilities in case["probabilities"].items():
            top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:3]
            text = ", ".join(f"{label} {percent(p)}" for label, p in top)
            lines.append(f"{name}: {text}" + (" (wrong)" if name in case.get("wrong", ()) else ""))
        models = _listed(case["probabilities"])
        alt = f"X-ray {case['image_id']} and the Grad-CAM heatmaps of {models}"
        picture = Picture(case["image_id"], case["images"], alt, lines)
        kinds.setdefault(case["kind"], []).append(picture)
    titles = {
        "confident mistake": "Most confident mistakes",
        "least certain": "Least certain cases",
    }
    return [Gallery(titles.get(kind, plain(kind)), found) for kind, found in kinds.items()]


def _recompute(report: dict, has_gallery: bool) -> list:
    text = (
        "predictions.csv holds the truth and the logits of every image, context.json what was "
        "fitted on validation. Metrics, intervals, comparisons and curves follow from these two:"
    )
    blocks = [text, Code("python validate.py --rescore predictions.csv --output_dir rescored")]
    if not has_gallery:
        blocks.append("There is no gallery of errors: it needs the images and the models.")
    return [*blocks, "This report was made by:", Code(report["command"])]


def _class_counts(data: dict) -> str:
    return ", ".join(f"{c:,} {name} ({c / data['n']:.1%})" for name, c in data["classes"].items())


def _fact(value: str | int | None) -> str:
    if value is None:
        return "unknown"
    return f"{value:,}" if isinstance(value, int) else value


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
