"""Find where the numbers inside a low-precision graph leave the range of their type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum

import numpy as np
import onnx_ir as ir

from trtkit.graph.taps import Taps
from trtkit.model import Model
from trtkit.passes.common import array, constant, infer_shapes, working_copy
from trtkit.quant.precision_rules import FLOAT, LOW, STANDS_FOR_INFINITY

_AT_ONCE = 128  # tensors in memory at a time
_FLOATS = (FLOAT, *LOW.values())


class _Extreme(IntEnum):
    """The worst that a tensor holds."""

    NOTHING = 0
    END_OF_RANGE = 1  # finite, but as large as the type allows: masks say "minus infinity" so
    INFINITY = 2
    NAN = 3


def overflowing(model: Model, samples: Sequence[Mapping[str, np.ndarray]]) -> list[str]:
    """Names of float16 and bfloat16 tensors in which infinity or NaN arises on the samples.

    ONNX Runtime on the CPU computes FP16 graphs in float32 and leaves out casts that cancel each other, so its outputs
    can be right where a GPU overflows. As an extra output a tensor is really converted, and shows what it cannot hold.

    What is found is where it begins: a node gives out infinity though its inputs are ordinary numbers, or NaN though
    no input is NaN. Not counted are tensors that a mask makes infinite (an input is infinite already, or as large as
    its type allows), and those that are not finite in `model.origin` either, if they have the same name there.
    Not found are rounding errors, underflow, and overflow inside of a node or inside bodies of If, Loop and Scan.

    Args:
        model: any model; one without low-precision tensors has none that overflow.
        samples: inputs of the model, by name. All are run about once per 128 tensors, one after the other.

    Raises:
        ModelError: a sample does not fit, or ONNX Runtime cannot run the graph.

    >>> import onnx, trtkit
    >>> half = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float16[2] x) => (float16[2] y) {a = Mul(x, x)  b = Sqrt(a)  y = Neg(b)}'''))
    >>> overflowing(half, [{"x": np.array([1, 300], np.float16)}])
    ['a']
    """
    graph = working_copy(model)
    infer_shapes(graph)
    low = {v.name or "": v for node in graph.graph for v in node.outputs if v.dtype in LOW.values()}
    if not low:
        return []
    read = {v.name or "" for out in low.values() for v in _inputs(out) if constant(v) is None}
    taps = Taps(model, dict.fromkeys([*low, *read]))
    found: dict[str, None] = {}
    for sample in samples:
        extremes = {name: _extreme(tensor) for name, tensor in _each(taps, sample)}
        arising = [name for name, value in low.items() if _arises(value, extremes)]
        found.update(dict.fromkeys(set(arising) - _not_finite_before(model, arising, sample)))
    return [name for name in low if name in found]


def _each(taps: Taps, sample: Mapping[str, np.ndarray]) -> Iterator[tuple[str, np.ndarray]]:
    for i in range(0, len(taps.names), _AT_ONCE):
        yield from taps.run(sample, taps.names[i : i + _AT_ONCE]).items()


def _inputs(value: ir.Value) -> list[ir.Value]:
    """The floating-point tensors that a computed value is computed from."""
    node = value.producer()
    return [v for v in node.inputs if v is not None and v.dtype in _FLOATS] if node is not None else []


def _extreme(tensor: np.ndarray) -> _Extreme:
    largest = float(np.abs(tensor).max(initial=0))
    if np.isnan(largest):
        return _Extreme.NAN
    if np.isinf(largest):
        return _Extreme.INFINITY
    limit = np.finfo(np.float16).max if tensor.dtype == np.float16 else STANDS_FOR_INFINITY
    return _Extreme.END_OF_RANGE if largest >= limit else _Extreme.NOTHING


def _arises(value: ir.Value, extremes: Mapping[str, _Extreme]) -> bool:
    """Whether a value is not finite, and its inputs do not explain it."""
    have = extremes[value.name or ""]
    node = value.producer()
    if have < _Extreme.INFINITY or node is None or node.op_type in ("Constant", "ConstantOfShape"):
        return False
    worst = _Extreme.NOTHING
    for each in _inputs(value):
        data = array(each)
        worst = max(worst, extremes[each.name or ""] if data is None else _extreme(data))
    return worst < _Extreme.NAN if have == _Extreme.NAN else worst == _Extreme.NOTHING


def _not_finite_before(model: Model, names: Sequence[str], sample: Mapping[str, np.ndarray]) -> set[str]:
    """Those of the names that the model as it was loaded has as well, and that are not finite there."""
    origin = model.origin
    there = {v.name for node in origin.ir.graph for v in node.outputs}
    names = [name for name in names if name in there]
    if origin is model or not names:
        return set()
    inputs = {info.name: np.asarray(sample[info.name]).astype(info.dtype) for info in origin.inputs}
    before = Taps(origin, names).run(inputs)
    return {name for name, tensor in before.items() if _extreme(tensor) >= _Extreme.INFINITY}
