"""Evaluation from saved predictions: metrics, intervals, figures, result tables, model card."""
