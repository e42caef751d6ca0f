"""Instant checks of lesson 14's exercises."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from trtkit.bench.kernels import Span, charged_times
from trtkit.bench.roofline import Machine
from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson01, lesson14
from trtkit.engine.profile import TILE

MACHINE = Machine("a GPU", flops=700e12, bytes=3e12)
LAYERS = {"a convolution": (231e6, 0.9e6), "a sum": (0.8e6, 3.2e6), "a large product": (68e9, 101e6), "a view": (0, 0)}


def check_least(least: Callable[[float, float, Machine], Any]) -> None:
    """Lesson 14, exercise 1: the least time of a layer in microseconds, from FLOPs, bytes and a machine."""
    found = {name: number(least(*work, MACHINE), f"least for {name}") for name, work in LAYERS.items()}
    right = {name: 1e6 * MACHINE.seconds(*work) for name, work in LAYERS.items()}
    show(lesson01.against(list(LAYERS), list(right.values()), list(found.values()), "least time, µs"),
         "The least time of four layers, right and yours.")  # fmt: skip
    for name, want in right.items():
        if not np.isclose(found[name], want, rtol=1e-6, atol=1e-9):
            flops, moved = LAYERS[name]
            added = 1e6 * (flops / MACHINE.flops + moved / MACHINE.bytes)
            hint = ("arithmetic and memory work at the same time, so the longer of the two counts, not their sum"
                    if np.isclose(found[name], added) else
                    "FLOPs by FLOPs per second, bytes by bytes per second, the longer one, in µs")  # fmt: skip
            raise NotSolved(f"{name}: {want:.3g} µs, and yours is {found[name]:.3g}: {hint}.")
    print("Right: the longer of the two. Where they are equal is the ridge of the roof.")


SHAPES = {
    "first": (1, 64, 112, 112),
    "middle": (1, 256, 14, 14),
    "last": (1, 2048, 7, 7),
    "last, batch 32": (32, 2048, 7, 7),
}


def check_tiles(tiles: Callable[[tuple[int, int, int, int]], Any]) -> None:
    """Lesson 14, exercise 2: how many tiles of 128×128 the result of a convolution has."""
    found = {name: number(tiles(shape), f"tiles of {shape}") for name, shape in SHAPES.items()}
    right = {n: -(-b * h * w // TILE) * -(-c // TILE) for n, (b, c, h, w) in SHAPES.items()}
    show(lesson01.against(list(SHAPES), list(right.values()), list(found.values()), "tiles"),
         "Tiles of the results of four convolutions, right and yours.")  # fmt: skip
    for name, want in right.items():
        if found[name] != want:
            raise NotSolved(f"{name} {SHAPES[name]}: {want} tiles, and yours are {found[name]:g}. All pixels of all "
                            "pictures are rows, channels columns, and a tile that is begun counts whole.")  # fmt: skip
    print("Right: at batch 1 the last stage has work for 16 of 132 processors, at batch 32 for all.")


CALLS = {
    "one after the other": [Span("a", 0, 4), Span("b", 5, 7), Span("c", 7, 10)],
    "let in early": [Span("a", 0, 4), Span("b", 3, 8), Span("c", 7, 9)],
    "one inside another": [Span("a", 0, 9), Span("b", 2, 5), Span("c", 8, 11)],
}


def check_charged(charged: Callable[[Sequence[Span]], Any]) -> None:
    """Lesson 14, exercise 3: kernels charged so that the sum is the length of the call."""
    for name, spans in CALLS.items():
        answer = charged(list(spans))
        if answer is None or len(answer) != len(spans):
            raise NotSolved("charged(spans) returns a list with a time for each span.")
        times = [number(time, "each time") for time in answer]
        show(
            lesson14.timeline(spans, [max(0.0, time) for time in times]), f"Three kernels, {name}, as you charge them."
        )
        length = spans[-1].end - spans[0].begin
        if min(times) < 0:
            raise NotSolved(f"{name}: a negative time. A kernel that ends while another still runs costs nothing: 0.")
        if not np.isclose(sum(times), length):
            raise NotSolved(f"{name}: your times add up to {sum(times):g} µs, and the call took {length:g}. Charge "
                            "each kernel from the end of all before it to its own end.")  # fmt: skip
        if not np.allclose(times, charged_times(spans)):
            raise NotSolved(f"{name}: the sum is right, the shares are not: {charged_times(spans)} are, yours {times}.")
    print("Right: each is charged what the call would be shorter without it.")


KEY = {"gpu": "NVIDIA H100", "driver": "580.1", "plan": "c0ffee"}
DATA = b"compiled kernels\nof one plan"


def _file(data: bytes = DATA, key: dict[str, str] | None = None, digest: str = "") -> bytes:
    head = {"key": key or KEY, "sha256": digest or hashlib.sha256(data).hexdigest()}
    return json.dumps(head).encode() + b"\n" + data


def _files() -> dict[str, tuple[bytes, bytes | None]]:
    whole = _file()
    return {
        "good": (whole, DATA),
        "empty data": (_file(b""), b""),
        "another driver": (_file(key={**KEY, "driver": "590.2"}), None),
        "another plan": (_file(key={**KEY, "plan": "decaf"}), None),
        "one bit changed": (whole[:-1] + bytes([whole[-1] ^ 1]), None),
        "cut off": (whole[:-5], None),
        "cut off in the head": (whole[:20], None),
        "no such file": (b"", None),
        "somebody else's": (b"\x7fELF\x02\x01\n\x00\xff", None),
    }


def check_trusted(trusted: Callable[[bytes, dict[str, str]], Any]) -> None:
    """Lesson 14, exercise 4: the bytes of a cache file, or None where they are not to be trusted."""
    verdicts: dict[str, bool] = {}
    for name, (raw, want) in _files().items():
        try:
            verdicts[name] = trusted(raw, dict(KEY)) == want
        except Exception as error:
            raise NotSolved(f"{name}: your function raised {type(error).__name__}: {error}. A cache that cannot be "
                            "read costs a second, and must not cost the program: return None.") from error  # fmt: skip
    show(lesson01.against(list(verdicts), [1] * len(verdicts), [float(ok) for ok in verdicts.values()], "right"),
         "Nine files: which of them you judge right.")  # fmt: skip
    wrong = [name for name, ok in verdicts.items() if not ok]
    if wrong:
        verdict = "None is right here" if _files()[wrong[0]][1] is None else "its bytes are good"
        raise NotSolved(f"{wrong[0]}: {verdict}. Split at the first line break; the checksum is of what follows; every "
                        "entry of `key` has to match.")  # fmt: skip
    print("Right: trusted is only what is whole and was made for this.")
