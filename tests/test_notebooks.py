"""Every committed notebook keeps the rules; the rules notice broken notebooks; stripped exercises fail their checks."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cells_needed import needed
from trtkit.course import notebook_guard as guard
from trtkit.course import notebook_tools as tools

nbformat = pytest.importorskip("nbformat")
new = nbformat.v4
ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").rglob("*.ipynb"))
NOTEBOOKS = [path for path in NOTEBOOKS if ".ipynb_checkpoints" not in path.parts]
LESSONS = [path for path in NOTEBOOKS if path.parent.name == "notebooks"]


def named(paths: list[Path]) -> Any:
    return pytest.mark.parametrize("path", paths, ids=[path.stem for path in paths])


@named(NOTEBOOKS)
@pytest.mark.parametrize("rule", guard.RULES, ids=[rule.__name__ for rule in guard.RULES])
def test_notebook_keeps_the_rule(path: Path, rule: Callable[[Any], list[str]]) -> None:
    assert rule(tools.read(path)) == []


@named(LESSONS)
def test_lesson_has_the_shape_of_a_lesson(path: Path) -> None:
    assert guard.lesson_shape(tools.read(path)) == []


@named(LESSONS)
def test_course_map_names_the_lesson(path: Path) -> None:
    assert path.name in (ROOT / "notebooks/README.md").read_text()


@named(NOTEBOOKS)
@pytest.mark.slow
def test_stripped_exercises_fail_their_checks(path: Path, tmp_path: Path) -> None:
    """Without the solutions every exercise cell raises NotSolved, with a hint, and nothing else goes wrong.

    Only what the exercises need is run: all cells are, with their solutions, when nbval has its turn.
    """
    solved = tools.read(path)
    exercises = [number for number, cell in enumerate(solved.cells) if tools.has_solution(cell)]
    if not exercises:
        pytest.skip("no exercises in it")
    stripped = tools.without_solutions(solved)
    used = needed(stripped.cells, exercises)
    for number, cell in enumerate(stripped.cells):
        if cell.cell_type == "code" and number not in used:
            cell.source = ""
    tools.run_cells(stripped, tmp_path, allow_errors=True)
    raised = {number: (output.ename, output.evalue) for number, cell in enumerate(stripped.cells)
              for output in cell.get("outputs", []) if output.output_type == "error"}  # fmt: skip
    assert sorted(raised) == exercises
    for name, message in raised.values():
        assert name == "NotSolved" and len(message) > 20


# The rules themselves: one good notebook, and one broken for each of them.


def output(html: str = "", plain: str = "1") -> Any:
    return new.new_output("display_data", {"text/plain": plain, "text/html": html} if html else {"text/plain": plain})


def good() -> Any:
    cells = [new.new_code_cell(f"x = {i}\nx", execution_count=i + 1, outputs=[output()]) for i in range(4)]
    cells[1].outputs = [output('<img alt="A bar chart." src="data:image/png;base64,AAAA">')]
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# Title"), *cells])
    tools.clean(notebook)
    return notebook


def reordered(nb: Any) -> None:
    nb.cells[1].execution_count, nb.cells[2].execution_count = 2, 1


def never_run(nb: Any) -> None:
    nb.cells[4].execution_count = None


def failed(nb: Any) -> None:
    nb.cells[1].outputs = [new.new_output("error", ename="ValueError", evalue="no", traceback=[])]


def warned(nb: Any) -> None:
    nb.cells[1].outputs = [new.new_output("stream", name="stderr", text="UserWarning: careful")]


def without_alt(nb: Any) -> None:
    nb.cells[1].outputs = [output('<p><img src="data:image/png;base64,AAAA"></p>')]


def empty_alt(nb: Any) -> None:
    nb.cells[0].source = "# Title\n![ ](picture.png)"


def bare_image(nb: Any) -> None:
    nb.cells[1].outputs = [new.new_output("display_data", {"image/png": "AAAA"})]


def long_cell(nb: Any) -> None:
    nb.cells[1].source = "\n".join(f"x{i} = {i}" for i in range(16))


def longish_cells(nb: Any) -> None:
    for cell in nb.cells[1:3]:
        cell.source = "\n".join(f"x{i} = {i}" for i in range(9))


def path_in_source(nb: Any) -> None:
    nb.cells[1].source = "open('/home/anna/model.onnx')"


def path_in_output(nb: Any) -> None:
    nb.cells[1].outputs = [output(plain="saved to /tmp/xyz/model.engine")]


def windows_path(nb: Any) -> None:
    nb.cells[1].source = "open('C:\\\\models')"


def uncompared(nb: Any) -> None:
    for cell in nb.cells[1:4]:
        cell.metadata.tags = [guard.UNCOMPARED]


def other_kernel(nb: Any) -> None:
    nb.metadata.kernelspec["name"] = "my-env"


def no_language(nb: Any) -> None:
    del nb.metadata["language_info"]


def time_stamps(nb: Any) -> None:
    nb.cells[1].metadata["execution"] = {"iopub.status.busy": "2026-01-01T00:00:00Z"}


def heavy(nb: Any) -> None:
    nb.cells[1].outputs = [output(plain="x" * 3_100_000)]


BROKEN = [
    (guard.executed_in_order, reordered), (guard.executed_in_order, never_run),
    (guard.no_errors, failed), (guard.no_errors, warned),
    (guard.alt_texts, without_alt), (guard.alt_texts, empty_alt), (guard.alt_texts, bare_image),
    (guard.short_cells, long_cell), (guard.short_cells, longish_cells),
    (guard.no_absolute_paths, path_in_source), (guard.no_absolute_paths, path_in_output),
    (guard.no_absolute_paths, windows_path),
    (guard.mostly_compared, uncompared),
    (guard.stable_metadata, other_kernel), (guard.stable_metadata, no_language), (guard.stable_metadata, time_stamps),
    (guard.size, heavy),
]  # fmt: skip


@pytest.mark.parametrize("rule", guard.RULES, ids=[rule.__name__ for rule in guard.RULES])
def test_rule_accepts_a_good_notebook(rule: Callable[[Any], list[str]]) -> None:
    assert rule(good()) == []


@pytest.mark.parametrize(("rule", "breakage"), BROKEN, ids=[breakage.__name__ for _, breakage in BROKEN])
def test_rule_notices_a_broken_notebook(rule: Callable[[Any], list[str]], breakage: Callable[[Any], None]) -> None:
    notebook = good()
    breakage(notebook)
    assert rule(notebook) != []


def test_every_rule_has_a_broken_notebook() -> None:
    assert {rule for rule, _ in BROKEN} == set(guard.RULES)


def test_lesson_shape_notices_what_is_missing() -> None:
    found = "\n".join(guard.lesson_shape(good()))
    for part in ("5 cells", "1 figures", "exercise", "summary", "glossary", "sources"):
        assert part in found


def test_a_file_that_is_no_notebook_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.ipynb").write_text("not json")
    for name in ("x.ipynb", "missing.ipynb"):
        with pytest.raises(tools.DataError, match="cannot be read as a notebook"):
            tools.read(tmp_path / name)


# Executing, stripping and comparing


def small_notebook(path: Path, *sources: str) -> Path:
    nbformat.write(new.new_notebook(cells=[new.new_code_cell(source) for source in sources]), path)
    return path


def test_execute_stores_a_clean_notebook(tmp_path: Path) -> None:
    path = small_notebook(tmp_path / "small.ipynb", "print(6 * 7)", "print('a')\nprint('b')")
    tools.execute(path)
    stored = path.read_bytes()
    assert [problem for rule in guard.RULES for problem in rule(tools.read(path))] == []
    tools.execute(path)
    assert path.read_bytes() == stored


def test_a_failing_cell_leaves_the_file_alone(tmp_path: Path) -> None:
    path = small_notebook(tmp_path / "small.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(Exception, match="ZeroDivisionError"):
        tools.execute(path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_solutions_are_taken_out() -> None:
    source = "def f(x):\n    '''roughly 1 line'''\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\ncheck(f)"
    notebook = new.new_notebook(cells=[new.new_code_cell(source), new.new_markdown_cell("text")])
    assert tools.has_solution(notebook.cells[0]) and not tools.has_solution(notebook.cells[1])
    stripped = tools.without_solutions(notebook)
    assert stripped.cells[0].source == "def f(x):\n    '''roughly 1 line'''\ncheck(f)"
    assert "return x" in notebook.cells[0].source


@pytest.mark.parametrize(("stored", "passes"), [("42\n", True), ("43\n", False)])
def test_nbval_compares_stored_outputs(tmp_path: Path, stored: str, passes: bool) -> None:
    pytest.importorskip("nbval")
    printed = new.new_output("stream", name="stdout", text=stored)
    notebook = new.new_notebook(cells=[new.new_code_cell("print(6 * 7)", execution_count=1, outputs=[printed])])
    tools.clean(notebook)
    nbformat.write(notebook, tmp_path / "x.ipynb")
    command = [sys.executable, "-m", "pytest", "--nbval", str(tmp_path / "x.ipynb"), "-q", "-p", "no:cacheprovider",
               "--nbval-sanitize-with", str(ROOT / "notebooks/sanitize.cfg"), "--rootdir", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode == 0) == passes, done.stdout


def test_render_keeps_pictures_and_alt_text(tmp_path: Path) -> None:
    notebook = good()
    nbformat.write(notebook, tmp_path / "x.ipynb")
    page = tools.render(tmp_path / "x.ipynb", tmp_path / "out/x.html").read_text()
    assert "A bar chart." in guard.images(page)
