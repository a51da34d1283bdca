"""The blocks of a report (tables, pictures, code), and how metrics and figures become them.

Blocks carry plain text; `evaluation.report` escapes it and lays it out, once for each format.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple

from evaluation.wording import Notes

# A figure belongs where a word of its file name is known; the title is that of the longest stem.
FIGURE_WORDS = {
    "confusion": {"confusion"},
    "discrimination": {"roc", "pr", "recall", "score", "scores"},
    "calibration": {"reliability", "calibration"},
    "operation": {"threshold", "thresholds", "decision"},
    "abstention": {"abstention", "coverage"},
    "subgroups": {"forest", "subgroups"},
    "saliency": {"saliency", "deletion", "insertion", "lungs", "cam", "randomisation"},
}
FIGURE_TITLES = {
    "confusion_matrix": "Confusion matrix",
    "roc": "ROC curve",
    "roc_curve": "ROC curve",
    "pr": "Precision-recall curve",
    "pr_curve": "Precision-recall curve",
    "precision_recall": "Precision-recall curve",
    "reliability": "Reliability diagram",
    "score_distribution": "Scores by class",
    "score_distributions": "Scores by class",
    "scores": "Scores by class",
    "threshold_sweep": "Metrics as the threshold moves",
    "decision_curve": "Decision curve (net benefit)",
    "forest": "Forest plot",
    "training_curves": "Training curves",
}


@dataclass(frozen=True)
class Table:
    """The first column heads its rows; `words` are cells of prose rather than of numbers."""

    kind: ClassVar[str] = "table"
    caption: str
    header: list[str]
    rows: list[list[str]]
    notes: list[str] = field(default_factory=list)
    words: bool = False


@dataclass(frozen=True)
class Picture:
    """`files` are paths below the report folder; `alt` is for those who cannot see them."""

    kind: ClassVar[str] = "picture"
    title: str
    files: list[str]
    alt: str
    lines: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Gallery:
    kind: ClassVar[str] = "gallery"
    title: str
    pictures: list[Picture]


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Section:
    id: str
    title: str
    blocks: list


class Column(NamedTuple):
    """A number of a class's metrics: `key`, at `point` of it; `source` is a key of the model."""

    title: str
    key: str
    point: str | None = None
    source: str = "metrics"

    def cell(self, model: dict, name: str, notes: Notes) -> str:
        entry = class_metrics(model[self.source])[name].get(self.key)
        if self.point is not None and entry is not None:
            entry = entry.get(self.point)
        return f"{entry:,}" if isinstance(entry, int) else notes.cell(entry)


def tables_by_class(report: dict, caption: str, columns: Sequence[Column]) -> list[Table]:
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
        return [Table(caption, ["Metric", *models], rows, notes.lines)]
    tables = []
    for title, model in models.items():
        notes = Notes()
        rows = [
            [name, *(column.cell(model, name, notes) for column in columns)]
            for name in class_metrics(model["metrics"])
        ]
        header = ["Class", *(column.title for column in columns)]
        tables.append(Table(f"{title}: {caption}", header, rows, notes.lines))
    return tables


def place_figures(figures: dict[str, str], subject: str) -> dict[str, list[Picture]]:
    """Figures by the id of their section, "figures" for those that no section knows.

    Args:
        figures: name and file of each.
        subject: what they show, for the alternative text.
    """
    placed = {}
    for stem, file in figures.items():
        words = set(stem.lower().replace("-", "_").split("_"))
        section = next((s for s, known in FIGURE_WORDS.items() if known & words), "figures")
        title = figure_title(stem)
        picture = Picture(title, [file], f"{title}; {subject}")
        placed.setdefault(section, []).append(picture)
    return placed


def figure_title(stem: str) -> str:
    known = [name for name in FIGURE_TITLES if stem == name or stem.startswith(f"{name}_")]
    if not known:
        return plain(stem)
    name = max(known, key=len)
    rest = stem[len(name) :].strip("_")
    return FIGURE_TITLES[name] + (f": {rest}" if rest else "")


def first_metrics(report: dict) -> dict:
    return next(iter(report["models"].values()))["metrics"]


def class_metrics(metrics: dict) -> dict[str, dict]:
    if metrics["task"] == "binary":
        return {metrics["positive_class"]: metrics}
    return metrics["classes"]


def plain(key: str) -> str:
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]
