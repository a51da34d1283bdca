"""Pictures of a page: figures by the words in their names, and cases under their heatmaps."""

from collections.abc import Sequence

from evaluation.figures.style import printable
from evaluation.pages.markdown import escape, picture
from evaluation.pages.wording import listed, percent, plain

# A figure belongs where a word of its file name is known; the title is that of the longest stem.
# The section of a figure, and its title, by what its file's name begins with.
FIGURES = {
    "confusion_matrix": ("confusion", "Confusion matrix"),
    "roc": ("discrimination", "ROC curve"),
    "pr": ("discrimination", "Precision-recall curve"),
    "scores": ("discrimination", "Scores by class"),
    "reliability": ("calibration", "Reliability diagram"),
    "threshold_sweep": ("operation", "Metrics as the threshold moves"),
    "decision_curve": ("operation", "Decision curve (net benefit)"),
    "forest": ("subgroups", "Forest plot"),
    "saliency_randomisation": ("saliency", "Heatmaps as layers are randomised"),
    "training_curves": ("figures", "Training curves"),
}
CASE_TITLES = {
    "confident mistake": "Most confident mistakes",
    "least certain": "Least certain cases",
}


def place_figures(figures: dict[str, str], subject: str) -> dict[str, list[str]]:
    """Figures by the id of their section, "figures" for those that no section knows.

    Args:
        figures: name and file of each.
        subject: what they show, for the alternative text.
    """
    placed = {}
    for stem, file in figures.items():
        section, _ = FIGURES.get(_kind(stem), ("figures", ""))
        title = figure_title(stem)
        placed.setdefault(section, []).append(picture(title, [file], f"{title}; {subject}"))
    return placed


def figure_title(stem: str) -> str:
    """What a figure's file name says, in words."""
    kind = _kind(stem)
    if kind is None:
        return plain(stem)
    rest = stem[len(kind) :].strip("_")
    return FIGURES[kind][1] + (f": {rest}" if rest else "")


def _kind(stem: str) -> str | None:
    return next((kind for kind in FIGURES if stem == kind or stem.startswith(f"{kind}_")), None)


def names_in_figures(names: Sequence[str]) -> list[str]:
    """A paragraph on the names that figures write in other letters, or nothing."""
    pairs = [f"{printable(name)} for {name}" for name in names if printable(name) != name]
    return [escape(f"Figures write {listed(pairs)}.")] if pairs else []


def gallery(cases: Sequence[dict]) -> list[str]:
    """The cases of gallery.json, by kind."""
    kinds = {}
    for case in cases:
        lines = [f"Truth: {case['truth']}"]
        for name, probabilities in case["probabilities"].items():
            top = sorted(probabilities.items(), key=lambda pair: -pair[1])[:3]
            text = ", ".join(f"{label} {percent(p)}" for label, p in top)
            lines.append(f"{name}: {text}" + (" (wrong)" if name in case.get("wrong", ()) else ""))
        models = listed(case["probabilities"])
        alt = f"X-ray {case['image_id']} and the Grad-CAM heatmaps of {models}"
        shown = picture(case["image_id"], case["images"], alt, lines)
        kinds.setdefault(case["kind"], []).append(shown)
    return [
        part
        for kind, found in kinds.items()
        for part in (f"### {escape(CASE_TITLES.get(kind, plain(kind)))}", *found)
    ]
