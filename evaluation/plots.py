"""Figures of a run, from its files alone: PNG and SVG in one style, colour-blind safe, for print.

Figures of several models take `models`, name -> predictions of one task; the others one model's
predictions. Each draws binary, multi-class and multi-label tasks, except the threshold sweep: a
multi-class decision has no threshold.
"""

from evaluation.plots_curves import plot_pr, plot_roc
from evaluation.plots_decisions import (
    plot_confusion_matrix,
    plot_decision_curve,
    plot_threshold_sweep,
)
from evaluation.plots_forest import plot_forest
from evaluation.plots_probability import plot_reliability, plot_scores
from evaluation.plots_training import plot_training_curves

__all__ = [
    "plot_confusion_matrix",
    "plot_decision_curve",
    "plot_forest",
    "plot_pr",
    "plot_reliability",
    "plot_roc",
    "plot_scores",
    "plot_threshold_sweep",
    "plot_training_curves",
]
