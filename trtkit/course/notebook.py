"""Helpers that every lesson uses: the first cell, figures with alt text, and the package's real source on the page."""

from __future__ import annotations

import ast
import base64
import html
import inspect
import io
import textwrap
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import DataError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 100
PRE = "background:transparent;margin:0;padding:0;font-family:monospace;font-size:90%;line-height:1.35"


class Rich:
    """An output with two faces: HTML for the page, plain text for terminals, screen readers and comparison by tests."""

    def __init__(self, html_text: str, plain: str) -> None:
        self.html_text, self.plain = html_text, plain

    def __repr__(self) -> str:
        return self.plain

    def _repr_html_(self) -> str:
        return self.html_text


def setup() -> None:
    """A lesson's first cell: set the figure style and print what this machine can do."""
    from trtkit import doctor, plot

    plot.style()
    print(doctor.line())


def figure(fig: Figure, alt: str) -> Rich:
    """A matplotlib figure as an image with alternative text; the last expression of a cell shows it.

    Jupyter's own display of a figure has no place for the text that a screen reader reads aloud, and every figure of
    the course has one. The figure is closed, so that Jupyter does not show it a second time.

    >>> from matplotlib.figure import Figure
    >>> figure(Figure(), alt="An empty figure.")
    [figure: An empty figure.]
    """
    if not alt.strip():
        raise DataError("Every figure needs alt text: one sentence that says what the picture shows.")
    from matplotlib import pyplot

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=DPI, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(fig)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    image = f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{data}" style="max-width:100%">'
    return Rich(image, f"[figure: {alt}]")


def counted(counts: Mapping[str, int]) -> str:
    """Counts in one line, in their order, as a lesson prints them.

    >>> counted({"Conv": 9, "Add": 1})
    '9 Conv, 1 Add'
    """
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def show_source(obj: Callable[..., Any] | type) -> Rich:
    """The source of a function or class as it stands in the package, highlighted; its doctest example is left out.

    >>> print(show_source(short_name))
    def short_name(path: str) -> str:
        \"\"\"The path of a source file from the package on, as in ``trtkit/model.py``.\"\"\"
        parts = Path(path).parts
        return "/".join(parts[parts.index("trtkit") :]) if "trtkit" in parts else Path(path).name
    """
    code = without_example(textwrap.dedent(inspect.getsource(obj)))
    where = short_name(inspect.getsourcefile(obj) or "")
    return Rich(_highlighted(code, where), code)


def show_part(module: str, name: str) -> Rich:
    """Like `show_source` for a function, class or method of a module that only a machine with a GPU can import.

    >>> print(show_part("trtkit.engine.cuda", "as_bytes"))
    def as_bytes(array: np.ndarray) -> np.ndarray:
        return array.reshape(-1).view(np.uint8)
    """
    spec = find_spec(module)
    if spec is None or spec.origin is None:
        raise DataError(f"There is no module {module!r} to show source of.")
    text = Path(spec.origin).read_text(encoding="utf-8")
    node: Any = ast.parse(text)
    for part in name.split("."):
        node = next((child for child in node.body if getattr(child, "name", "") == part), None)
        if node is None:
            raise DataError(f"{module} has no {name!r}.")
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    code = without_example(textwrap.dedent("\n".join(text.split("\n")[first - 1 : node.end_lineno])))
    return Rich(_highlighted(code, short_name(spec.origin)), code)


def short_name(path: str) -> str:
    """The path of a source file from the package on, as in ``trtkit/model.py``."""
    parts = Path(path).parts
    return "/".join(parts[parts.index("trtkit") :]) if "trtkit" in parts else Path(path).name


def without_example(code: str) -> str:
    """``code`` of one function or class without the ``>>>`` part of its docstring (it would only lengthen the page).

    >>> print(without_example('def f():\\n    \\"\\"\\"One.\\n\\n    >>> f()\\n    \\"\\"\\"\\n    return 1\\n'))
    def f():
        \"\"\"One.\"\"\"
        return 1
    """
    body = getattr(ast.parse(code).body[0], "body", [])
    first = body[0] if body else None
    lines = code.rstrip().split("\n")
    if not isinstance(first, ast.Expr) or not isinstance(first.value, ast.Constant):
        return "\n".join(lines)
    start, end = first.lineno - 1, first.end_lineno or first.lineno
    kept = lines[start:end]
    example = next((i for i, line in enumerate(kept) if line.lstrip().startswith(">>>")), None)
    if example is None:
        return "\n".join(lines)
    kept = kept[:example]
    while kept and not kept[-1].strip():
        kept.pop()
    if len(kept) == 1:
        kept[0] += '"""'
    else:
        kept.append(kept[0][: len(kept[0]) - len(kept[0].lstrip())] + '"""')
    return "\n".join(lines[:start] + kept + lines[end:])


def _highlighted(code: str, where: str) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    formatter = HtmlFormatter(noclasses=True, nobackground=True, style="default", prestyles=PRE)
    frame = "background:#f6f8fa;color:#1f2328;border-left:3px solid #76b900;padding:2px 12px;margin:0;overflow-x:auto"
    caption = f'<div style="font-size:80%;opacity:.75">{html.escape(where)}</div>'
    return f'<div style="{frame}">{caption}{highlight(code, PythonLexer(), formatter)}</div>'
