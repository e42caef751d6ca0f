"""Random graphs full of traps, inputs that are no ordinary numbers, and the search for what shows a wrong rewrite."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

import trtkit
from trtkit.errors import TrtkitError
from trtkit.model import Model

Rewriting = Callable[[Model], Model]
Inputs = Callable[[Model, int], dict[str, np.ndarray]]
Shape = tuple[int, int, int]

_SIZE = 2  # of the three axes, equal so that a wrong order of axes still fits
UNARY = ("Relu", "Neg", "Abs", "Identity", "Transpose", "Transpose", "LeakyRelu")
_BINARY = ("Add", "Sub", "Mul", "Max")
_CONSTANTS = (("Add", 0.0), ("Mul", 0.0), ("Mul", 1.0), ("Add", -0.0), ("Sub", 0.0))


def random_graph(seed: int, unary: Sequence[str] = UNARY) -> Model:
    """A small graph of one input and a few outputs, (2, 2, 2) float32 each; the same seed gives the same graph.

    Traps: Identities of inputs and before outputs, equal nodes, nodes equal but for an attribute, two Transposes in a
    row, outputs that others read and that are computed twice, constants that seem to do nothing. `unary` are the
    operators of one input to choose from.

    >>> random_graph(0).op_counts == random_graph(0).op_counts
    True
    """
    rng = np.random.default_rng(seed)
    nodes: list[onnx.NodeProto] = []
    values = ["x"]
    for number in range(int(rng.integers(8, 18))):
        nodes.append(_node(rng, nodes, values, unary, f"t{number}"))
        values.append(f"t{number}")
    made = values[1:]
    outputs = {made[-1], *rng.choice(made, 3).tolist()}
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIZE] * 3) for name in ["x", *sorted(outputs)]]
    weights = [numpy_helper.from_array(np.array(value, np.float32), _name(value)) for value in (0.0, -0.0, 1.0)]
    graph = helper.make_graph(nodes, f"random_{seed}", ends[:1], ends[1:], weights)
    return trtkit.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def _node(
    rng: np.random.Generator, nodes: list[onnx.NodeProto], values: list[str], unary: Sequence[str], out: str
) -> onnx.NodeProto:
    """One more node: mostly new, at times one that was there, at times one that goes on from the last."""
    name = f"node_{out}"
    if nodes and rng.random() < 0.3:
        twin = onnx.NodeProto()
        twin.CopyFrom(nodes[int(rng.integers(len(nodes)))])
        twin.output[:], twin.name = [out], name
        return twin
    source = values[-1] if rng.random() < 0.6 else str(rng.choice(values))
    kind = rng.random()
    if kind < 0.2:
        op, value = _CONSTANTS[int(rng.integers(len(_CONSTANTS)))]
        return helper.make_node(op, [source, _name(value)], [out], name)
    if kind < 0.45:
        return helper.make_node(str(rng.choice(_BINARY)), [source, str(rng.choice(values))], [out], name)
    op = str(rng.choice(unary))
    attributes = {"Transpose": {"perm": rng.permutation(3).tolist()}, "LeakyRelu": {"alpha": rng.choice([0.1, 0.5])}}
    return helper.make_node(op, [source], [out], name, **attributes.get(op, {}))


def _name(value: float) -> str:
    return {"0.0": "zero", "-0.0": "minus_zero", "1.0": "one"}[str(value)]


def ordinary(model: Model, seed: int) -> dict[str, np.ndarray]:
    """Normal numbers for every input, as anybody would try first."""
    return model.random_inputs(batch=_SIZE, seed=seed)


def nasty(model: Model, seed: int) -> dict[str, np.ndarray]:
    """The same with some numbers replaced by NaN, infinities, both zeros, and the largest and least of float32.

    >>> bool(np.isnan([nasty(random_graph(0), seed)["x"] for seed in range(20)]).any())
    True
    """
    rng = np.random.default_rng(seed)
    hard = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, -1e-45], np.float32)
    inputs = ordinary(model, seed)
    for array in inputs.values():
        chosen = rng.random(array.shape) < 0.5
        array[chosen] = rng.choice(hard, int(chosen.sum()))
    return inputs


class Difference(NamedTuple):
    """The first graph of a search on which a rewrite was wrong: after how many, which, and in what."""

    tried: int
    model: Model
    what: str


def search(rewrite: Rewriting, inputs: Inputs = nasty, models: Iterable[Model] | int = 200) -> Difference | None:
    """Try a rewrite on random graphs (or on `models`) until one comes out different; None where none does.

    >>> search(lambda model: model, models=3) is None
    True
    """
    graphs = (random_graph(seed) for seed in range(models)) if isinstance(models, int) else models
    for tried, model in enumerate(graphs, 1):
        if what := difference(model, rewrite, inputs(model, tried)):
            return Difference(tried, model, what)
    return None


def caught(rewrite: Rewriting, inputs: Inputs, graphs: int = 100, *, bits: bool = True) -> int:
    """On how many random graphs a rewrite shows that it is wrong."""
    models = (random_graph(seed) for seed in range(graphs))
    return sum(bool(difference(model, rewrite, inputs(model, i), bits=bits)) for i, model in enumerate(models, 1))


def difference(model: Model, rewrite: Rewriting, inputs: dict[str, np.ndarray], *, bits: bool = True) -> str:
    """What a rewrite changed, in a sentence: the interface, or an output by ONNX's own reference; "" if nothing.

    With `bits` 0.0 is not -0.0; without, numbers that are close are equal. NaN equals NaN in both.
    """
    try:
        after = rewrite(model).to_proto()
        onnx.checker.check_model(after, full_check=True)
    except (TrtkitError, ValueError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        return f"the graph is broken: {' '.join(str(error).split())[:160]}"
    names = [output.name for output in model.outputs]
    if (now := [output.name for output in after.graph.output]) != names:
        return f"the outputs were called {names} and are called {now}"
    with np.errstate(all="ignore"):
        wanted, given = (ReferenceEvaluator(proto).run(None, inputs) for proto in (model.to_proto(), after))
    for name, a, b in zip(names, wanted, given, strict=True):
        if a.shape != b.shape:
            return f"output {name!r} had the shape {a.shape} and has {b.shape}"
        wrong = np.argwhere(~(_same_bits(a, b) if bits else np.isclose(a, b, equal_nan=True)))
        if wrong.size:
            place = tuple(int(i) for i in wrong[0])
            return f"output {name!r} was {a[place]} and is {b[place]} at {place}"
    return ""


def _same_bits(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a == b) & (np.signbit(a) == np.signbit(b))) | (np.isnan(a) & np.isnan(b))
