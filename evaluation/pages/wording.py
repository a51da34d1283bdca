"""Words that the report and the model card share: numbers, shares, the operating point."""

from collections.abc import Iterable, Sequence

NOTICE = (
    "Research only, not a medical device. Do not use it for diagnosis, triage or any decision "
    "about a patient."
)
ECE_REMARK = (
    "The ECE errs upward in small samples; its interval is one of the true error, and may lie "
    "below the value."
)
POINTS = {
    "ppv_at_prevalence": "PPV where {:.0%} have it",
    "npv_at_prevalence": "NPV where {:.0%} have it",
    "sensitivity_at_specificity": "Sensitivity at specificity {:.2f}",
    "specificity_at_sensitivity": "Specificity at sensitivity {:.2f}",
}


def difference(entry: dict) -> str:
    """A paired difference as text: "+0.031 [+0.012, +0.050]"."""
    if entry["value"] is None:
        return "undefined"
    if entry.get("low") is None:
        return f"{entry['value']:+.3f}"
    return f"{entry['value']:+.3f} [{entry['low']:+.3f}, {entry['high']:+.3f}]"


def fixed_points(metrics: dict) -> list[tuple[str, str, str]]:
    """(title, key, point) of what a class's metrics hold at a stated prevalence or rate."""
    return [
        (title.format(float(point)), key, point)
        for key, title in POINTS.items()
        for point in metrics.get(key, {})
    ]


def percent(p: float) -> str:
    """A probability that no rounding makes certain."""
    if p > 0.9995:
        return "over 99.9%"
    return "under 0.1%" if p < 0.0005 else f"{p:.1%}"


def p_value(p: float) -> str:
    """A p-value as text, in thousandths."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def shares(values: Sequence[float], names: Sequence[str], task: str) -> str:
    """Prevalence of each class as text; of two classes, that of the positive one."""
    pairs = list(zip(names, values))
    return ", ".join(f"{name} {share:.1%}" for name, share in pairs[task == "binary" :])


def describe_calibration(calibration: dict | None) -> str:
    """How logits become probabilities, in a few words."""
    if calibration is None:
        return "none; the probabilities are the network's own"
    method = calibration["method"]
    if method == "temperature" and calibration["temperature"] == 1:
        return "temperature 1; the probabilities are the network's own, as no method did better"
    if method == "temperature":
        return f"temperature scaling, T = {calibration['temperature']:.3f}"
    if method == "platt" and len(calibration["scale"]) == 1:
        scale, bias = calibration["scale"][0], calibration["bias"][0]
        return f"Platt scaling, log-odds = {scale:.3f} z {bias:+.3f}"
    if method == "operating_point":
        return "each class's threshold scaled to a probability of 0.5"
    names = {"platt": "Platt scaling", "isotonic": "isotonic regression"}
    return f"{names.get(method, method)} of each class's log-odds"


def describe_thresholds(thresholds: Sequence[float] | None, names: Sequence[str], task: str) -> str:
    """The rule that turns probabilities into a decision, in a few words."""
    if thresholds is None and task == "multi_label":
        return "each class with a probability above 0.5"
    if thresholds is None:
        return "the class with the largest probability"
    decided = names[1:] if task == "binary" else names
    rules = [f"{threshold:.3f} for {name}" for name, threshold in zip(decided, thresholds)]
    return f"a probability of at least {', '.join(rules)}"


def describe_abstention(
    bands: Sequence[Sequence[float]] | None, names: Sequence[str], task: str
) -> str:
    """The band of probabilities in which the model should not decide, in a few words."""
    if bands is None:
        return "none"
    decided = {"binary": names[1:], "multi_class": ["the most probable class"]}.get(task, names)
    rules = [f"{low:.3f} to {high:.3f} for {name}" for name, (low, high) in zip(decided, bands)]
    return f"a probability of {', '.join(rules)}"


def listed(names: Iterable[str]) -> str:
    """Names as a part of a sentence."""
    *head, last = names
    return f"{', '.join(head)} and {last}" if head else last


def plain(key: str) -> str:
    """A key as the beginning of a title."""
    text = key.replace("_", " ")
    return text[:1].upper() + text[1:]
