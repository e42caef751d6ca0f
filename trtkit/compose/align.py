"""Before graphs can be put together: one opset, one IR version, and names that do not collide."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from trtkit.errors import ModelError
from trtkit.model import Model
from trtkit.passes.common import working_copy


def named(models: Mapping[str, Model] | Sequence[Model]) -> dict[str, Model]:
    """Models by name: a mapping as it is; a sequence by the models' own names, made unique: net, net_2, net_3.

    >>> from trtkit.importers import load
    >>> one = load(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y)'
    ...                                    '{y = Abs(x)}'))
    >>> list(named([one, one]))
    ['g', 'g_2']
    """
    if isinstance(models, Mapping):
        return dict(models)
    found: dict[str, Model] = {}
    for model in models:
        name, number = model.name, 1
        while name in found:
            number += 1
            name = f"{model.name}_{number}"
        found[name] = model
    return found


def aligned(models: Mapping[str, Model]) -> dict[str, ir.Model]:
    """Copies of the models' graphs, all of the newest opset among them and of the newest IR version.

    Raises:
        ModelError: ONNX's version converter cannot lift one of them, or two use one custom domain in two versions.
    """
    newest = max(model.opset for model in models.values())
    graphs = {name: _lifted(name, model, newest) for name, model in models.items()}
    version = max(graph.ir_version for graph in graphs.values())
    imports: dict[str, tuple[int, str]] = {}
    functions: dict[ir.OperatorIdentifier, str] = {}
    for name, graph in graphs.items():
        graph.ir_version = version
        for domain, opset in graph.opset_imports.items():
            other, owner = imports.setdefault(domain, (opset, name))
            if other != opset:
                raise ModelError(
                    f"{owner!r} uses version {other} of the operators of {domain!r} and {name!r} uses {opset}; only "
                    "ONNX's own operators can be converted from one version to another. Export one of them again."
                )
        if any(key in functions for key in graph.functions):  # two functions of one name: write this model's out
            InlinePass()(graph)
        functions.update(dict.fromkeys(graph.functions, name))
    return graphs


def _lifted(name: str, model: Model, opset: int) -> ir.Model:
    if model.opset in (opset, 0):  # 0: no operator of ONNX's own
        return working_copy(model)
    try:
        lifted = onnx.version_converter.convert_version(model.to_proto(), opset)
        onnx.checker.check_model(lifted)
        return ir.from_proto(lifted)
    except Exception as error:  # the converter is C++ and raises RuntimeError, ValueError and others
        reason = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise ModelError(
            f"{name!r} has opset {model.opset} and the others need {opset}, and ONNX's version converter cannot lift "
            f"it: {reason}. Export it again with opset {opset}."
        ) from error


def values_of(graph: ir.Graph) -> Iterator[ir.Value]:
    """Every value of a graph and of the bodies inside it, each once."""
    for each in (graph, *graph.subgraphs()):
        yield from each.inputs
        yield from (value for value in each.initializers.values() if not value.is_graph_input())
        for node in each:
            yield from (value for value in node.outputs if value.name)


def separate_names(graphs: Mapping[str, ir.Model], reserved: Collection[str] = ()) -> None:
    """Let no value and no node of one graph have a name of another's.

    The rule: a name that occurs in more than one model gets its model's name in front, in each of them (`cats/conv1`,
    `dogs/conv1`); every other name stays as it is, unless it is reserved.
    """
    values = {name: {v.name for v in values_of(graph.graph)} for name, graph in graphs.items()}
    nodes = {name: {n.name for n in graph.graph.all_nodes()} for name, graph in graphs.items()}
    value_names, node_names = _clashing(values) | set(reserved), _clashing(nodes)
    taken = {name for names in (*values.values(), *nodes.values()) for name in names} | set(reserved)
    for model, graph in graphs.items():
        for value in tuple(values_of(graph.graph)):
            if value.name in value_names:
                value.name = _free(f"{model}/{value.name}", taken)
        for node in graph.graph.all_nodes():
            if node.name in node_names:
                node.name = _free(f"{model}/{node.name}", taken)


def separate_dims(graphs: Mapping[str, ir.Model], shared: Collection[str], held: Mapping[str, set[str]]) -> None:
    """The same rule for the names of changeable dimensions.

    Exempt are those that mean one size in all models, and for each in `held` the models in which it means one size.
    """
    names = {model: dim_names(graph.graph) for model, graph in graphs.items()}
    clashing = _clashing(names) - set(shared)
    for model, graph in graphs.items():
        mine = {dim: f"{model}/{dim}" for dim in clashing & names[model] if model not in held.get(dim, ())}
        rename_dims(graph.graph, mine)


def rename_dims(graph: ir.Graph, names: Mapping[str, str]) -> None:
    """Give changeable dimensions other names, in the shapes of all values."""
    for value in values_of(graph):
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim) and dim.value in names:
                if value.shape.frozen:  # type: ignore[union-attr]
                    value.shape = value.shape.copy()  # type: ignore[union-attr]
                value.shape[axis] = ir.SymbolicDim(names[dim.value])  # type: ignore[index]


def dim_names(graph: ir.Graph) -> set[str]:
    """The names of all changeable dimensions in a graph."""
    return {d.value for v in values_of(graph) for d in v.shape or () if isinstance(d, ir.SymbolicDim) and d.value}


def _clashing(names: Mapping[str, Collection[str | None]]) -> set[str]:
    counts = Counter(name for each in names.values() for name in set(each) if name)
    return {name for name, count in counts.items() if count > 1}


def _free(name: str, taken: set[str | None]) -> str:
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate
