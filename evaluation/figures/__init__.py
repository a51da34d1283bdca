"""Figures of a run, from its files alone: PNG and SVG in one style, colour-blind safe, for print.

Figures of several models take `models`, name -> predictions of one task; the others one model's
predictions. Numbers with an interval are taken from `metrics`, none is computed here. Each draws
binary, multi-class and multi-label tasks, except the threshold sweep: a multi-class decision has no
threshold.
"""

from evaluation.figures.case import draw_case
from evaluation.figures.confusion_matrix import plot_confusion_matrix
from evaluation.figures.curves import plot_pr, plot_roc
from evaluation.figures.forest import plot_forest
from evaluation.figures.reliability import plot_reliability
from evaluation.figures.scores import plot_scores
from evaluation.figures.thresholds import plot_decision_curve, plot_threshold_sweep
from evaluation.figures.training_curves import plot_training_curves

__all__ = [
    "draw_case",
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
