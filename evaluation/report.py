"""A report folder's files as one page: `report.html`, which needs nothing else, and `report.md`."""

import base64
import itertools
import re
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evaluation.predictions import write_text
from evaluation.report_blocks import Gallery, Picture, Section, Table
from evaluation.report_sections import build_sections, lead
from evaluation.table import markdown_table, read_json
from evaluation.wording import NOTICE, escape_markdown

MIME_TYPES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
MODEL_KEYS = ("id", "weights_sha256", "num_parameters", "operation", "metrics", "uncalibrated")
CASE_KEYS = ("kind", "image_id", "truth", "probabilities", "images")
DATASET_KEYS = ("name", "source", "split", "n", "patients", "classes", "fingerprint")
MAX_SVG_BYTES = 500_000  # beyond it, a figure of many points is smaller as PNG


def write_report(folder: str | Path) -> None:
    """Write `report.html` and `report.md` into a report folder, from the files in it.

    Read are metrics.json and, where they are, gallery.json with its images and the figures/ (SVG
    before PNG; a figure is placed by the words in its name, and none is left out). Sections without
    input are left out. The page embeds every image, runs no script and asks for nothing outside it.

    Raises:
        ValueError: a file that is not JSON or lacks a key, or an image of an unknown type.
        OSError: a file is missing, or the report cannot be written.
    """
    folder = Path(folder)
    report = read_json(
        folder / "metrics.json", ("title", "command", "dataset", "models"), "validate.py"
    )
    _require(report["dataset"], DATASET_KEYS, "dataset", folder)
    if not report["models"]:
        raise ValueError(f"{folder / 'metrics.json'} has no model; validate.py writes one or more.")
    for name, model in report["models"].items():
        _require(model, MODEL_KEYS, f"model {name!r}", folder)
    gallery = []
    # Results that are passed on may leave the X-rays out.
    if (folder / "gallery.json").is_file() and (folder / "gallery").is_dir():
        gallery = read_json(folder / "gallery.json", CASE_KEYS, "validate.py", many=True)
    sections = build_sections(report, gallery, _figures(folder))
    html = _render_html(folder, report, sections)
    markdown = _render_markdown(report, sections)
    write_text(folder / "report.html", html)
    write_text(folder / "report.md", markdown)


def _require(content: dict, keys: tuple[str, ...], what: str, folder: Path) -> None:
    missing = [key for key in keys if key not in content]
    if missing:
        raise ValueError(f"{folder / 'metrics.json'}: {what} lacks {', '.join(missing)}.")


def _figures(folder: Path) -> dict[str, str]:
    """Name of each figure: its file below `folder`."""
    paths = {path.stem: path for path in sorted((folder / "figures").glob("*.png"))}
    for path in sorted((folder / "figures").glob("*.svg")):
        if path.stem not in paths or path.stat().st_size <= MAX_SVG_BYTES:
            paths[path.stem] = path
    return {stem: paths[stem].relative_to(folder).as_posix() for stem in sorted(paths)}


def _render_html(folder: Path, report: dict, sections: list[Section]) -> str:
    def data_uri(file: str) -> str:
        path = folder / file
        if path.suffix.lower() not in MIME_TYPES:
            raise ValueError(f"{path} is no image of a type in {', '.join(MIME_TYPES)}.")
        content = base64.b64encode(path.read_bytes()).decode("ascii")
        return f"data:{MIME_TYPES[path.suffix.lower()]};base64,{content}"

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"data_uri": data_uri, "groups": _groups, "tied": _tied}
    return environment.get_template("report.html.jinja").render(
        title=report["title"], lead=lead(report), notice=NOTICE, sections=sections
    )


def _groups(blocks: list) -> list[tuple[str, list]]:
    """Runs of blocks of one kind: neighbouring pictures share a grid."""
    runs = itertools.groupby(blocks, lambda block: getattr(block, "kind", "text"))
    return [(kind, list(run)) for kind, run in runs]


def _tied(text: str) -> str:
    """Intervals that no line break divides."""
    return re.sub(r"(\[[^\[\]\s]+,) (?=[^\[\]\s]+\])", "\\1\N{NO-BREAK SPACE}", text)


def _render_markdown(report: dict, sections: list[Section]) -> str:
    parts = [
        f"# {escape_markdown(report['title'])}",
        escape_markdown(lead(report)),
        f"**{NOTICE}**",
    ]
    for section in sections:
        parts.append(f"## {section.title}")
        for block in section.blocks:
            parts += _markdown_parts(block)
    return "\n\n".join(parts) + "\n"


def _markdown_parts(block: object) -> list[str]:
    if isinstance(block, str):
        return [escape_markdown(block)]
    if isinstance(block, Table):
        header, *rows = ([escape_markdown(cell) for cell in r] for r in [block.header, *block.rows])
        left = len(header) if block.words else 1
        notes = ["  \n".join(escape_markdown(note) for note in block.notes)] if block.notes else []
        caption = f"**{escape_markdown(block.caption)}**"
        return [caption, markdown_table(header, rows, left), *notes]
    if isinstance(block, Picture):
        title, alt = escape_markdown(block.title), escape_markdown(block.alt)
        images = [f"![{alt}]({quote(file)})" for file in block.files]
        lines = [f"- {escape_markdown(line)}" for line in block.lines]
        return [f"**{title}**", *images, *(["\n".join(lines)] if lines else [])]
    if isinstance(block, Gallery):
        parts = [_markdown_parts(picture) for picture in block.pictures]
        return [f"### {escape_markdown(block.title)}", *itertools.chain(*parts)]
    # The fence is longer than any run of backticks in what it holds.
    fence = "```"
    while fence in block.text:
        fence += "`"
    return [f"{fence}sh\n{block.text}\n{fence}"]
