"""start.py: it says what it needs, installs once, goes on after an interruption, and counts what it tested."""

from __future__ import annotations

import ast
import fcntl
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
START = ROOT / "start.py"
MODULES = ("pip", "trtkit", "onnxruntime", "torch", "jupyterlab")


@pytest.fixture
def start() -> ModuleType:
    """A fresh copy of start.py as a module."""
    spec = importlib.util.spec_from_file_location("start_under_test", START)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path, start: ModuleType, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """An empty checkout, a quick way to make its .venv, and a pip that notes its calls and leaves empty modules."""
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    (tmp_path / "constraints.txt").write_text("\n")
    place = start.Place(str(tmp_path))
    calls: list[list[str]] = []

    def add_modules() -> None:
        packages = next(Path(place.venv).glob("lib/python*/site-packages"))
        for name in MODULES:
            (packages / name).mkdir(exist_ok=True)
            (packages / name / "__init__.py").touch()

    def fake_pip(place: Any, lock: int, what: list[str]) -> None:
        calls.append(what)
        add_modules()
        if "--target" in what:
            write_stubs(Path(place.stubs))

    monkeypatch.setattr(start, "NEEDED_BYTES", 0)
    monkeypatch.setattr(
        start, "venv_command", lambda p: [sys.executable, "-m", "venv", "--without-pip", p.venv]
    )
    monkeypatch.setattr(start, "pip", fake_pip)
    return SimpleNamespace(start=start, place=place, calls=calls, root=tmp_path, add_modules=add_modules)


BROKEN_STUBS = """
from __future__ import annotations
import typing
class Dims:
    def __getitem__(self, arg0: int) -> int: ...
class Plugin:
    def get_workspace_size(self, in: list[int], out: list[int]) -> int: ...
    def add_scale_nd(self, power: int = None, channel_axis: int) -> int: ...
"""


def write_stubs(folder: Path) -> Path:
    """What tensorrt-stubs unpacks, as far as it matters here."""
    stubs = folder / "tensorrt_bindings" / "tensorrt.pyi"
    stubs.parent.mkdir(parents=True, exist_ok=True)
    stubs.write_text(BROKEN_STUBS)
    return stubs


# --- which Python ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("version", "system"), [((3, 10, 4), "linux"), ((3, 12, 0), "win32"), ((3, 12, 0), "darwin")])
def test_other_machines_get_a_clear_message(version: tuple[int, ...], system: str) -> None:
    code = (
        f"import runpy, sys; sys.version_info = {version}; sys.platform = {system!r}\n"
        f"runpy.run_path({str(START)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "needs Linux and Python 3.11 or newer" in done.stderr and "Traceback" not in done.stderr


def test_old_pythons_can_parse_it() -> None:
    """Nothing that Python 2.7 would call a syntax error; old interpreters that are here get to say so themselves."""
    text = START.read_text(encoding="ascii")
    newer = (ast.JoinedStr, ast.AnnAssign, ast.Nonlocal, ast.AsyncFunctionDef, ast.NamedExpr, ast.Match, ast.YieldFrom)
    for node in ast.walk(ast.parse(text)):
        assert not isinstance(node, newer), f"line {node.lineno}"
        if isinstance(node, ast.FunctionDef):
            every = [*node.args.args, *node.args.kwonlyargs]
            assert node.returns is None and not node.args.kwonlyargs and not any(a.annotation for a in every)
        if isinstance(node, ast.Raise):
            assert node.cause is None, f"line {node.lineno}"
        if isinstance(node, ast.List | ast.Tuple):
            assert not any(isinstance(item, ast.Starred) for item in node.elts), f"line {node.lineno}"


def old_pythons() -> list[str]:
    """The Pythons before 3.11 that are installed here, on PATH or by pyenv."""
    names = ["python2.7", *(f"python3.{minor}" for minor in range(6, 11))]
    found = [path for name in names if (path := shutil.which(name))]
    found += [str(path) for path in Path.home().glob(".pyenv/versions/*/bin/python")]
    code = "import sys; sys.exit(sys.version_info >= (3, 11))"
    return [path for path in found if subprocess.run([path, "-c", code], capture_output=True).returncode == 0]


def test_old_pythons_get_a_clear_message() -> None:
    found = old_pythons()
    if not found:
        pytest.skip("no Python before 3.11 here")
    for old in found:
        done = subprocess.run([old, str(START)], capture_output=True, text=True)
        assert done.returncode == 1 and "needs Linux and Python 3.11" in done.stderr, old


def test_help_needs_no_installation() -> None:
    done = subprocess.run([sys.executable, str(START), "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert all(word in done.stdout for word in ("tour", "lab", "test", ".venv"))


def test_unknown_arguments_are_refused(start: ModuleType) -> None:
    with pytest.raises(start.Stop, match="--what"):
        start.main(["test", "--what"])


# --- installing ------------------------------------------------------------------------------------------------------


def test_installs_once_and_again_when_something_changed(checkout: SimpleNamespace) -> None:
    ensure, place, calls = checkout.start.ensure_installed, checkout.place, checkout.calls
    ensure(place, ["course"])
    assert calls == [[f"-e{place.root}[course]"]]
    ensure(place, ["course"])
    assert len(calls) == 1  # nothing to do
    ensure(place, ["course", "test"])
    assert calls[1] == [f"-e{place.root}[course,test]"] and "tensorrt-stubs" in calls[2]
    ensure(place, ["course"])
    assert len(calls) == 3  # what the tests need includes what the course needs
    (checkout.root / "constraints.txt").write_text("numpy==2.4.6\n")
    ensure(place, ["course"])
    assert calls[3] == [f"-e{place.root}[course,test]"]


def test_an_interrupted_installation_goes_on(checkout: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    working = checkout.start.pip

    def interrupted(*_: object) -> None:
        checkout.add_modules()  # all is there, and yet pip has not come to its end
        raise KeyboardInterrupt

    monkeypatch.setattr(checkout.start, "pip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        checkout.start.ensure_installed(checkout.place, ["course"])
    marker = Path(checkout.place.venv, "kept")
    marker.touch()
    monkeypatch.setattr(checkout.start, "pip", working)
    checkout.start.ensure_installed(checkout.place, ["course"])
    assert len(checkout.calls) == 1 and marker.exists()  # the same .venv, and pip was asked again


def damage_python(venv: Path) -> None:
    (venv / "bin" / "python").unlink()


def damage_pip(venv: Path) -> None:
    shutil.rmtree(next(venv.glob("lib/python*/site-packages/pip")))
    shutil.rmtree(next(venv.glob("lib/python*/site-packages/torch")))


def damage_state(venv: Path) -> None:
    (venv / "start.json").write_text('{"root": "/somewhere/el')


def damage_place(venv: Path) -> None:
    state = venv / "start.json"
    state.write_text(state.read_text().replace(str(venv.parent), "/somewhere/else"))


@pytest.mark.parametrize("damage", [damage_python, damage_pip, damage_state, damage_place])
def test_a_broken_or_moved_venv_is_made_anew(checkout: SimpleNamespace, damage: Any) -> None:
    checkout.start.ensure_installed(checkout.place, ["course"])
    venv = Path(checkout.place.venv)
    (venv / "old").touch()
    damage(venv)
    checkout.start.ensure_installed(checkout.place, ["course"])
    assert not (venv / "old").exists() and len(checkout.calls) == 2


def test_a_venv_of_somebody_elses_is_left_alone(checkout: SimpleNamespace) -> None:
    mine = Path(checkout.place.venv, "bin", "mine")
    mine.parent.mkdir(parents=True)
    mine.touch()
    with pytest.raises(checkout.start.Stop, match="did not make it"):
        checkout.start.ensure_installed(checkout.place, ["course"])
    assert mine.exists() and not checkout.calls


def test_a_venv_left_half_made_is_made_anew(checkout: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    half = [sys.executable, "-c", f"import os; os.makedirs({checkout.place.venv!r} + '/bin/half'); os.abort()"]
    with monkeypatch.context() as killed:
        killed.setattr(checkout.start, "venv_command", lambda _: half)
        with pytest.raises(checkout.start.Stop, match="could not make"):
            checkout.start.ensure_installed(checkout.place, ["course"])
    assert Path(checkout.place.venv, "bin", "half").exists()
    checkout.start.ensure_installed(checkout.place, ["course"])
    assert not Path(checkout.place.venv, "bin", "half").exists() and len(checkout.calls) == 1


def test_a_missing_package_is_installed_again(checkout: SimpleNamespace) -> None:
    checkout.start.ensure_installed(checkout.place, ["course"])
    venv = Path(checkout.place.venv)
    (venv / "kept").touch()
    shutil.rmtree(next(venv.glob("lib/python*/site-packages/torch")))
    checkout.start.ensure_installed(checkout.place, ["course"])
    assert (venv / "kept").exists() and len(checkout.calls) == 2


def test_an_installation_that_leaves_holes_is_reported(
    checkout: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout.start, "pip", lambda *_: None)
    with pytest.raises(checkout.start.Stop, match="something is missing"):
        checkout.start.ensure_installed(checkout.place, ["course"])


def test_the_stubs_of_tensorrt_become_python(start: ModuleType, tmp_path: Path) -> None:
    place = start.Place(str(tmp_path))
    stubs = write_stubs(Path(place.stubs))
    with pytest.raises(SyntaxError):
        ast.parse(stubs.read_text())
    start.repair_stubs(place)
    repaired = stubs.read_text()
    ast.parse(repaired)
    assert "__iter__" in repaired
    start.repair_stubs(place)
    assert stubs.read_text() == repaired


def test_two_at_once_are_kept_apart(checkout: SimpleNamespace) -> None:
    with open(checkout.root / ".start.lock", "w") as other:
        other.write("4711\n")
        other.flush()
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(checkout.start.Stop, match=r"Another start.py .* \(process 4711\)"):
            checkout.start.ensure_installed(checkout.place, ["course"])
    checkout.start.ensure_installed(checkout.place, ["course"])  # the lock went with its holder


def test_a_full_disk_is_noticed_before_the_download(checkout: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkout.start, "NEEDED_BYTES", 10 * checkout.start.GIB)
    monkeypatch.setattr(checkout.start.shutil, "disk_usage", lambda _: SimpleNamespace(free=3 * 2**30))
    with pytest.raises(checkout.start.Stop, match=r"3\.0 GiB free.* about 10 GiB"):
        checkout.start.ensure_installed(checkout.place, ["course"])
    assert not Path(checkout.place.venv).exists()


def test_a_python_without_venv_is_told_what_to_install(
    checkout: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout.start.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(checkout.start.Stop, match=r"sudo apt install python3\.\d+-venv"):
        checkout.start.make_venv(checkout.place)


@pytest.mark.parametrize(
    ("said", "advice"),
    [
        ("ERROR: Could not install: [Errno 28] No space left on device", "The disk is full"),
        ("WARNING: Retrying after NewConnectionError('...')", "cannot reach the package index"),
        ("ERROR: No matching distribution found for torch==2.14.1", "no version for this Python"),
        ("ERROR: something else", "Run the same command again"),
    ],
)
def test_pips_failure_is_explained(start: ModuleType, tmp_path: Path, said: str, advice: str) -> None:
    log = tmp_path / "install.log"
    log.write_text(f"Collecting torch\n{said}\n")
    text = start.explain_pip(str(log))
    assert said in text and advice in text and str(log) in text


def make_scripted_checkout(folder: Path, pip: str) -> None:
    """A checkout whose .venv has a shell script for a Python, which does `pip` when it is asked to install."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    (folder / "constraints.txt").touch()
    (folder / "start.py").write_text(START.read_text().replace("NEEDED_BYTES = ", "NEEDED_BYTES = 0 * "))
    (folder / ".venv" / "start.json").write_text(f'{{"root": "{folder}", "extras": []}}')
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\ncase "$*" in *"-m pip"*) {pip};; *" pip") exit 0;; *) exit 1;; esac\n')
    python.chmod(0o755)


def test_pips_failure_ends_with_a_message_and_no_traceback(tmp_path: Path) -> None:
    make_scripted_checkout(tmp_path, "echo ERROR: the wheel is broken; exit 1")
    done = subprocess.run([sys.executable, tmp_path / "start.py"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "ERROR: the wheel is broken" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_waits_until_the_child_is_known(start: ModuleType, number: signal.Signals) -> None:
    known = False
    with pytest.raises(KeyboardInterrupt), start.signals_held():
        os.kill(os.getpid(), number)
        known = True
    assert known
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_pip_and_says_how_to_go_on(tmp_path: Path, how: signal.Signals) -> None:
    make_scripted_checkout(tmp_path, "echo $$ > pip.pid; exec sleep 60")
    process = subprocess.Popen([sys.executable, tmp_path / "start.py"], stderr=subprocess.PIPE, text=True)
    note = tmp_path / "pip.pid"
    deadline = time.monotonic() + 20
    while not (note.exists() and note.read_text().strip()) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(how)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "run the same command again" in errors and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


# --- testing ---------------------------------------------------------------------------------------------------------


def make_program(folder: Path, name: str, text: str) -> None:
    program = folder / ".venv" / "bin" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)


def test_every_part_runs_though_one_failed(
    start: ModuleType, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = '<testsuites><testsuite tests="7" failures="1" errors="1" skipped="2"/></testsuites>'
    for name in ("ruff", "lint-imports"):
        make_program(tmp_path, name, "exit 0")
    make_program(tmp_path, "mypy", "echo broken types; exit 1")
    make_program(tmp_path, "pytest", f'for last in "$@"; do :; done; echo \'{report}\' > "$last"; exit 1')
    assert start.run_tests(start.Place(str(tmp_path))) == 1
    lines = capfd.readouterr().out.strip().splitlines()
    assert "broken types" in lines
    assert any(line.startswith("types (mypy)") and "FAILED" in line for line in lines)
    assert any(line.startswith("lint (ruff check)") and "ok" in line for line in lines)
    assert lines[-1].startswith("6 passed, 4 failed, 4 skipped in ")  # pytest ran twice: package and notebooks


def test_success_is_reported(start: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert start.summarise([("lint", 0, 1.0, (0, 0, 0)), ("tests", 0, 2.0, (12, 0, 1))]) == 0
    assert capsys.readouterr().out.strip().endswith("12 passed, 0 failed, 1 skipped in 3 s")


def test_ci_runs_the_second_command() -> None:
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
    assert "python3 start.py test" in (ROOT / ".ci" / "run").read_text()
