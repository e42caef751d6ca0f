"""Execute a lesson and store it clean, render it to HTML, and take the solutions out of its exercises.

python -m trtkit.course.notebook_tools execute notebooks/00_start_here.ipynb
python -m trtkit.course.notebook_tools render notebooks/00_start_here.ipynb out/00_start_here.html
"""

from __future__ import annotations

import argparse
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trtkit
from trtkit.errors import DataError, MissingError
from trtkit.model import write_atomically

if TYPE_CHECKING:
    import nbformat

KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
LANGUAGE = {"name": "python", "file_extension": ".py", "mimetype": "text/x-python", "pygments_lexer": "ipython3"}
SOLUTION = re.compile(r"^[ \t]*### BEGIN SOLUTION[^\n]*\n.*?^[ \t]*### END SOLUTION[^\n]*\n?", re.DOTALL | re.MULTILINE)


def read(path: str | os.PathLike[str]) -> nbformat.NotebookNode:
    """The notebook at ``path``; raises DataError when it is missing or no notebook."""
    try:
        import nbformat
    except ImportError as error:
        raise MissingError("Notebooks need nbformat. Install it with: pip install jupyterlab") from error
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a notebook: {error}") from error


def execute(path: str | os.PathLike[str], timeout_s: int = 600) -> float:
    """Run every cell in order in a fresh kernel and store the outputs; returns the seconds it took.

    What would change from run to run without meaning anything (time stamps, versions in the metadata) is not stored.
    A cell that fails leaves the file as it was and raises nbclient's CellExecutionError.
    """
    notebook = read(path)
    started = time.perf_counter()
    run_cells(notebook, Path(path).resolve().parent, timeout_s)
    seconds = time.perf_counter() - started
    clean(notebook)
    import nbformat

    write_atomically(Path(path), (nbformat.writes(notebook).rstrip("\n") + "\n").encode())
    return seconds


def run_cells(notebook: nbformat.NotebookNode, folder: Path, timeout_s: int = 600, allow_errors: bool = False) -> None:
    """Run ``notebook`` in place in a fresh kernel whose current folder is ``folder``."""
    try:
        from nbclient import NotebookClient
    except ImportError as error:
        raise MissingError("Running notebooks needs nbclient. Install it with: pip install jupyterlab") from error
    resources = {"metadata": {"path": str(folder)}}
    here = str(Path(trtkit.__file__).resolve().parents[1])  # the kernel must find this trtkit, installed or not
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    client = NotebookClient(notebook, timeout=timeout_s, kernel_name="python3", allow_errors=allow_errors,
                            record_timing=False, coalesce_streams=True, resources=resources)  # fmt: skip
    client.execute(env={**os.environ, "PYTHONPATH": path})


def clean(notebook: nbformat.NotebookNode) -> None:
    """Keep of the metadata what is stable: kernel and language without version, tags of the cells; number the ids."""
    notebook.metadata = type(notebook.metadata)(kernelspec=dict(KERNEL), language_info=dict(LANGUAGE))
    for number, cell in enumerate(notebook.cells, 1):
        cell.id = f"cell-{number:02d}"
        tags = cell.metadata.get("tags", [])
        cell.metadata = type(cell.metadata)({"tags": tags} if tags else {})
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = type(output.metadata)()


def render(path: str | os.PathLike[str], out: str | os.PathLike[str]) -> Path:
    """Write the notebook with its stored outputs as one HTML file."""
    try:
        from nbconvert import HTMLExporter
    except ImportError as error:
        raise MissingError("Rendering needs nbconvert. Install it with: pip install jupyterlab") from error
    body, _ = HTMLExporter(embed_images=True).from_notebook_node(
        read(path), resources={"metadata": {"name": Path(path).stem}}
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(out, body.encode())
    return out


def without_solutions(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """A copy as a reader of an exercise gets it: what stands between the solution markers is gone, and no outputs.

    What is left of a cell is valid Python, so that its check runs and says what is missing.
    """
    import copy

    stripped = copy.deepcopy(notebook)
    for cell in stripped.cells:
        if cell.cell_type == "code":
            cell.source = SOLUTION.sub("", cell.source)
            cell.outputs, cell.execution_count = [], None
    return stripped


def has_solution(cell: Any) -> bool:
    """Whether a cell is an exercise: it holds a marked solution."""
    return cell.cell_type == "code" and bool(SOLUTION.search(cell.source + "\n"))


def main(arguments: list[str] | None = None) -> None:
    """The command line above."""
    parser = argparse.ArgumentParser(prog="python -m trtkit.course.notebook_tools", description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("execute", help="run and store").add_argument("path", nargs="+")
    rendering = commands.add_parser("render", help="write HTML")
    rendering.add_argument("path")
    rendering.add_argument("out")
    chosen = parser.parse_args(arguments)
    if chosen.command == "render":
        print(render(chosen.path, chosen.out))
        return
    for path in chosen.path:
        print(f"{path}: {execute(path):.1f} s")


if __name__ == "__main__":
    main()
