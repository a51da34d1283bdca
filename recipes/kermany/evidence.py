"""Put the findings of reports on a model's card.

    python -m recipes.kermany.evidence MODEL REPORT...

A report belongs to the model where it has the name of the model's folder.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.pages.model_card import EVIDENCE_METRICS, write_model_card
from evaluation.predictions import write_text
from evaluation.table import read_json


def collect_evidence(model_dir: str | Path, reports: Sequence[str | Path]) -> list[dict]:
    """`{"name", "n", "patients", "metrics"}` of each report, as the card's section needs them.

    Raises:
        ValueError: a report without this model.
        OSError: a file is missing.
    """
    name, found = Path(model_dir).resolve().name, []
    for report in map(Path, reports):
        content = read_json(report / "metrics.json", ("dataset", "models"), "validate.py")
        if name not in content["models"]:
            raise ValueError(
                f"{report} has no model {name!r}; it has {', '.join(content['models'])}."
            )
        metrics = content["models"][name]["metrics"]
        found.append(
            {
                "name": report.resolve().name,
                "n": metrics["n"],
                "patients": metrics["patients"],
                "metrics": {key: metrics[key] for key in EVIDENCE_METRICS if key in metrics},
            }
        )
    return found


def card_id(model_dir: str | Path) -> str:
    """What a card calls a folder: its relative path, or its name, never a place on one machine."""
    path = Path(model_dir)
    return path.name if path.is_absolute() else path.as_posix()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model folder of train.py")
    parser.add_argument("reports", nargs="+", metavar="REPORT", help="folders of validate.py")
    options = parser.parse_args()
    try:
        evidence = collect_evidence(options.model, options.reports)
        write_text(Path(options.model) / "evidence.json", json.dumps(evidence, indent=2) + "\n")
        write_model_card(options.model, card_id(options.model))
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
