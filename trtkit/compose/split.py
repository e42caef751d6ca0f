"""One model cut at tensors into parts that run one after the other."""

from __future__ import annotations

import difflib
import time
from collections.abc import Iterator, Sequence

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.shapes import has_body
from trtkit.model import Model, Step
from trtkit.passes.common import infer_shapes, working_copy
from trtkit.passes.dead_code import RemoveDeadCode

Cut = str | Sequence[str]


def split(model: Model, at: Sequence[Cut]) -> tuple[Model, ...]:
    """Cut a model at tensors; n cuts make n + 1 parts, each a valid model.

    Running the parts in sequence, each fed with the outputs of those before and the model's own inputs, computes what
    the whole does. Outputs of the model stay outputs of the part that computes them. A part whose tensors exist in the
    model's origin has that part of the origin as its own; else it is its own origin.

    Args:
        at: the cuts in the order of the graph. A cut is the name of a tensor, or several names for one cut through
            parallel branches.

    Raises:
        ModelError: no such tensor; a cut that does not separate (names the path that goes around it); cuts out of
            order; a tensor without type and shape.

    >>> import onnx
    >>> from trtkit.importers import load
    >>> whole = load(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => '
    ...     '(float[n, 4] y) {a = Abs(x)  b = Neg(a)  y = Relu(b)}'))
    >>> for part in split(whole, ["a", "b"]):
    ...     print(part)
    Model('g_1': 1 node, 0 weights in 0 bytes, opset 20; x float32 (n, 4) -> a float32 (n, 4))
    Model('g_2': 1 node, 0 weights in 0 bytes, opset 20; a float32 (n, 4) -> b float32 (n, 4))
    Model('g_3': 1 node, 0 weights in 0 bytes, opset 20; b float32 (n, 4) -> y float32 (n, 4))
    """
    cuts = [(cut,) if isinstance(cut, str) else tuple(cut) for cut in ([at] if isinstance(at, str) else at)]
    start = time.perf_counter()
    whole = with_shapes(model)
    plan = _plan(model.name, whole.graph, cuts)
    return tuple(
        part_of(model, whole, inputs, outputs, f"{model.name}_{number}", start)
        for number, (inputs, outputs) in enumerate(plan, 1)
    )


def until(model: Model, at: str) -> Model:
    """The part of a model that computes the tensor `at`, under the model's own name: a backbone without its head.

    Raises:
        ModelError: there is no such tensor, or its type and shape cannot be inferred.
    """
    start = time.perf_counter()
    whole = with_shapes(model)
    tensor = _tensor(model.name, _values(whole.graph), at)
    needed = _upstream([tensor], stop=[])
    inputs = [str(v.name) for v in whole.graph.inputs if v in needed]
    return part_of(model, whole, inputs, [at], model.name, start)


def with_shapes(model: Model) -> ir.Model:
    """A copy of a model's graph in which all is stated that inference finds out."""
    graph = working_copy(model)
    infer_shapes(graph)
    return graph


def part_of(
    model: Model, whole: ir.Model, inputs: Sequence[str], outputs: Sequence[str], name: str, start: float
) -> Model:
    """The part of `whole`, a copy of the model's graph, that computes `outputs` from `inputs`, as a Model."""
    graph = extract(whole, inputs, outputs, name)
    after = sum(1 for _ in graph.graph.all_nodes())
    detail = f"{', '.join(inputs)} -> {', '.join(outputs)}"
    step = Step("split", detail, model.node_count, after, time.perf_counter() - start)
    origin = _part_of_origin(model, inputs, outputs, name)
    return Model(graph, name, history=(*model.history, step), origin=origin, precision=model.precision)


def extract(whole: ir.Model, inputs: Sequence[str], outputs: Sequence[str], name: str) -> ir.Model:
    """The part of a graph that computes `outputs` from `inputs`, as a graph of its own with the same names."""
    part = whole.clone()
    graph = part.graph
    values = _values(graph)
    for given in inputs:
        old = values[given]
        if old.is_graph_input():
            continue
        new = ir.Value(name=given, shape=old.shape, type=old.type)
        old.replace_all_uses_with(new, replace_graph_outputs=True)
        old.name = f"{given}/before_the_cut"
        graph.inputs.append(new)
        values[given] = new
    graph.outputs.clear()
    graph.outputs.extend(values[wanted] for wanted in outputs)
    graph.name = name
    RemoveDeadCode()(part)
    kept = {v.name: v for v in graph.inputs}
    graph.inputs.clear()
    graph.inputs.extend(kept[name] for name in inputs)
    return part


def _plan(owner: str, graph: ir.Graph, cuts: Sequence[tuple[str, ...]]) -> list[tuple[list[str], list[str]]]:
    """Names of inputs and outputs of every part."""
    values = _values(graph)
    targets = [[_tensor(owner, values, name) for name in cut] for cut in cuts]
    changing = varying(graph)
    before: set[ir.Value] = set()  # what the parts so far compute or read
    left = list(graph.outputs)
    plan = []
    for number in range(len(cuts) + 1):
        given = targets[number - 1] if number else []
        cut = targets[number] if number < len(cuts) else []
        behind = _upstream(cut, stop=given) if cut else None
        mine = [v for v in left if behind is None or v in behind or v in given]
        left = [v for v in left if v not in mine]
        wanted = list(dict.fromkeys([*cut, *(v for v in mine if v not in given)]))
        needed = _upstream(wanted, stop=given)
        _check_separates(owner, number, given, wanted, needed, before)
        own = [v for v in graph.inputs if v in needed and v not in given]
        plan.append(([str(v.name) for v in (*given, *own)], [str(v.name) for v in wanted]))
        before |= {v for v in needed if v in changing}
    return plan


def _check_separates(
    owner: str,
    number: int,
    given: Sequence[ir.Value],
    wanted: Sequence[ir.Value],
    needed: dict[ir.Value, ir.Value | None],
    before: set[ir.Value],
) -> None:
    """A part may read its cut and inputs that no part before it reads; all else comes around the cut."""
    if not wanted:
        raise ModelError(f"Nothing in {owner!r} comes after the cut at {[v.name for v in given]}.")
    for value in needed:
        if value in before and value not in given:
            path, here = [], needed[value]
            while here is not None:
                producer = here.producer()
                path.append(producer.name if producer is not None else here.name)
                here = needed[here]
            raise ModelError(
                f"A cut at {[v.name for v in given]} does not separate {owner!r}: {value.name!r}, there before it, "
                f"reaches {wanted[-1].name!r} around it, through {' -> '.join(map(str, path[:8]))}. Cut that path "
                "as well, by giving both tensors as one cut, or cut where the branches have come together."
            )
    unread = [v.name for v in given if v not in needed]
    if unread:
        raise ModelError(
            f"Cut {number} of {owner!r}: nothing that comes after it reads {unread}. Are the cuts in order?"
        )


def _upstream(values: Sequence[ir.Value], stop: Sequence[ir.Value]) -> dict[ir.Value, ir.Value | None]:
    """All that the values depend on, each with the value through which it was found; not further than `stop`."""
    found: dict[ir.Value, ir.Value | None] = dict.fromkeys(values)
    todo = [v for v in values if v not in stop]
    while todo:
        value = todo.pop()
        node = value.producer()
        for operand in reads(node) if node is not None else ():
            if operand not in found:
                found[operand] = value
                if operand not in stop:
                    todo.append(operand)
    return found


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """What a node reads, and what the bodies inside it read of the graph around them."""
    yield from (value for value in node.inputs if value is not None)
    if has_body(node):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                read = (value for inner in body.all_nodes() for value in inner.inputs if value is not None)
                yield from (value for value in (*read, *body.outputs) if value.graph is node.graph)


def varying(graph: ir.Graph) -> set[ir.Value]:
    """The values that depend on the graph's inputs; the others may be copied into several parts."""
    found = {value for value in graph.inputs if not value.is_initializer()}
    for node in graph:
        if any(value in found for value in reads(node)):
            found.update(node.outputs)
    return found


def _tensor(owner: str, values: dict[str, ir.Value], name: str) -> ir.Value:
    if name not in values:
        close = difflib.get_close_matches(name, values, n=3, cutoff=0.3)
        raise ModelError(f"{owner!r} has no tensor {name!r} to cut at. Near it: {', '.join(close) or 'nothing'}.")
    value = values[name]
    if value.producer() is None:
        raise ModelError(f"{name!r} is an input or a weight of {owner!r}: there is nothing before it to cut off.")
    if value.dtype is None or value.shape is None:
        raise ModelError(f"Type and shape of {name!r} in {owner!r} cannot be inferred, and an input needs both.")
    return value


def _values(graph: ir.Graph) -> dict[str, ir.Value]:
    """The values of a graph, not those inside bodies, by name."""
    computed = (value for node in graph for value in node.outputs)
    return {v.name: v for v in (*graph.inputs, *graph.initializers.values(), *computed) if v.name}


def _part_of_origin(model: Model, inputs: Sequence[str], outputs: Sequence[str], name: str) -> Model | None:
    """The same part of the model's origin, where its tensors are there and nothing comes around them."""
    if model.origin is model:
        return None
    origin = with_shapes(model.origin)
    values = _values(origin.graph)
    if any(key not in values or values[key].dtype is None or values[key].shape is None for key in (*inputs, *outputs)):
        return None
    needed = _upstream([values[key] for key in outputs], stop=[values[key] for key in inputs])
    if any(v.is_graph_input() and not v.is_initializer() and v.name not in inputs for v in needed):
        return None
    return Model(extract(origin, inputs, outputs, name), name)
