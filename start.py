#!/usr/bin/env python3
"""One command for everything: set up trtkit in .venv, then show it, open the course, or test it.

    python3 start.py          set up, run the tour (lesson 00 without Jupyter), say what to do next
    python3 start.py lab      set up, open JupyterLab on the course map
    python3 start.py test     set up, run every check: lint, types, import direction, tests, notebooks

Nothing but the standard library is used here. Interrupted or run twice, it goes on where it was.
"""
# Any Python, 2.7 included, must be able to parse this file, or it could not say which Python is needed:
# so no f-strings, no annotations, no keyword-only arguments, only ASCII.

from __future__ import print_function

import sys

if sys.version_info < (3, 11) or not sys.platform.startswith("linux"):
    print(
        "trtkit needs Linux and Python 3.11 or newer; this is Python {0}.{1} on {2}.\n"
        "Install a newer Python and name it, for example:  python3.12 start.py\n"
        "On Windows use WSL 2 (a Linux inside Windows); on a Mac, a Linux container or virtual machine.".format(
            sys.version_info[0], sys.version_info[1], sys.platform
        ),
        file=sys.stderr,
    )
    sys.exit(1)

import argparse
import contextlib
import fcntl
import hashlib
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import time

ROOT = os.path.dirname(os.path.abspath(__file__))
GIB = 1 << 30
# Measured: .venv takes 6.3 GiB, nearly all of it PyTorch and the CUDA libraries of it, out of 2.9 GiB of downloads.
# pip keeps those beside .venv's files until it is done and, where there is room, in its cache as well: with that an
# interrupted download need not begin anew.
NEEDED_BYTES = 10 * GIB
ROOMY_BYTES = 14 * GIB


class Stop(Exception):
    """Something the reader has to know and act upon; the message is all that is printed."""


def main(argv=None):
    args, rest = arguments().parse_known_args(argv)
    if rest and args.command != "lab":
        raise Stop("Unknown arguments: {0}. See: python3 start.py --help".format(" ".join(rest)))
    place = Place(ROOT)
    extras = ["course", "test"] if args.command == "test" else ["course"]
    ensure_installed(place, extras)
    if args.command == "lab":
        sys.stdout.flush()  # JupyterLab takes this process over, and answers Ctrl-C in its own way
        os.chdir(place.root)
        os.execve(place.python, [place.python, "-m", "trtkit.cli", "lab"] + rest, environment(place))
    if args.command == "test":
        return run_tests(place)
    code = run([place.python, "-m", "trtkit.course.tour"], place)
    if code == 0:
        print(
            "\nThe pictures, the table and the engines are in out/. What next:\n"
            "  python3 start.py lab      open the course; lesson 00 is the tour with its explanations\n"
            "  python3 start.py test     prove the kit by its tests\n"
            "  .venv/bin/trtkit doctor   what this machine can do, and what it would need to do more"
        )
    return code


def arguments():
    parser = argparse.ArgumentParser(
        prog="start.py",
        description="Set up trtkit in .venv, then run the tour, open the course, or test everything.",
        epilog="Interrupted or run twice, it goes on where it was. To begin anew, delete .venv.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["tour", "lab", "test"],
        default="tour",
        help="tour (the default): lesson 00 without Jupyter; lab: JupyterLab on the course map "
        "(further arguments go to JupyterLab, such as --no-browser --port 9000); test: every check and test",
    )
    return parser


# --- the environment -------------------------------------------------------------------------------------------------


class Place:
    """The paths of one checkout."""

    def __init__(self, root):
        self.root = root
        self.venv = os.path.join(root, ".venv")
        self.python = os.path.join(self.venv, "bin", "python")
        self.state = os.path.join(self.venv, "start.json")
        self.log = os.path.join(self.venv, "install.log")
        self.stubs = os.path.join(self.venv, "stubs")
        self.temporary = os.path.join(self.venv, "tmp")
        self.constraints = os.path.join(root, "constraints.txt")


def ensure_installed(place, extras):
    """Bring .venv to the state that pyproject.toml and constraints.txt describe; quick when it is there already."""
    if is_installed(place, extras):
        return
    with only_one(place) as lock:
        check_disk(place)
        if not venv_works(place):
            make_venv(place)
        install(place, extras, lock)
        if not is_installed(place, extras):
            raise Stop(
                "The installation ended without an error, and still something is missing.\n"
                "Delete {0} and run the same command again; what pip said is in {1}.".format(place.venv, place.log)
            )


def is_installed(place, extras):
    state = read_state(place)
    return (
        state.get("root") == place.root
        and state.get("key") == install_key(place)
        and set(extras) <= set(state.get("extras", []))
        and venv_works(place, modules=["trtkit", "onnxruntime", "torch", "jupyterlab"])
    )


def read_state(place):
    try:
        with open(place.state) as file:
            state = json.load(file)
    except (IOError, ValueError):  # not there, or cut off in the middle
        return {}
    return state if isinstance(state, dict) else {}


def write_state(place, state):
    with open(place.state + ".new", "w") as file:
        json.dump(state, file)
    os.replace(place.state + ".new", place.state)


def install_key(place):
    """A hash of all that decides what gets installed."""
    digest = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt"):
        with open(os.path.join(place.root, name), "rb") as file:
            digest.update(file.read() + b"\0")
    return digest.hexdigest()


def venv_works(place, modules=("pip",)):
    """Whether .venv belongs to this folder, starts, is new enough and has these modules (found, not imported)."""
    if read_state(place).get("root") != place.root or not os.access(place.python, os.X_OK):
        return False
    code = (
        "import sys, importlib.util as u\n"
        "sys.exit(not (sys.version_info >= (3, 11) and sys.prefix != sys.base_prefix"
        " and all(u.find_spec(m) for m in sys.argv[1:])))"
    )
    try:
        done = subprocess.run(
            [place.python, "-I", "-c", code] + list(modules), env=environment(place), timeout=120, capture_output=True
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def make_venv(place):
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        version = "{0}.{1}".format(*sys.version_info[:2])
        raise Stop(
            "This Python has no venv module. On Debian and Ubuntu it is a package of its own:\n"
            "  sudo apt install python{0}-venv\nThen run the same command again.".format(version)
        )
    if not os.path.lexists(place.venv):
        print("Making .venv with Python {0}.{1} ...".format(*sys.version_info[:2]))
        os.mkdir(place.venv)
    elif os.path.exists(place.state):
        print("The .venv here is half-made, or was made in another folder: making it anew.")
    else:
        raise Stop(
            "{0} is there already, and start.py did not make it.\n"
            "Move it away or delete it, then run the same command again.".format(place.venv)
        )
    write_state(place, {})  # before all else: by this a half-made .venv is known as one of ours
    empty(place.venv, os.path.basename(place.state))
    done = subprocess.run(venv_command(place), env=environment(place), capture_output=True, text=True)
    if done.returncode != 0:
        raise Stop("Python could not make {0}:\n{1}".format(place.venv, (done.stdout + done.stderr).strip()))
    write_state(place, {"root": place.root, "extras": []})


def empty(folder, but):
    """Delete all that is in a folder except one file."""
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif name != but:
            os.remove(path)


def venv_command(place):
    return [sys.executable, "-m", "venv", place.venv]


def install(place, extras, lock):
    # What earlier runs added stays listed, so that `test` followed by `lab` does not make `test` install again.
    extras = sorted(set(extras) | set(read_state(place).get("extras", [])))
    write_state(place, {"root": place.root, "extras": extras})  # without a key: not installed yet
    print("Installing trtkit and what the course needs: 3 GB to download, once.", flush=True)
    started = time.time()
    what = "-e{0}[{1}]".format(place.root, ",".join(extras))
    pip(place, lock, [what])
    if "test" in extras:
        # Types of the full TensorRT for mypy. They stay off Python's own path: installed normally they would bring
        # the 2 GB library, and without it they look like a TensorRT that has nothing inside.
        pip(place, lock, ["--no-deps", "--upgrade", "--target", place.stubs, "tensorrt-stubs"])
        repair_stubs(place)
    shutil.rmtree(place.temporary, ignore_errors=True)
    write_state(place, {"root": place.root, "key": install_key(place), "extras": extras})
    minutes, size = (time.time() - started) / 60, used_bytes(place.venv) / GIB
    print("Installed in {0:.1f} minutes; .venv takes {1:.1f} GiB.".format(minutes, size), flush=True)


def pip(place, lock, what):
    """Run `pip install`; all it says goes to a log file, and the end of that is shown when it fails."""
    if not os.path.isdir(place.temporary):
        os.mkdir(place.temporary)
    command = [place.python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    command += ["--progress-bar", "off", "-c", place.constraints] + what
    if shutil.disk_usage(place.root).free < ROOMY_BYTES:
        command.append("--no-cache-dir")
    # Downloads are unpacked beside .venv's other files: /tmp is often a small memory disk.
    settings = dict(environment(place), TMPDIR=place.temporary)
    process = None
    with open(place.log, "w") as log:
        try:
            with signals_held():
                # pip holds the lock too: should this process be killed, no second pip starts beside the first.
                process = subprocess.Popen(
                    command, stdout=log, stderr=subprocess.STDOUT, env=settings, cwd=place.root, pass_fds=[lock]
                )
            watch(process, place.log)
        finally:
            stop(process)
    if process.returncode != 0:
        raise Stop(explain_pip(place.log))


def repair_stubs(place):
    """Make Python of tensorrt-stubs 10.13: five signatures of it are none, and mypy stops at the first."""
    path = os.path.join(place.stubs, "tensorrt_bindings", "tensorrt.pyi")
    with open(path) as file:
        text = file.read()
    text = re.sub(r"\bin: ", "in_: ", text)  # a keyword as the name of a parameter
    text = text.replace("= None, channel_axis: int)", "= None, channel_axis: int = ...)")
    if "def __iter__" not in text.split("class Dims:")[1].split("class ")[0]:
        # Dims can be iterated, by __getitem__ and __len__ alone, which mypy does not count
        text = text.replace("class Dims:\n", "class Dims:\n    def __iter__(self) -> typing.Iterator[int]: ...\n")
    with open(path, "w") as file:
        file.write(text)


def watch(process, log):
    """Show that the installation lives: a turning line on a terminal, a line a minute elsewhere."""
    started, turn, told = time.time(), 0, 0
    live = sys.stdout.isatty()
    while process.poll() is None:
        time.sleep(0.2)
        seconds = int(time.time() - started)
        turn += 1
        if live:
            width = shutil.get_terminal_size().columns - 1
            line = "{0} {1}:{2:02d}  {3}".format("|/-\\"[turn % 4], seconds // 60, seconds % 60, last_line(log))
            print("\r" + line[:width].ljust(width), end="", flush=True)
        elif seconds // 60 > told:
            told = seconds // 60
            print("  {0} min: {1}".format(told, last_line(log)), flush=True)
    if live:
        print("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r", end="", flush=True)


def last_line(log):
    with open(log, errors="replace") as file:
        file.seek(max(0, os.path.getsize(log) - 4000))
        lines = [line.strip() for line in file.read().splitlines()]
    lines = [line for line in lines if line and not line.startswith("WARNING")]
    return lines[-1][:100] if lines else ""


@contextlib.contextmanager
def signals_held():
    """Hold back Ctrl-C and SIGTERM while a child starts: before we know of it, nobody would end it."""
    held = []
    before = [(number, signal.signal(number, lambda *_: held.append(1))) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    if held:
        raise KeyboardInterrupt


def stop(process):
    """End a child that still runs, and wait until it has; None where there is none yet."""
    if process is not None and process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def explain_pip(log):
    with open(log, errors="replace") as file:
        text = file.read()
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("WARNING: Location")]
    said = "\n".join("  " + line for line in lines[-12:])
    if "No space left" in text:
        reason = "The disk is full. Free about {0} GiB and run the same command again.".format(NEEDED_BYTES // GIB)
    elif any(sign in text for sign in ("NewConnectionError", "NameResolutionError", "Max retries", "timed out")):
        reason = (
            "pip cannot reach the package index. Check the network (behind a proxy: set HTTPS_PROXY; with a mirror of\n"
            "your own: PIP_INDEX_URL), then run the same command again: what was downloaded is kept."
        )
    elif "No matching distribution" in text:
        reason = (
            "A package has no version for this Python ({0}.{1}) or machine. Python 3.11, 3.12 and 3.13 on x86-64\n"
            "are tried; delete .venv and run start.py with one of those.".format(*sys.version_info[:2])
        )
    else:
        reason = "Run the same command again; should it fail at the same place, delete .venv first."
    return "pip could not install trtkit's packages. It said at the end:\n{0}\n(all of it: {1})\n{2}".format(
        said, log, reason
    )


def check_disk(place):
    """Say before the download, not after it, that there is not enough room."""
    have = used_bytes(place.venv)
    free = shutil.disk_usage(place.root).free
    if free + have < NEEDED_BYTES:
        raise Stop(
            "Not enough room: {0} has {1:.1f} GiB free, and setting up takes about {2} GiB while it runs\n"
            "(6.3 GiB stay; PyTorch brings the CUDA libraries with it). Free some, or move this folder to another"
            " disk,\nand run the same command again.".format(place.root, free / GIB, NEEDED_BYTES // GIB)
        )


def used_bytes(folder):
    total = 0
    for path, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(path, name)).st_size
    return total


@contextlib.contextmanager
def only_one(place):
    """Hold the lock of this checkout; the kernel frees it when the holders end, however they end."""
    with open(os.path.join(place.root, ".start.lock"), "a+") as file:
        if not locked(file):
            file.seek(0)
            raise Stop(
                "Another start.py is setting up this folder (process {0}).\n"
                "Wait until it is done, then run the same command again.".format(file.read().strip() or "unknown")
            )
        file.truncate(0)
        file.write("{0}\n".format(os.getpid()))
        file.flush()
        yield file.fileno()


def locked(file):
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def environment(place):
    """The variables for a child: nothing of another Python installation leaks into .venv."""
    names = ("PYTHONPATH", "PYTHONHOME", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "VIRTUAL_ENV", "CONDA_PREFIX")
    result = {name: value for name, value in os.environ.items() if name not in names}
    result["VIRTUAL_ENV"] = place.venv
    result["PATH"] = os.path.join(place.venv, "bin") + os.pathsep + result.get("PATH", os.defpath)
    result["PYTHONNOUSERSITE"] = "1"
    return result


def run(command, place, **variables):
    """Run a command in the foreground; its exit status."""
    sys.stdout.flush()
    process = None
    try:
        with signals_held():
            process = subprocess.Popen(command, cwd=place.root, env=dict(environment(place), **variables))
        return process.wait()
    finally:
        stop(process)


# --- start.py test ---------------------------------------------------------------------------------------------------


def test_parts(place):
    """What `test` runs: (name, program of .venv/bin and its arguments)."""
    side_by_side = ["-n", str(max(1, min(os.cpu_count() or 1, 4))), "--dist"]  # each takes up to 2 GB of memory
    # without the options of pyproject.toml, which are for the tests of the package
    nbval = ["pytest", "-o", "addopts=", "--nbval", "--nbval-current-env", "-q"]
    nbval += ["--nbval-sanitize-with", os.path.join("notebooks", "sanitize.cfg")]
    return [
        ("lint (ruff check)", ["ruff", "check", "."]),
        ("types (mypy)", ["mypy"]),
        ("import direction (import-linter)", ["lint-imports"]),
        ("package tests (pytest)", ["pytest", "-q", "--durations", "10"] + side_by_side + ["worksteal"]),
        ("notebooks (nbval)", nbval + side_by_side + ["loadfile", "notebooks"]),  # a notebook's cells stay together
    ]


def run_tests(place):
    rows = []
    for name, command in test_parts(place):
        print("\n=== {0} ===".format(name))
        started = time.time()
        report = os.path.join(place.venv, "report.xml")
        with contextlib.suppress(OSError):
            os.remove(report)
        counted = ["--junit-xml", report] if command[0] == "pytest" else []
        program = os.path.join(place.venv, "bin", command[0])
        code = run([program] + command[1:] + counted, place)
        rows.append((name, code, time.time() - started, count(report)))
    return summarise(rows)


def count(report):
    """(tests passed, tests failed, tests skipped) out of a JUnit file; zeros when there is none."""
    import xml.etree.ElementTree as tree

    try:
        suites = list(tree.parse(report).getroot().iter("testsuite"))
    except (IOError, tree.ParseError):
        return 0, 0, 0
    total, bad, skipped = 0, 0, 0
    for suite in suites:
        total += int(suite.get("tests", 0))
        bad += int(suite.get("failures", 0)) + int(suite.get("errors", 0))
        skipped += int(suite.get("skipped", 0))
    return total - bad - skipped, bad, skipped


def summarise(rows):
    """Print the closing table and the counts; 1 if any part failed, else 0."""
    width = max(len(row[0]) for row in rows)
    print("\n{0}  result      time".format("part".ljust(width)))
    for name, code, seconds, _ in rows:
        print("{0}  {1}  {2:6.1f} s".format(name.ljust(width), "ok    " if code == 0 else "FAILED", seconds))
    print("{0}          {1:6.1f} s".format("all".ljust(width), sum(row[2] for row in rows)))
    failed_parts = [row[0] for row in rows if row[1] != 0]
    if failed_parts:
        print("failed: {0}".format(", ".join(failed_parts)))
    passed, failed, skipped = (sum(row[3][i] for row in rows) for i in range(3))
    print("{0} passed, {1} failed, {2} skipped in {3:.0f} s".format(passed, failed, skipped, sum(r[2] for r in rows)))
    return 1 if failed_parts else 0


def interrupted(*_):
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupted)
    try:
        sys.exit(main())
    except Stop as problem:
        print("\n{0}".format(problem), file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\nStopped. To go on, run the same command again.", file=sys.stderr)
        sys.exit(130)
