"""Heads on embeddings: logistic regression, and the small network of CXR Foundation's notebooks."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import StratifiedGroupKFold
from torch import nn

from embedding.table import Embeddings

# Inverse strengths of the penalty to choose from, on vectors of unit deviation.
STRENGTHS = np.logspace(-5, 1, 7)
FOLDS = 5
WIDTHS = (512, 256)  # of the network: Sellergren et al. 2022
EPOCHS, BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 40, 64, 1e-3, 0.05

Head = Callable[[np.ndarray], np.ndarray]  # float32 (N, T, D) to logits, float64 (N, K)


def pooled(vectors: np.ndarray) -> np.ndarray:
    """The mean of each image's tokens, as CXR Foundation's notebooks take it: (N, D)."""
    return vectors.mean(axis=1)


class Linear:
    """Logits that are linear in the pooled vectors.

    Attributes:
        weight: float64 (K, D).
        bias: float64 (K,).
    """

    def __init__(self, weight: np.ndarray, bias: np.ndarray) -> None:
        self.weight, self.bias = weight, bias

    def __call__(self, vectors: np.ndarray) -> np.ndarray:
        """Logits, float64 (N, K)."""
        return pooled(vectors) @ self.weight.T + self.bias


def fit_logistic(train: Embeddings, names: list[str], multi_label: bool, seed: int) -> Linear:
    """A logistic regression; its penalty is the one of least log loss in folds apart by patient.

    Args:
        train: to learn from.
        names: of the classes.
        multi_label: a regression a class, each with a penalty of its own and without the images
            for which it is unknown; else one for all classes.
        seed: of the folds.

    Raises:
        ValueError: a class that no image, or every image, has.
    """
    vectors = pooled(train.vectors)
    mean, deviation = vectors.mean(0), vectors.std(0) + 1e-6
    scaled = (vectors - mean) / deviation
    if multi_label:
        rows = []
        for k, name in enumerate(names):
            known = ~train.unknown[:, k]
            truth = train.labels[known, k].astype(int)
            if len(np.unique(truth)) < 2:
                raise ValueError(f"{name} is in all or none of the {known.sum()} training images.")
            rows.append(_fit(scaled[known], truth, train.patient_id[known], seed))
        weight = np.stack([model.coef_[0] for model in rows])
        bias = np.array([model.intercept_[0] for model in rows])
    else:
        truth = train.labels.argmax(1)
        if absent := [name for k, name in enumerate(names) if not (truth == k).any()]:
            raise ValueError(f"no training image is of the class {absent[0]}.")
        model = _fit(scaled, truth, train.patient_id, seed)
        weight, bias = model.coef_, model.intercept_
        if len(names) == 2:  # one row, for class 1 against class 0
            weight, bias = np.vstack([0 * weight, weight]), np.append(0, bias)
    weight = weight / deviation
    return Linear(weight, bias - weight @ mean)


def _fit(vectors: np.ndarray, truth: np.ndarray, patients: np.ndarray, seed: int):  # noqa: ANN202
    fewest = min(len(np.unique(patients[truth == k])) for k in np.unique(truth))
    strength = STRENGTHS[0]
    if fewest > 1:
        folds = StratifiedGroupKFold(min(FOLDS, fewest), shuffle=True, random_state=seed)
        parts = list(folds.split(vectors, truth, patients))
        strength = min(STRENGTHS, key=lambda C: _loss(C, vectors, truth, parts))
    return LogisticRegression(C=strength, max_iter=1000).fit(vectors, truth)


def _loss(strength: float, vectors: np.ndarray, truth: np.ndarray, parts: list) -> float:
    """Mean log loss of the images left out, a fold at a time."""
    total, labels = 0.0, np.unique(truth)
    for learnt, left in parts:
        if len(np.unique(truth[learnt])) < len(labels):  # a class whose patients are all left out
            return np.inf
        model = LogisticRegression(C=strength, max_iter=1000).fit(vectors[learnt], truth[learnt])
        told = model.predict_proba(vectors[left])
        total += log_loss(truth[left], told, labels=labels) * len(left)
    return total / len(truth)


def fit_mlp(train: Embeddings, names: list[str], multi_label: bool, seed: int) -> Head:
    """Two hidden layers of 512 and 256 with batch normalisation.

    Args: see `fit_logistic`.

    Raises:
        ValueError: fewer images than a batch needs.
    """
    if len(train.vectors) < 2:
        raise ValueError(f"{len(train.vectors)} training image is too few; give two or more.")
    torch.manual_seed(seed)
    vectors = pooled(train.vectors)
    mean, deviation = vectors.mean(0), vectors.std(0) + 1e-6
    width, layers = vectors.shape[1], []
    for hidden in WIDTHS:
        layers += [nn.Linear(width, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)]
        width = hidden
    network = nn.Sequential(*layers, nn.Linear(width, len(names)))
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    vectors = torch.from_numpy((vectors - mean) / deviation)
    truth, known = torch.from_numpy(train.labels), torch.from_numpy(~train.unknown)
    batches = max(1, len(vectors) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, EPOCHS * batches)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(vectors)).tensor_split(batches):
            logits = network(vectors[batch])
            if multi_label:
                losses = F.binary_cross_entropy_with_logits(
                    logits, truth[batch].float(), reduction="none"
                )
                loss = losses[known[batch]].mean()
            else:
                loss = F.cross_entropy(logits, truth[batch].int().argmax(1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()

    @torch.no_grad()
    def head(vectors: np.ndarray) -> np.ndarray:
        scaled = torch.from_numpy((pooled(vectors) - mean) / deviation)
        return network(scaled).double().numpy()

    return head


HEADS = {"logistic": fit_logistic, "mlp": fit_mlp}
