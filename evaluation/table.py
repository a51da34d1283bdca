"""Result table of runs, from their files: `python -m evaluation.table RUN [RUN ...]`."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from evaluation.metrics import format_metric
from evaluation.predictions import write_text

HEADER = [
    "Model",
    "Parameters",
    "AUROC [95 % CI]",
    "Accuracy",
    "Sensitivity",
    "Specificity",
    "n",
    "Training (s)",
]


def results_table(run_dirs: Sequence[str | Path]) -> str:
    """Markdown table of the runs' test metrics, a row a run, named by its folder.

    "-" stands for what a run's task does not have or its files do not say.

    Raises:
        ValueError: a run without metrics.json, or without test metrics in it.
    """
    return markdown_table(HEADER, [_row(Path(run_dir)) for run_dir in run_dirs])


def replace_block(path: str | Path, name: str, text: str) -> None:
    """Put `text` between the lines `<!-- results:NAME:start -->` and `<!-- results:NAME:end -->`.

    Raises:
        ValueError: not exactly one such pair of lines, in that order.
        OSError: the file cannot be read or written.
    """
    content = Path(path).read_text(encoding="utf-8")
    start, end = (f"<!-- results:{name}:{place} -->" for place in ("start", "end"))
    if content.count(start) != 1 or content.count(end) != 1:
        raise ValueError(f"{path} needs one line {start} and one line {end} around its results.")
    before, rest = content.split(start)
    if end not in rest:
        raise ValueError(f"{path} has {end} before {start}; swap the two lines.")
    after = rest.split(end)[1]
    write_text(path, f"{before}{start}\n{text}\n{end}{after}")


def read_json(
    path: Path, keys: tuple[str, ...], writer: str = "train.py", many: bool = False
) -> dict | list[dict]:
    """The object in a JSON file, or its list of objects where there are `many`.

    Raises:
        ValueError: not a JSON object (or a list of them), or one lacks a key of `keys`; the
            sentence says that `writer` writes such files.
        OSError: the file cannot be read.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    if many and not isinstance(content, list):
        raise ValueError(f"{path} holds a JSON {type(content).__name__}; a list is needed.")
    for entry in content if many else [content]:
        if not isinstance(entry, dict):
            raise ValueError(f"{path} holds a JSON {type(entry).__name__}; an object is needed.")
        missing = [key for key in keys if key not in entry]
        if missing:
            raise ValueError(f"{path} lacks {', '.join(missing)}; {writer} writes such files.")
    return content


def markdown_table(header: list[str], rows: list[list[str]], left: int = 1) -> str:
    """A Markdown table padded for a terminal; all but the first `left` columns align right."""
    header, *rows = (
        [cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in [header, *rows]
    )
    widths = [max(3, *(len(row[i]) for row in [header, *rows])) for i in range(len(header))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    lines = [
        " | ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in [header, rule, *rows]
    ]
    return "\n".join(f"| {line} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prints the table, or writes it into a README's block."""
    parser = argparse.ArgumentParser(prog="python -m evaluation.table", description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folder with a metrics.json")
    parser.add_argument("--readme", help="write into this file's block instead of the terminal")
    parser.add_argument("--block", default="main", help="NAME of the block (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        table = results_table(options.runs)
        if options.readme is None:
            print(table)
        else:
            replace_block(options.readme, options.block, table)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")


def _row(run_dir: Path) -> list[str]:
    if not (run_dir / "metrics.json").is_file():
        raise ValueError(
            f"{run_dir} has no metrics.json; give a folder that train.py has finished."
        )
    metrics = read_json(run_dir / "metrics.json", ("test", "num_parameters"))
    test = metrics["test"]
    row = [run_dir.resolve().name, f"{metrics['num_parameters']:,}", format_metric(test["auroc"])]
    for key in ("accuracy", "sensitivity", "specificity"):
        row.append(format_metric({**test[key], "low": None}) if key in test else "-")
    seconds = metrics.get("train_seconds")
    return [*row, str(test["n"]), "-" if seconds is None else f"{seconds:.0f}"]


if __name__ == "__main__":
    main()
