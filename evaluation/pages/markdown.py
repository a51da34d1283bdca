"""Parts of a page: escaped text, tables with footnotes, pictures."""

import re
from collections.abc import Sequence
from urllib.parse import quote

from evaluation.metrics import format_metric
from evaluation.pages.wording import difference
from evaluation.table import markdown_table

# Underscores inside a word are no Markdown, brackets only where something follows that links.
_MARKUP = re.compile(r"([\\`*~]|\](?=[\[(:])|(?<![^\W_])_|_(?![^\W_]))")


class Notes:
    """Footnotes of one table: metrics as cells, and why one is undefined or has no interval."""

    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cell(self, entry: dict | None, signed: bool = False, remark: str = "") -> str:
        """An entry of `compute_metrics` as text, "-" for None; `signed` shows a difference."""
        if entry is None:
            return "-"
        text = difference(entry) if signed else format_metric({"low": None, **entry})
        if entry.get("reason"):
            missing = "" if entry["value"] is None else "no interval: "
            text += self._mark(f"{missing}{entry['reason']}")
        if entry.get("without"):
            text += self._mark(f"without {', '.join(entry['without'])}, which the images leave out")
        return text + self._mark(remark) if remark else text

    def _mark(self, reason: str) -> str:
        if reason not in self.reasons:
            self.reasons.append(reason)
        return f" (note {self.reasons.index(reason) + 1})"

    @property
    def lines(self) -> list[str]:
        """The footnotes, by the numbers that the cells name."""
        return [f"Note {k}: {reason}." for k, reason in enumerate(self.reasons, start=1)]


def escape(text: str) -> str:
    """`text` on one line, its markup shown instead of followed; `markdown_table` does the pipes."""
    text = " ".join(str(text).split()).replace("&", "&amp;").replace("<", "&lt;")
    return _MARKUP.sub(r"\\\1", text)


def table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: int = 1,
    notes: Notes | None = None,
    caption: str = "",
) -> str:
    """A table under its caption, above its footnotes.

    Args:
        header: plain text, a cell a column.
        rows: likewise.
        left: see `markdown_table`.
        notes: whose lines go under the table; None for no footnotes.
        caption: plain text; "" for none.
    """
    header, *rows = ([escape(cell) for cell in row] for row in [header, *rows])
    lines = "  \n".join(map(escape, notes.lines)) if notes else ""
    parts = [f"**{escape(caption)}**" if caption else "", markdown_table(header, rows, left), lines]
    return "\n\n".join(part for part in parts if part)


def picture(title: str, files: Sequence[str], alt: str, lines: Sequence[str] = ()) -> str:
    """Images under their title, above what there is to say of them.

    Args:
        title: plain text.
        files: paths relative to the page.
        alt: for those who cannot see them.
        lines: plain text, made a list.
    """
    images = [f"![{escape(alt)}]({quote(file)})" for file in files]
    items = "\n".join(f"- {escape(line)}" for line in lines)
    return "\n\n".join([f"**{escape(title)}**", "\n".join(images), *([items] if items else [])])


def code(text: str) -> str:
    """A block of shell commands; the fence is longer than any run of backticks in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}sh\n{text}\n{fence}"
