"""JupyterLab in a headless Chromium: lesson 00 opened as a reader opens it, and run to its end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from trtkit.course import notebook_tools as tools

ROOT = Path(__file__).resolve().parent.parent
LESSON = "00_start_here.ipynb"
TOKEN = "for-the-test-only"
BROWSER = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), ""
)
DRIVER = shutil.which("chromedriver") or ""
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage
    --disable-background-networking --disable-component-update --disable-sync --window-size=1400,1800""".split()  # noqa: SIM905 (a list would take ten lines)
LAB = """--no-browser --allow-root --ip=127.0.0.1 --LabApp.expose_app_in_browser=True --LabApp.news_url=None
    --LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate""".split()  # noqa: SIM905 (a list would take ten lines)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (BROWSER and DRIVER), reason="needs Chromium and chromedriver, which are not installed here"
    ),
]


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[str]:
    """A JupyterLab on a copy of the lesson without outputs; yields its address."""
    pytest.importorskip("jupyterlab")
    notebook = tools.read(ROOT / "notebooks" / LESSON)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    import nbformat

    folder = tmp_path / "notebooks"
    folder.mkdir()
    nbformat.write(notebook, folder / LESSON)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "TRTKIT_HOME": str(ROOT), "JUPYTER_CONFIG_DIR": str(tmp_path), "PYTHONPATH": path,
                   "JUPYTER_CONFIG_PATH": str(ROOT / "notebooks" / ".jupyter")}  # fmt: skip
    where = [f"--port={port}", f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}"]
    command = [sys.executable, "-m", "jupyterlab", *LAB, *where]
    with (tmp_path / "lab.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)
        try:
            wait_for_server(f"http://127.0.0.1:{port}/api?token={TOKEN}", server, tmp_path / "lab.log")
            yield f"http://127.0.0.1:{port}/lab/tree/{LESSON}?token={TOKEN}"
        finally:
            server.terminate()
            server.wait(timeout=20)


def wait_for_server(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(120):
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except OSError:
            time.sleep(0.25)
    pytest.fail(f"JupyterLab did not start within 30 s:\n{log.read_text()}")


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    """A headless Chromium with a fresh profile."""
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


# JupyterLab draws only the cells near the window, so the notebook's model is asked, not the page. A page opened
# without a window has no focus, hence no "current" widget: the notebook is looked up, and made current before it runs.
NOTEBOOK = "const notebook = [...window.jupyterapp.shell.widgets('main')].find(w => w.content && w.content.model);"
STATE = (
    f"""{NOTEBOOK}
if (!notebook) {{ return null; }}"""
    + """
const cells = notebook.content.model.sharedModel.toJSON().cells.filter(c => c.cell_type === 'code' && c.source.length);
const kernel = notebook.sessionContext.session && notebook.sessionContext.session.kernel;
const outputs = cells.flatMap(c => c.outputs);
return {cells: cells.length, run: cells.filter(c => c.execution_count).length, kernel: kernel ? kernel.status : '',
        errors: outputs.filter(o => o.output_type === 'error').map(o => o.ename + ': ' + o.evalue)};
"""
)
RUN_ALL = f"""{NOTEBOOK} window.jupyterapp.shell.activateById(notebook.id); notebook.content.node.focus();
window.jupyterapp.commands.execute('notebook:run-all-cells'); return true;"""
GO_TO = f"{NOTEBOOK} notebook.content.scrollToItem(arguments[0]); return true;"


def wait_until(driver: Any, condition: Any, seconds: float, what: str) -> dict[str, Any]:
    """Ask for the notebook's state until ``condition`` holds for it."""
    state: dict[str, Any] | None = None
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ready = driver.execute_script("return Boolean(window.jupyterapp && window.jupyterapp.shell)")
        state = driver.execute_script(STATE) if ready else None
        if state and condition(state):
            return state
        time.sleep(0.5)
    pytest.fail(f"{what}: not within {seconds:.0f} s; the last state was {state}")


def test_lesson_00_runs_to_its_end_in_jupyterlab(lab: str, browser: Any, tmp_path: Path) -> None:
    browser.get(lab)
    wait_until(browser, lambda s: s["cells"] and s["kernel"] == "idle", 60, "opening the lesson")
    browser.execute_script(RUN_ALL)
    state = wait_until(browser, lambda s: s["run"] == s["cells"] or s["errors"], 240, "running the lesson")
    assert state["errors"] == []
    pictures = Path(os.environ.get("TRTKIT_SCREENSHOTS", str(tmp_path)))
    pictures.mkdir(parents=True, exist_ok=True)
    cells = len(tools.read(ROOT / "notebooks" / LESSON).cells)
    for number in range(0, cells, 12):  # a look at the page as it stands at every twelfth cell
        browser.execute_script(GO_TO, number)
        time.sleep(0.5)
        browser.save_screenshot(str(pictures / f"lab_{number:02d}.png"))
    shown = browser.execute_script("return [...document.querySelectorAll('.jp-OutputArea-output img')].map(i => i.alt)")
    assert shown and all(shown)
