"""Markdown as one HTML page that needs nothing else: no script, no link, its images inside.

What Markdown has no word for is told by neighbours: a bold paragraph over a table is its caption,
over an image its title; a paragraph that begins with "Note" under a table is a footnote; a list
under an image belongs to it.
"""

import base64
import re
from html import escape
from pathlib import Path
from urllib.parse import unquote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from markdown_it.tree import SyntaxTreeNode

MIME_TYPES = {
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
}
MARKDOWN = MarkdownIt("js-default")  # it takes no raw HTML


def render_page(markdown: str, folder: Path) -> str:
    """The page of a Markdown text that begins with a heading of level 1.

    Args:
        markdown: a heading of level 2 begins a section; the first bold paragraph is the notice.
        folder: what the paths of images are relative to.

    Raises:
        ValueError: an image of an unknown type.
        OSError: an image cannot be read.
    """
    title, *blocks = SyntaxTreeNode(MARKDOWN.parse(markdown)).children
    starts = [k for k, block in enumerate(blocks) if block.tag == "h2"]
    sections = []
    for start, end in zip(starts, [*starts[1:], len(blocks)]):
        heading = _inner(blocks[start])
        name = re.sub(r"\W+", "-", heading.lower()).strip("-")
        sections.append((name, heading, _layout(blocks[start + 1 : end], folder)))
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined
    )
    lead = _layout(blocks[: starts[0] if starts else None], folder)
    # Whatever is put in is HTML already.
    return environment.get_template("page.html.jinja").render(
        title=_inner(title), lead=lead, sections=sections
    )


def _layout(blocks: list[SyntaxTreeNode], folder: Path) -> str:
    """HTML of some blocks, those that belong together in one element."""
    parts, figures = [], []
    place = 0

    def close() -> None:
        if figures:
            parts.append(f'<div class="pictures">\n{"".join(figures)}</div>')
            figures.clear()

    while place < len(blocks):
        block, *following = blocks[place : place + 3]
        under = following[0] if following else None
        place += 1
        if _is_bold(block) and under is not None and _is_images(under):
            lines = following[1] if [b.type for b in following[1:]] == ["bullet_list"] else None
            figures.append(_figure(block, under, lines, folder))
            place += 1 if lines is None else 2
            continue
        close()
        if _is_bold(block) and under is not None and under.type == "table":
            parts.append(_table(under, _text(block)))
            place += 1
        elif _is_bold(block):
            parts.append(f'<p class="notice" role="note">{_inner(block)}</p>')
        elif place > 1 and blocks[place - 2].type == "table" and _text(block).startswith("Note "):
            parts.append(f'<p class="note">{_inner(block)}</p>')
        else:
            parts.append(_html(block))
    close()
    return "\n".join(parts)


def _figure(
    title: SyntaxTreeNode, images: SyntaxTreeNode, lines: SyntaxTreeNode | None, folder: Path
) -> str:
    for image in images.children[0].children:
        if image.type == "image":
            image.attrs["src"] = _data_uri(folder / unquote(str(image.attrs["src"])))
    caption = escape(_text(title)) if lines is None else f"{_inner(title)}\n{_html(lines)}"
    return f"""\
<figure class="{"plot" if lines is None else "case"}">
{_inner(images)}
<figcaption>{caption}</figcaption>
</figure>
"""


def _table(table: SyntaxTreeNode, caption: str) -> str:
    (header, *_), *bodies = (part.children for part in table.children)
    words = not any("style" in cell.attrs for cell in header.children)
    rows = ["".join(f'<th scope="col">{_inner(cell)}</th>' for cell in header.children)]
    for first, *rest in (row.children for body in bodies for row in body):
        cells = (f"<td>{_tied(_inner(cell))}</td>" for cell in rest)
        rows.append(f'<th scope="row">{_inner(first)}</th>{"".join(cells)}')
    head, *body = (f"<tr>{row}</tr>" for row in rows)
    caption = escape(caption)
    return f"""\
<div class="scroll{" words" if words else ""}" role="region" aria-label="{caption}" tabindex="0">
<table>
<caption><span>{caption}</span></caption>
<thead>{head}</thead>
<tbody>
{chr(10).join(body)}
</tbody>
</table>
</div>"""


def _tied(html: str) -> str:
    """Intervals that no line break divides."""
    return re.sub(r"(\[[^\[\]\s]+,) (?=[^\[\]\s]+\])", "\\1\N{NO-BREAK SPACE}", html)


def _data_uri(path: Path) -> str:
    if path.suffix.lower() not in MIME_TYPES:
        raise ValueError(f"{path} is no image of a type in {', '.join(MIME_TYPES)}.")
    content = base64.b64encode(path.read_bytes()).decode("ascii")
    return f"data:{MIME_TYPES[path.suffix.lower()]};base64,{content}"


def _is_bold(block: SyntaxTreeNode) -> bool:
    return _kinds(block) == {"strong"}


def _is_images(block: SyntaxTreeNode) -> bool:
    kinds = _kinds(block)
    return "image" in kinds and kinds <= {"image", "softbreak"}


def _kinds(block: SyntaxTreeNode) -> set[str]:
    """What a paragraph holds, empty text aside."""
    nodes = block.children[0].children if block.type == "paragraph" else []
    return {node.type for node in nodes if node.type != "text" or node.content}


def _html(block: SyntaxTreeNode) -> str:
    return MARKDOWN.renderer.render(block.to_tokens(), MARKDOWN.options, {}).strip()


def _inner(block: SyntaxTreeNode) -> str:
    """HTML of what is inside a heading, a paragraph or a cell."""
    return "".join(map(_html, block.children))


def _text(block: SyntaxTreeNode) -> str:
    """The plain text of a paragraph."""
    return "".join(node.content for node in block.walk() if node.type in ("text", "code_inline"))
