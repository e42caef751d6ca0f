"""The rules that every lesson keeps, as functions from a notebook to a list of what is wrong with it.

Tests run them on every committed notebook, and on notebooks broken on purpose, so that a rule that no longer bites is
noticed. An empty list means that the rule is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

UNCOMPARED = "nbval-ignore-output"
MAX_LINES, SHORT_LINES, SHORT_SHARE = 15, 8, 0.7
MAX_BYTES = 3_000_000
LESSON_CELLS, LESSON_FIGURES = (40, 70), (6, 12)
ABSOLUTE = re.compile(
    r"(?<![\w.:/<])/(?:home|root|tmp|usr|opt|var|mnt|srv|work|Users|private|content)/[\w.-]|\b[A-Z]:\\\\?\w"
)
MARKDOWN_IMAGE = re.compile(r"!\[([^\]]*)\]\(")
BASE64 = re.compile(r"data:image/[a-z]+;base64,[A-Za-z0-9+/=]+")


def executed_in_order(notebook: Any) -> list[str]:
    """Code cells carry the execution counts 1, 2, 3, ...: run once, from top to bottom, in one kernel."""
    counts = [cell.execution_count for cell in code_cells(notebook)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts are {counts}"]


def no_errors(notebook: Any) -> list[str]:
    """No cell ended in an error or wrote to stderr (warnings go there)."""
    found = []
    for name, output in _outputs(notebook):
        if output.output_type == "error":
            found.append(f"{name} raised {output.ename}: {output.evalue}")
        if output.output_type == "stream" and output.name == "stderr":
            found.append(f"{name} wrote to stderr: {output.text[:100]!r}")
    return found


def alt_texts(notebook: Any) -> list[str]:
    """Every picture has alt text: images in HTML outputs and in Markdown; bare image outputs cannot have one."""
    found = []
    for name, output in _outputs(notebook):
        data = output.get("data", {})
        if any(kind.startswith("image/") for kind in data):
            found.append(f"{name} shows a bare image; return trtkit.course.notebook.figure(fig, alt=...) instead")
        found += [
            f"{name} has an image without alt text" for alt in images(data.get("text/html", "")) if not alt.strip()
        ]
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            alts = MARKDOWN_IMAGE.findall(cell.source) + images(cell.source)
            found += [f"cell {number} has an image without alt text" for alt in alts if not alt.strip()]
    return found


def short_cells(notebook: Any) -> list[str]:
    """No code cell has more than 15 lines, and most (70 %) have fewer than 8."""
    lengths = {name: sum(1 for line in cell.source.split("\n") if line.strip()) for name, cell in _named(notebook)}
    found = [f"{name} has {length} lines" for name, length in lengths.items() if length > MAX_LINES]
    short = sum(1 for length in lengths.values() if length < SHORT_LINES)
    if short < SHORT_SHARE * len(lengths):
        found.append(f"only {short} of {len(lengths)} code cells have fewer than {SHORT_LINES} lines")
    return found


def no_absolute_paths(notebook: Any) -> list[str]:
    """Neither source nor outputs name a folder of the machine that the notebook was run on."""
    found = []
    for number, cell in enumerate(notebook.cells, 1):
        text = BASE64.sub("", cell.source + json.dumps(cell.get("outputs", [])))
        found += [f"cell {number} holds an absolute path: {text[m.start() : m.start() + 40]!r}"
                  for m in ABSOLUTE.finditer(text)]  # fmt: skip
    return found


def mostly_compared(notebook: Any) -> list[str]:
    """At least half of the code cells, and half of those that print or show something, are compared by the tests."""
    cells = code_cells(notebook)
    found = []
    for what, group in (("code cells", cells), ("code cells with output", [cell for cell in cells if cell.outputs])):
        compared = sum(1 for cell in group if UNCOMPARED not in cell.metadata.get("tags", []))
        if 2 * compared < len(group):
            found.append(f"only {compared} of {len(group)} {what} are compared")
    return found


def stable_metadata(notebook: Any) -> list[str]:
    """Kernel and language are named; no version, time stamp or widget state is stored; ids are unique."""
    found = []
    if notebook.metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernel is not python3")
    if notebook.metadata.get("language_info", {}).get("name") != "python":
        found.append("language_info does not say python")
    if "version" in notebook.metadata.get("language_info", {}) or "widgets" in notebook.metadata:
        found.append("metadata holds a Python version or widget state; store the notebook with notebook_tools execute")
    if any("execution" in cell.metadata for cell in notebook.cells):
        found.append("cells hold time stamps")
    if len({cell.get("id") for cell in notebook.cells}) < len(notebook.cells):
        found.append("cell ids are missing or repeated")
    return found


def size(notebook: Any) -> list[str]:
    """The stored file stays under 3 MB."""
    length = len(json.dumps(notebook))
    return [f"{length / 1e6:.1f} MB is too large"] if length > MAX_BYTES else []


def lesson_shape(notebook: Any) -> list[str]:
    """A lesson has 40 to 70 cells, 6 to 12 figures (those of exercise checks not counted), and all its parts."""
    cells, figures = len(notebook.cells), len(list(_figures(notebook)))
    found = []
    if not LESSON_CELLS[0] <= cells <= LESSON_CELLS[1]:
        found.append(f"{cells} cells, wanted {LESSON_CELLS[0]} to {LESSON_CELLS[1]}")
    if not LESSON_FIGURES[0] <= figures <= LESSON_FIGURES[1]:
        found.append(f"{figures} figures, wanted {LESSON_FIGURES[0]} to {LESSON_FIGURES[1]}")
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    if len(re.findall(r"^# ", text, re.MULTILINE)) != 1:
        found.append("a lesson has exactly one title")
    headings = "\n".join(re.findall(r"^#+ .*$", text, re.MULTILINE)).lower()
    found += [
        f"no heading names: {part}" for part in ("exercise", "summary", "glossary", "sources") if part not in headings
    ]
    return found


RULES = (
    executed_in_order,
    no_errors,
    alt_texts,
    short_cells,
    no_absolute_paths,
    mostly_compared,
    stable_metadata,
    size,
)


def code_cells(notebook: Any) -> list[Any]:
    """The code cells that hold something."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def images(html_text: str) -> list[str]:
    """The alt text of every image in a piece of HTML (an ``<svg>`` has an aria-label instead); "" where it has none.

    >>> images('<img src="a.png" alt="A cat"><img src="b.png">')
    ['A cat', '']
    """
    collector = _Images()
    collector.feed(html_text)
    return collector.alts


class _Images(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.alts: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("img", "svg"):
            self.alts.append(dict(attrs).get("alt" if tag == "img" else "aria-label") or "")


def _named(notebook: Any) -> Iterator[tuple[str, Any]]:
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "code" and cell.source.strip():
            yield f"cell {number}", cell


def _outputs(notebook: Any) -> Iterator[tuple[str, Any]]:
    for name, cell in _named(notebook):
        for output in cell.outputs:
            yield name, output


def _figures(notebook: Any) -> Iterator[str]:
    lesson = [cell for cell in code_cells(notebook) if "### BEGIN SOLUTION" not in cell.source]
    for output in (output for cell in lesson for output in cell.outputs):
        yield from images(output.get("data", {}).get("text/html", ""))
