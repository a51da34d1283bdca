"""Take the best of several finished runs.

    python -m recipes.kermany.release RUN... --output_dir DIR

Best is the largest AUROC on the altered validation images that its operation was fitted on; no test
figure is looked at.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.pages.model_card import write_model_card
from evaluation.table import read_json
from recipes.kermany.evidence import card_id


def choose_run(runs: Sequence[str | Path]) -> Path:
    """The run with the largest AUROC on its altered validation images.

    Raises:
        ValueError: a run that was not trained with --operation_variant.
    """

    def score(run: Path) -> float:
        metrics = read_json(run / "metrics.json", ("validation",))
        if "operation" not in metrics:
            raise ValueError(f"{run} has no altered validation images; use --operation_variant.")
        return metrics["operation"]["auroc"]["value"]

    return max(map(Path, runs), key=score)


def release(runs: Sequence[str | Path], output_dir: str | Path) -> Path:
    """Copy the chosen run, without its training checkpoints, and write its card anew.

    What an earlier release left in `output_dir` is removed.

    Returns:
        The chosen run.

    Raises:
        ValueError: see `choose_run`; a folder there that holds no model, or is one of the runs.
        OSError: a file cannot be read or written.
    """
    chosen, output_dir = choose_run(runs), Path(output_dir)
    if output_dir.resolve() in [Path(run).resolve() for run in runs]:
        raise ValueError(f"{output_dir} is one of the runs; name another --output_dir.")
    if output_dir.exists() and not (output_dir / "config.json").is_file():
        raise ValueError(f"{output_dir} holds no model to replace; name another --output_dir.")
    if output_dir.exists():
        shutil.rmtree(output_dir)
    shutil.copytree(chosen, output_dir, ignore=shutil.ignore_patterns("checkpoints"))
    write_model_card(output_dir, card_id(output_dir))
    return chosen


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py finished")
    parser.add_argument("--output_dir", required=True, help="where the chosen one is copied to")
    options = parser.parse_args()
    try:
        print(f"{release(options.runs, options.output_dir)} is now {options.output_dir}")
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
