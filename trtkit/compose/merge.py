"""Several models in one graph: one engine, one call, and what they have in common only once."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from trtkit.compose.align import aligned, named, separate_dims, separate_names
from trtkit.compose.ends import End, Ties, ends_of, find, fits
from trtkit.errors import ModelError
from trtkit.model import Model, Step
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.dedup import ShareInitializers

Name = tuple[str, str]  # (model, name of its input or output)
Share = bool | Mapping[str, Mapping[str, str]]
# from the least to the most tolerance that verification grants
_PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8", "int4")


def merge(
    models: Mapping[str, Model] | Sequence[Model],
    *,
    share_inputs: Share = True,
    share_dims: Collection[str] = ("batch",),
    connect: Mapping[Name, Name] | None = None,
    keep_connected: bool = False,
    name: str | None = None,
) -> Model:
    """Put several models into one graph that has all their inputs and all their outputs.

    - **Inputs** of the same name, type and fitting shape become one. `share_inputs=False` keeps them apart; a mapping
      `{"photo": {"cats": "x", "dogs": "data"}}` says which of which model become one, and what it is called.
    - **Names** that occur in more than one model get the model's name in front, in each: `cats/conv1`, `dogs/conv1`.
      That holds for values, nodes, weights, inputs, outputs and changeable dimensions; `share_dims` are exempt, and
      dimensions of a shared input become one.
    - **Weights** that are equal are kept once. **Opsets** are lifted to the newest by ONNX's version converter.

    Args:
        models: by name, or a sequence whose models go by their own names.
        connect: {(model, input): (model, output)}: inputs that another model computes. Order is found by itself.
        keep_connected: leave outputs that were connected among the outputs.
        name: of the whole; by default the parts' names with + between them.

    Returns:
        A model whose `origin` is the merger of the parts' origins, so that an engine is verified against those.

    Raises:
        ModelError: no model; inputs that should be shared or connected do not exist or do not fit; models feed each
            other in a circle; opsets cannot be brought to one.

    >>> import onnx
    >>> from trtkit.importers import load
    >>> text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = %s(x)}'
    >>> parts = {op: load(onnx.parser.parse_model(text % op)) for op in ("Abs", "Neg")}
    >>> merge(parts)
    Model('Abs+Neg': 2 nodes, 0 weights in 0 bytes, opset 20; x float32 (n, 4) -> Abs/y float32 (n, 4), Neg/y ...)
    >>> merge(parts, connect={("Neg", "x"): ("Abs", "y")}).op_counts
    {'Abs': 1, 'Neg': 1}
    """
    parts, start = named(models), time.perf_counter()
    if not parts:
        raise ModelError("merge needs at least one model, and got none.")
    graph = _merged(parts, share_inputs, share_dims, connect or {}, keep_connected)
    title = name or "+".join(parts)
    shared = sum(len(part.ir.graph.initializers) for part in parts.values()) - len(graph.graph.initializers)
    inputs = len(graph.graph.inputs)
    detail = f"{', '.join(parts)}; {inputs} input{'s' * (inputs != 1)}, {max(shared, 0)} weights shared"
    origin = None
    if any(part.origin is not part for part in parts.values()):
        origins = {key: part.origin for key, part in parts.items()}
        origin = Model(_merged(origins, share_inputs, share_dims, connect or {}, keep_connected), title)
    return joined(list(parts.values()), graph, title, "merge", detail, start, origin)


def joined(
    parts: Sequence[Model], graph: ir.Model, name: str, step: str, detail: str, start: float, origin: Model | None
) -> Model:
    """A Model made out of several: the histories of all parts, then one Step of its own.

    Its precision is the lowest of the parts', since verification tolerates what the least exact part needs.
    """
    graph.graph.name = name
    before = sum(part.node_count for part in parts)
    after = sum(1 for _ in graph.graph.all_nodes())
    history = tuple(entry for part in parts for entry in part.history)
    precision = max((part.precision for part in parts), key=_PRECISIONS.index)
    done = Step(step, detail, before, after, time.perf_counter() - start)
    return Model(graph, name, history=(*history, done), origin=origin, precision=precision)


def _merged(
    parts: Mapping[str, Model],
    share: Share,
    share_dims: Collection[str],
    connect: Mapping[Name, Name],
    keep_connected: bool,
) -> ir.Model:
    graphs = aligned(parts)
    links = [(find(graphs, target, "input"), find(graphs, source, "output")) for target, source in connect.items()]
    groups = _groups(graphs, share, taken=[target.value for target, _ in links])
    ties = Ties(graphs)
    for target, source in links:
        if not fits(target.value, source.value):
            raise ModelError(f"Input {target} cannot be fed from output {source}: their types or shapes differ.")
        ties.tie(source, target)
    for group in groups.values():
        for other in group[1:]:
            ties.tie(group[0], other)
    separate_dims(graphs, share_dims, ties.held)
    for target, _ in links:
        target.value.name = f"{target.model}/{target.value.name}/connected"  # goes: it shall not count as a clash
    separate_names(graphs, reserved=groups)
    for name, group in groups.items():
        _make_one(name, group, graphs)
    whole = _one_graph(graphs)
    for target, source in links:
        target.value.replace_all_uses_with(source.value, replace_graph_outputs=True)
        whole.graph.inputs.remove(target.value)
    if not keep_connected:
        _drop_outputs(whole.graph, [source.value for _, source in links])
    _sort(whole.graph)
    ShareInitializers()(whole)
    RemoveDeadCode()(whole)
    return whole


def _groups(graphs: Mapping[str, ir.Model], share: Share, taken: Sequence[ir.Value]) -> dict[str, list[End]]:
    """The inputs that become one, by the name it will have; `taken` are fed by another model."""
    if isinstance(share, Mapping):
        groups = {
            name: [find(graphs, (model, value), "input") for model, value in members.items()]
            for name, members in share.items()
        }
        for name, group in groups.items():
            for other in group[1:]:
                if not fits(group[0].value, other.value):
                    raise ModelError(f"{group[0]} and {other} cannot both be the input {name!r}: they do not fit.")
        return {name: group for name, group in groups.items() if group}
    by_name: dict[str, list[End]] = {}
    for model, graph in graphs.items() if share else ():
        for value in ends_of(graph.graph, "input"):
            if not any(value is other for other in taken):
                by_name.setdefault(str(value.name), []).append(End(model, value))
    alike = {name: [e for e in group if fits(group[0].value, e.value)] for name, group in by_name.items()}
    return {name: group for name, group in alike.items() if len(group) > 1}


def _make_one(name: str, group: list[End], graphs: Mapping[str, ir.Model]) -> None:
    """Let all models of a group read the first one's input. A number in any of their shapes holds for all."""
    first = group[0].value
    first.name = name
    for other in group[1:]:
        pairs = zip(first.shape or (), other.value.shape or (), strict=True)
        first.shape = ir.Shape([x if isinstance(x, int) or not isinstance(y, int) else y for x, y in pairs])
        other.value.replace_all_uses_with(first, replace_graph_outputs=True)
        graphs[other.model].graph.inputs.remove(other.value)


def _one_graph(graphs: Mapping[str, ir.Model]) -> ir.Model:
    """All nodes, weights, inputs and outputs in one graph; the graphs are taken apart for it."""
    inputs: list[ir.Value] = []
    outputs: list[ir.Value] = []
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []
    opsets: dict[str, int] = {}
    functions: list[ir.Function] = []
    for each in graphs.values():
        graph = each.graph
        inputs.extend(graph.inputs)
        outputs.extend(graph.outputs)
        nodes.extend(graph)
        weights.extend(graph.initializers.values())
        graph.inputs.clear()
        graph.outputs.clear()
        graph.initializers.clear()
        graph.remove(list(graph))
        opsets |= each.opset_imports
        functions.extend(each.functions.values())
    whole = ir.Graph(inputs, outputs, nodes=nodes, initializers=weights, opset_imports=opsets, name="merged")
    version = max(each.ir_version for each in graphs.values())
    return ir.Model(whole, ir_version=version, functions=functions)


def _drop_outputs(graph: ir.Graph, used: Sequence[ir.Value]) -> None:
    for value in [v for v in graph.outputs if any(v is other for other in used)]:
        graph.outputs.remove(value)
    if not graph.outputs:
        raise ModelError("Nothing is left to give out: every output feeds an input. Set keep_connected=True.")


def _sort(graph: ir.Graph) -> None:
    try:
        graph.sort()
    except ValueError as error:
        raise ModelError("The models feed each other in a circle. Remove one of the connections.") from error
