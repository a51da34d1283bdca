"""Operating points of one class: its threshold and its abstention band, chosen on validation.

Both are cuts through sorted scores. A cut lies midway, in log-odds, between two neighbouring scores
and never on one, so that rounding decides no image.
"""

import numpy as np

RULES = ("youden", "f1", "sensitivity")
# A model's probabilities are float32, which rounds to 1 beyond.
MAX_LOG_ODDS = 16.0


def choose_threshold(
    positive: np.ndarray, log_odds: np.ndarray, rule: str = "youden", target: float = 0.95
) -> float:
    """The threshold that a rule finds best; an image is decided positive at or above it.

    "youden" takes the largest sensitivity + specificity - 1 (Youden 1950), "f1" the largest F1, and
    "sensitivity" the largest specificity among thresholds whose sensitivity is at least `target`.
    Of equally good thresholds it is the one in the widest gap between neighbouring scores, which
    another sample is least likely to move. Calling all images positive, or none, are choices too:
    these thresholds lie one log-odds beyond the extreme scores.

    Args:
        positive: bool (N,), with and without the class.
        log_odds: float (N,), finite.
        rule: one of `RULES`.
        target: least sensitivity, in (0, 1]; for the rule "sensitivity".

    Returns:
        A probability in [0, 1].

    Raises:
        ValueError: an unknown rule, a target out of range, or only one kind of image.
    """
    if rule not in RULES:
        raise ValueError(f"rule is {rule!r}; it can be {', '.join(RULES)}.")
    if not 0 < target <= 1:
        raise ValueError(f"target is {target}; a sensitivity to reach lies in (0, 1].")
    if positive.all() or not positive.any():
        kind = "with" if positive.all() else "without"
        raise ValueError(
            f"all {len(positive)} images are {kind} the class; a threshold needs both."
        )
    scores, index = np.unique(-log_odds, return_inverse=True)
    tp, fp = (
        np.append(0, np.bincount(index, weights=group).cumsum()) for group in (positive, ~positive)
    )
    sensitivity, specificity = tp / tp[-1], 1 - fp / fp[-1]
    middles = -(scores[1:] + scores[:-1]) / 2
    cuts = np.concatenate([[1 - scores[0]], middles, [-scores[-1] - 1]])
    gaps = np.concatenate([[0], np.diff(scores), [0]])
    if rule == "youden":
        worth = sensitivity + specificity
    elif rule == "f1":
        worth = 2 * tp / (tp + fp + tp[-1])
    else:
        # Of equal specificity the larger sensitivity costs nothing; it weighs less than one image.
        worth = specificity + sensitivity / (2 * fp[-1])
        worth[sensitivity < target - 1e-12] = -1
    best = np.lexsort((gaps, worth.round(12)))[-1]
    return float(_sigmoid(np.clip(cuts[best], -MAX_LOG_ODDS, MAX_LOG_ODDS)))


def abstention_band(log_odds: np.ndarray, threshold: float, share: float) -> list[float] | None:
    """The band around a threshold in which a model abstains.

    It reaches equally far, in log-odds, to both sides of the threshold, and holds as many of the
    images as `share` allows; where equal scores stand against the exact share, it holds less.

    Args:
        log_odds: float (N,), finite.
        threshold: a probability in (0, 1).
        share: of the images, in [0, 1).

    Returns:
        [low, high], probabilities, or None for a share of 0.

    Raises:
        ValueError: a threshold or share out of range.
    """
    if not 0 < threshold < 1:
        raise ValueError(f"threshold is {threshold}; a band lies around a probability in (0, 1).")
    if not 0 <= share < 1:
        raise ValueError(f"abstain_share is {share}; a share of the images lies in [0, 1).")
    if share == 0:
        return None
    centre = np.log(threshold) - np.log1p(-threshold)
    distances, counts = np.unique(np.abs(log_odds - centre), return_counts=True)
    held = np.searchsorted(counts.cumsum(), share * len(log_odds) + 1e-9, side="right")
    inner = distances[held - 1] if held else 0.0
    reach = (inner + distances[held]) / 2
    return _sigmoid(np.array([centre - reach, centre + reach])).tolist()


def _sigmoid(log_odds: np.ndarray | np.float64) -> np.ndarray | np.float64:
    return np.exp(-np.logaddexp(0, -log_odds))
