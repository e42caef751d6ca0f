"""Optimization profiles: for every input that can change, the least, the best and the largest shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np

from trtkit.engine.computable import Computable
from trtkit.errors import BuildError, ModelError
from trtkit.model import TensorInfo

Shape: TypeAlias = Sequence[int]
Shapes: TypeAlias = Mapping[str, Shape | Sequence[Shape]] | Sequence[Mapping[str, Shape | Sequence[Shape]]]
Profile: TypeAlias = dict[str, list[list[int]]]

BATCH = (1, 8, 32)  # least, best and largest batch when nobody says otherwise


def profiles_for(model: Computable, shapes: Shapes | None = None) -> list[Profile]:
    """The profiles to build with: one for each dict in `shapes`, or one with the default batches.

    Raises:
        BuildError: a name or shape does not fit the model, or a changeable dimension other than the batch is left open.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'))
    >>> profiles_for(model)
    [{'x': [[1, 4], [8, 4], [32, 4]]}]
    >>> profiles_for(model, {"x": (2, 4)})
    [{'x': [[2, 4], [2, 4], [2, 4]]}]
    """
    wanted = [shapes] if isinstance(shapes, Mapping) else list(shapes or [{}])
    return [_profile(model, one) for one in wanted]


def _profile(model: Computable, shapes: Mapping[str, Shape | Sequence[Shape]]) -> Profile:
    names = [info.name for info in model.inputs]
    for name in shapes:
        if name not in names:
            raise BuildError(f"{model.name!r} has no input {name!r} to give a shape to; its inputs are {names}.")
    profile = {}
    for info in model.inputs:
        if info.name in shapes:
            profile[info.name] = _three(info, shapes[info.name])
        elif any(isinstance(dim, str) for dim in info.shape):
            profile[info.name] = _default(info)
    return profile


def _three(info: TensorInfo, given: Shape | Sequence[Shape]) -> list[list[int]]:
    try:
        array = np.asarray(given)  # numbers alone are one shape; rows of numbers are several
    except ValueError:  # rows of different lengths
        array = np.empty(0)
    if array.ndim not in (1, 2) or not array.size or array.dtype.kind != "i":
        raise BuildError(
            f"Input {info}: {given!r} is no shape. Give whole numbers, as in (1, 3, 224, 224), or three such shapes."
        )
    three = np.broadcast_to(array, (3, array.size)) if array.ndim == 1 else array
    if len(three) != 3:
        raise BuildError(f"Input {info}: give one shape, or three (least, best, largest), not {len(three)}.")
    least, best, most = ([int(d) for d in shape] for shape in three)
    for shape in (least, best, most):
        fits = len(shape) == len(info.shape) and all(
            d > 0 if isinstance(want, str) else d == want for d, want in zip(shape, info.shape, strict=True)
        )
        if not fits:
            raise BuildError(f"Input {info}: the shape {tuple(shape)} does not fit it.")
    if not all(a <= b <= c for a, b, c in zip(least, best, most, strict=True)):
        raise BuildError(
            f"Input {info}: every dimension must grow from least to best to largest, got "
            f"{tuple(least)}, {tuple(best)}, {tuple(most)}."
        )
    return [least, best, most]


def _default(info: TensorInfo) -> list[list[int]]:
    open_dims = [d for d in info.shape[1:] if isinstance(d, str)]
    if open_dims:
        raise BuildError(
            f"Input {info}: how long can {', '.join(map(repr, open_dims))} be? TensorRT tunes for a range: give "
            f"shapes={{{info.name!r}: (least, best, largest)}} with three full shapes."
        )
    rest = [d for d in info.shape[1:] if isinstance(d, int)]
    return [[batch, *rest] for batch in BATCH]


def check_within(profiles: list[Profile], shapes: Mapping[str, tuple[int, ...]], owner: str) -> None:
    """Raise ModelError unless some profile takes all these shapes: what a GPU refuses, the CPU refuses too."""
    for profile in profiles:
        if all(_inside(shapes[name], three) for name, three in profile.items()):
            return
    name, shape = next(iter(shapes.items()))
    ranges = "; ".join(f"{tuple(p[name][0])} to {tuple(p[name][2])}" for p in profiles if name in p)
    raise ModelError(
        f"Input {name!r} of {owner!r}: the shape {shape} is outside the engine's profile, {ranges}. Build with "
        "`shapes` that include it."
    )


def _inside(shape: tuple[int, ...], three: list[list[int]]) -> bool:
    return all(least <= d <= most for least, d, most in zip(three[0], shape, three[2], strict=True))
