"""Calibration and prevalence: fitted on the validation split, applied to any other.

A model's operation is a dict ready for JSON, `{"calibration", "thresholds", "abstention",
"prevalence"}`, that goes as it is into the model's configuration. Calibration maps act on log-odds:
of class 1 in a binary task, of each class in a multi-label one; several exclusive classes share a
temperature. Thresholds and abstention bands are probabilities after calibration. What is fitted to
the labels of a class is fitted to the images for which it is known.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from scipy.optimize import minimize
from sklearn.isotonic import IsotonicRegression

from evaluation.operating_points import MAX_LOG_ODDS, abstention_band, choose_threshold
from evaluation.predictions import Predictions
from modeling.calibration_cxr import calibrate, check_operation, decide

NO_OPERATION = dict.fromkeys(("calibration", "thresholds", "abstention", "prevalence"))
NUM_FOLDS = 5
SEED = 0
# On separable data every likelihood grows without end with the steepness; this is where it stops.
MAX_SCALE = 10.0
# Log-odds gained per log-odds beyond the outer isotonic knots, enough to keep the order.
TAIL_SLOPE = 0.01
MIN_SHARE = 1e-6


def fit_operation(
    predictions: Predictions,
    rule: str = "youden",
    target: float = 0.95,
    abstain_share: float = 0.1,
) -> dict:
    """Everything that is fitted on validation and frozen into a model.

    Args:
        predictions: of the validation split, uncalibrated; its `thresholds` are left aside.
        rule: one of `operating_points.RULES`, see `choose_threshold`.
        target: least sensitivity, in (0, 1]; for the rule "sensitivity".
        abstain_share: share of the images to abstain from, see `operating_points.abstention_band`.

    Returns:
        `calibration`: see `fit_calibration`. `thresholds`: one value on class 1 (binary), one a
        class (multi-label), or None (more exclusive classes: the most probable is decided); 0.5 for
        a class that all images have, or none. `abstention`: [low, high] for each threshold, of all
        images, or None. `prevalence`: share of each of the K classes in the split, with half an
        image more of each where one is absent.

    Raises:
        ValueError: what `fit_calibration`, `choose_threshold` and `abstention_band` refuse.
    """
    calibration = fit_calibration(predictions)
    present, known = predictions.truth.sum(axis=0), predictions.known.sum(axis=0)
    if ((0 < present) & (present < known)).all():
        shares = present / known
    else:  # Bayes' rule needs odds to start from
        kinds = 2 if predictions.multi_label else len(present)
        shares = (present + 0.5) / (known + 0.5 * kinds)
    operation = {
        "calibration": calibration,
        "thresholds": None,
        "abstention": None,
        "prevalence": shares.tolist(),
    }
    if _is_multi_class(predictions):
        return operation
    log_odds = _reported(predictions, _calibrate(predictions, calibration).log_odds)
    truth, known = (_reported(predictions, of) for of in (predictions.truth, predictions.known))
    thresholds = [
        choose_threshold(y[there], z[there], rule, target) if len(np.unique(y[there])) == 2 else 0.5
        for y, z, there in zip(truth.T, log_odds.T, known.T)
    ]
    bands = [abstention_band(z, t, abstain_share) for z, t in zip(log_odds.T, thresholds)]
    return operation | {"thresholds": thresholds, "abstention": bands if abstain_share else None}


def fit_calibration(predictions: Predictions) -> dict:
    """The calibration with the least cross-validated log loss.

    The candidates are the identity, a temperature (Guo et al. 2017, section 4.2), a scale and bias
    (Platt 1999), and isotonic regression (Zadrozny and Elkan 2002) with one knot a block (centred
    isotonic regression, Oron and Flournoy 2017), linear between; several exclusive classes have the
    first two only. All are fitted to Platt's smoothed targets, (n_k + 1) / (n_k + K) for the true
    class and 1 / (n_k + K) for the others, so that separable images keep finite odds, and with
    scales from 0.1 to 10. The five folds keep a patient's images together. The identity wins a tie
    and is written as temperature 1; a class that is known nowhere has it as its map.

    Temperature and Platt keep the order of all images. The isotonic map is extended to the extreme
    scores of this split with a slope of 0.01, so that it keeps the order of all scores between
    them; images beyond are tied.

    Returns:
        `{"method": "temperature", "temperature": T}`, `{"method": "platt", "scale", "bias"}` or
        `{"method": "isotonic", "log_odds", "calibrated"}`, the lists with one entry a class that
        has a map. Further `n`, and `log_loss`: {candidate: cross-validated mean}.

    Raises:
        ValueError: no class that some images have and others lack; one patient only.
    """
    present, known = predictions.truth.sum(axis=0), predictions.known.sum(axis=0)
    if not ((0 < present) & (present < known)).any():
        kind = "no image" if 0 in present else "only images"
        name = predictions.class_names[np.argmin(present)]
        raise ValueError(
            f"split {predictions.split!r} has {kind} of {name}; calibration needs images with and "
            "without a class."
        )
    folds = _patient_folds(predictions)
    fits = {"identity": _identity, "temperature": _fit_temperature}
    if not _is_multi_class(predictions):
        fits |= {"platt": _fit_platt, "isotonic": _fit_isotonic}
    losses = {}
    for name, fit in fits.items():
        logits = np.empty_like(predictions.logits)
        for fold in range(folds.max() + 1):
            held_out = folds == fold
            calibration = fit(predictions.take(~held_out))
            logits[held_out] = _calibrate(predictions.take(held_out), calibration).logits
        losses[name] = _log_loss(replace(predictions, logits=logits))
    best = min(losses, key=losses.get)
    return {**fits[best](predictions), "n": len(predictions.labels), "log_loss": losses}


def apply_operation(predictions: Predictions, operation: dict) -> Predictions:
    """Calibrated predictions with the operation's thresholds.

    Returns:
        A copy whose logits are calibrated (in a binary task the columns 0 and the log-odds of
        class 1) and whose `thresholds` are set. Without a calibration the logits are unchanged.

    Raises:
        ValueError: a field is missing, or what `check_operation` of the models refuses.
    """
    missing = [name for name in NO_OPERATION if name not in operation]
    if missing:
        raise ValueError(
            f"the operation has no {missing[0]!r}; it holds {', '.join(NO_OPERATION)}."
        )
    known = {name: operation[name] for name in NO_OPERATION}
    check_operation(
        **known, num_labels=len(predictions.class_names), multi_label=predictions.multi_label
    )
    if operation["calibration"] is not None:
        predictions = _calibrate(predictions, operation["calibration"])
    thresholds = operation["thresholds"]
    return replace(predictions, thresholds=None if thresholds is None else tuple(thresholds))


def abstained(predictions: Predictions, operation: dict) -> np.ndarray:
    """Whether calibrated predictions lie in the band: bool (N,), or (N, K) when multi-label."""
    thresholds, bands = operation["thresholds"], operation["abstention"]
    return decide(predictions.probabilities, thresholds, bands, predictions.multi_label) == -1


def adjust_prevalence(
    predictions: Predictions, old: Sequence[float], new: Sequence[float]
) -> Predictions:
    """Calibrated predictions moved from one prevalence to another by Bayes' rule.

    Each class's probability is multiplied by new / old and all are renormalised (Saerens, Latinne
    and Decaestecker 2002, equation 2.4); a multi-label task moves the odds of each class. It holds
    where the images of a class look alike in both places. Thresholds stay as they are: a cut on the
    probability states the price of a miss against a false alarm (Elkan 2001), so that decisions
    follow the prevalence.

    Args:
        predictions: calibrated.
        old: share of each class where the predictions were calibrated, (K,), each in (0, 1); they
            add up to 1 unless the task is multi-label.
        new: the same where the images come from.

    Raises:
        ValueError: shares of another number, out of range, or that do not add up to 1.
    """
    old, new = _shares(predictions, old, "old"), _shares(predictions, new, "new")
    shift = np.log(new) - np.log(old)
    if predictions.multi_label:
        shift -= np.log1p(-new) - np.log1p(-old)
    return replace(predictions, logits=predictions.logits + shift)


def estimate_prevalence(predictions: Predictions, old: Sequence[float]) -> np.ndarray:
    """The prevalence among unlabelled images, by maximum likelihood.

    The EM algorithm of Saerens, Latinne and Decaestecker 2002, section 2.2, on calibrated
    probabilities; the labels are not used. It is right as far as the calibration is.

    Args:
        predictions: calibrated, of exclusive classes.
        old: share of each class where the predictions were calibrated, (K,).

    Returns:
        float64 (K,), adding up to 1; a share below 1e-6 is given as 1e-6, so that
        `adjust_prevalence` can take it.

    Raises:
        ValueError: a multi-label task, or what `adjust_prevalence` refuses.
    """
    if predictions.multi_label:
        raise ValueError("the prevalence is estimated for exclusive classes, not multi-label ones.")
    old = _shares(predictions, old, "old")
    ratios = predictions.probabilities / old
    estimate = old
    for _ in range(10_000):
        weighted = ratios * estimate
        update = (weighted / weighted.sum(axis=1, keepdims=True)).mean(axis=0)
        moved = np.abs(update - estimate).max()
        estimate = update
        if moved < 1e-9:
            break
    estimate = np.maximum(estimate, MIN_SHARE)
    return estimate / estimate.sum()


# --------------------------------------------------------------------------------------------- maps


def _identity(predictions: Predictions) -> dict:
    return {"method": "temperature", "temperature": 1.0}


def _fit_temperature(predictions: Predictions) -> dict:
    logits, labels = predictions.logits, predictions.labels
    if predictions.multi_label:  # every class of every image is a row of a binary task
        known = predictions.known
        logits = np.column_stack([np.zeros(known.sum()), logits[known]])
        labels = labels[known].astype(np.int64)
    targets = _smoothed_targets(labels, logits.shape[1])

    def slope(scale: float) -> float:
        """Derivative of the cross-entropy by 1 / T, in which it is convex."""
        scaled = scale * logits
        softmax = np.exp(scaled - np.logaddexp.reduce(scaled, axis=1, keepdims=True))
        return ((softmax - targets) * logits).sum()

    low, high = 1 / MAX_SCALE, MAX_SCALE
    for _ in range(60):  # halves the interval to the last bit
        middle = np.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return {"method": "temperature", "temperature": float(1 / np.sqrt(low * high))}


def _fit_platt(predictions: Predictions) -> dict:
    fitted = []
    for z, targets in _binary_tasks(predictions):
        if not len(z):
            fitted.append([1.0, 0.0])
            continue

        def objective(
            parameters: np.ndarray, z: np.ndarray = z, targets: np.ndarray = targets
        ) -> tuple[float, np.ndarray]:
            mapped = parameters[0] * z + parameters[1]
            error = np.exp(-np.logaddexp(0, -mapped)) - targets
            loss = np.logaddexp(0, mapped) - targets * mapped
            return loss.mean(), np.array([(error * z).mean(), error.mean()])

        bounds = [(1 / MAX_SCALE, MAX_SCALE), (None, None)]
        options = {"ftol": 1e-14, "gtol": 1e-9, "maxiter": 1000}
        found = minimize(
            objective, [1.0, 0.0], jac=True, method="L-BFGS-B", bounds=bounds, options=options
        )
        fitted.append(found.x)
    scale, bias = np.transpose(fitted).tolist()
    return {"method": "platt", "scale": scale, "bias": bias}


def _fit_isotonic(predictions: Predictions) -> dict:
    log_odds, calibrated = [], []
    for z, targets in _binary_tasks(predictions):
        if not len(z):
            for knots in (log_odds, calibrated):
                knots.append([-MAX_LOG_ODDS, MAX_LOG_ODDS])
            continue
        levels = IsotonicRegression().fit_transform(z, targets)
        values, block = np.unique(levels.round(12), return_inverse=True)
        knots = np.bincount(block, weights=z) / np.bincount(block)
        values = np.log(values) - np.log1p(-values)
        if z.min() < knots[0]:
            values = np.insert(values, 0, values[0] - TAIL_SLOPE * (knots[0] - z.min()))
            knots = np.insert(knots, 0, z.min())
        if z.max() > knots[-1]:
            values = np.append(values, values[-1] + TAIL_SLOPE * (z.max() - knots[-1]))
            knots = np.append(knots, z.max())
        log_odds.append(knots.tolist())
        calibrated.append(values.tolist())
    return {"method": "isotonic", "log_odds": log_odds, "calibrated": calibrated}


def _calibrate(predictions: Predictions, calibration: dict) -> Predictions:
    logits, multi_label = predictions.logits, predictions.multi_label
    if not multi_label and logits.shape[1] == 2:
        logits = np.column_stack([np.zeros(len(logits)), predictions.log_odds[:, 1]])
    return replace(predictions, logits=calibrate(logits, calibration, multi_label))


# -------------------------------------------------------------------------------------------- parts


def _is_multi_class(predictions: Predictions) -> bool:
    return not predictions.multi_label and len(predictions.class_names) > 2


def _reported(predictions: Predictions, columns: np.ndarray) -> np.ndarray:
    """The columns of the classes that have a map and a threshold: of a binary task, class 1's."""
    return columns if predictions.multi_label else columns[:, 1:]


def _binary_tasks(predictions: Predictions) -> list[tuple[np.ndarray, np.ndarray]]:
    """(log-odds, smoothed targets) of each class with a map, both float64 (M,), where known."""
    truth = _reported(predictions, predictions.truth).astype(np.int64)
    log_odds, known = (
        _reported(predictions, of) for of in (predictions.log_odds, predictions.known)
    )
    return [
        (z[there], _smoothed_targets(y[there], 2)[:, 1])
        for z, y, there in zip(log_odds.T, truth.T, known.T)
    ]


def _smoothed_targets(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """float64 (N, num_classes) of int (N,) class indices; see `fit_calibration`."""
    counts = np.bincount(labels, minlength=num_classes)[labels, None]
    return (counts * np.eye(num_classes)[labels] + 1) / (counts + num_classes)


def _log_loss(predictions: Predictions) -> float:
    if predictions.multi_label:
        signs = np.where(predictions.labels, -1, 1)
        return float(np.logaddexp(0, signs * predictions.logits)[predictions.known].mean())
    true = np.take_along_axis(predictions.logits, predictions.labels[:, None], axis=1)[:, 0]
    return float((np.logaddexp.reduce(predictions.logits, axis=1) - true).mean())


def _patient_folds(predictions: Predictions) -> np.ndarray:
    """int64 (N,): folds that hold each kind of patient alike, whatever the order of the rows."""
    patients, patient = np.unique(predictions.patient_id, return_inverse=True)
    if len(patients) < 2:
        raise ValueError(
            f"split {predictions.split!r} has one patient; calibration is cross-validated over "
            "patients and needs two or more."
        )
    shares = [np.bincount(patient, weights=y) / np.bincount(patient) for y in predictions.truth.T]
    drawn = np.random.default_rng(SEED).random(len(patients))
    fold = np.empty(len(patients), dtype=np.int64)
    fold[np.lexsort((drawn, *shares))] = np.arange(len(patients)) % NUM_FOLDS
    return fold[patient]


def _shares(predictions: Predictions, shares: Sequence[float], name: str) -> np.ndarray:
    """float64 (K,), checked; `name` is what the error calls them."""
    shares, num_classes = np.asarray(shares, dtype=np.float64), len(predictions.class_names)
    in_range = shares.shape == (num_classes,) and ((shares > 0) & (shares < 1)).all()
    if not in_range or not (predictions.multi_label or abs(shares.sum() - 1) < 1e-3):
        total = "" if predictions.multi_label else ", that add up to 1,"
        raise ValueError(
            f"the {name} prevalence is {shares.tolist()}; {num_classes} shares between 0 and 1"
            f"{total} are needed."
        )
    return shares
