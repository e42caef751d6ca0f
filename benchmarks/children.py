"""What benchmarks measure, in processes of their own that take turns: whatever happens to one, the others go on."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


class Failed(Exception):
    """A contender gave no answer; says why."""


class Child:
    """A module in a process of its own, which prints a JSON object at its start, for each line and at the end."""

    def __init__(self, module: str, *arguments: object, python: str = sys.executable) -> None:
        command = [python, "-m", module, *map(str, arguments)]
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `stop`
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True, env=ENVIRONMENT
        )

    def answer(self, timeout: float) -> dict[str, Any]:
        """What it prints next. Raises Failed if that takes too long, or if it ends before."""
        out = self._process.stdout
        assert out is not None
        if not select.select([out], [], [], timeout)[0]:
            self.stop()
            raise Failed(f"took more than {timeout:.0f} s")
        line = out.readline()
        if not line.endswith("\n"):
            code = self._process.wait()
            self._errors.seek(0)
            last = [line for line in self._errors.read().strip().splitlines() if line.strip()][-1:]
            raise Failed(f"exit code {code}: {''.join(last)[:300]}")
        result: dict[str, Any] = json.loads(line)
        return result

    def ask(self, timeout: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then it has ended, and `answer` says why
            self._process.stdin.write("\n")
            self._process.stdin.flush()
        return self.answer(timeout)

    def end(self, timeout: float) -> dict[str, Any]:
        """Its last answer."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        return self.answer(timeout)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                stream.close()


def take_turns(children: dict[str, Child], turns: int, timeout: float, enough: float) -> dict[str, dict[str, Any]]:
    """What children answer when they are asked in turns, and at their end; ends them.

    Args:
        turns: how often each is asked.
        timeout: seconds for one answer.
        enough: whoever took so many seconds altogether gets no further turn.

    Returns:
        For each child its answers' numbers as lists, but of "peak_bytes" the first alone, and what it says at its end;
        or {"failed": why}.
    """
    results: dict[str, dict[str, Any]] = {name: {"seconds": [], "cpu": []} for name in children}

    def each(step: Callable[[str, Child], object]) -> None:
        for name, child in children.items():
            if "failed" not in results[name]:
                try:
                    step(name, child)
                except Failed as why:
                    results[name] = {"failed": str(why)}

    def turn(name: str, child: Child) -> None:
        mine = results[name]
        if sum(mine["seconds"]) > enough:
            return
        found = child.ask(timeout)
        mine.setdefault("peak_bytes", found.pop("peak_bytes"))
        for what, value in found.items():
            mine.setdefault(what, []).append(value)

    try:
        each(lambda _, child: child.answer(timeout))
        for _ in range(turns):
            each(turn)
        each(lambda name, child: results[name].update(child.end(timeout)))
    finally:
        for child in children.values():
            child.stop()
    return results


def in_memory() -> str | None:
    """A folder whose files lie in memory, or None for the usual one."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
