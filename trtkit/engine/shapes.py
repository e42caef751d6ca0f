"""Optimization profiles: for every input that can change, the least, the best and the largest shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias, cast

from trtkit.errors import BuildError
from trtkit.model import Model, TensorInfo

Shape: TypeAlias = Sequence[int]
Shapes: TypeAlias = Mapping[str, Shape | Sequence[Shape]] | Sequence[Mapping[str, Shape | Sequence[Shape]]]
Profile: TypeAlias = dict[str, list[list[int]]]

BATCH = (1, 8, 32)  # least, best and largest batch when nobody says otherwise


def profiles_for(model: Model, shapes: Shapes | None = None) -> list[Profile]:
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


def _profile(model: Model, shapes: Mapping[str, Shape | Sequence[Shape]]) -> Profile:
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
    three = cast("list[Shape]", [given] * 3 if isinstance(given[0], int) else list(given))
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
