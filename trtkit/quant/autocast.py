"""Write FP16 or BF16 into a graph, as strongly typed TensorRT demands: nodes in low precision, casts at the borders."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator

import numpy as np
import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model
from trtkit.passes.common import Names, array, constant, infer_shapes, initializer, working_copy
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.identity import RemoveIdentities
from trtkit.quant.data import stream
from trtkit.quant.precision_rules import FLOAT, LOW, Decision, Setting, decide, may_be_low, value_type

_HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN", "Attention"}
_NOTE = "trtkit.autocast."  # decisions are kept in the nodes' metadata, so that they survive saving
_NOTED = ("precision", "rule", "reason")


def autocast(
    model: Model,
    precision: str = "fp16",
    keep_fp32: Collection[str] = (),
    io: str = "fp32",
    data: Iterable[Batch] | None = None,
) -> Model:
    """Convert a float32 model to mixed precision.

    Every node goes low unless a rule of `precision_rules` keeps it in float32. Then cheap nodes that lie wholly between
    kept ones join them (rule `island`), weights are converted, and one Cast stands wherever the precision changes.

    Args:
        model: a float32 model, best an optimised one; one with Q/DQ keeps its codes and goes low in between.
        precision: "fp16" (range 65504, 11 bits) or "bf16" (float32's range, 8 bits).
        keep_fp32: names of nodes (`*` allowed) and operators that stay in float32.
        io: "fp32" keeps the types of the model's inputs and outputs, "low" converts them too.
        data: batches; with them nodes whose tensors come near the end of the range stay in float32.

    Raises:
        ModelError: unknown precision, or a name in `keep_fp32` that fits nothing.
        DataError: `data` is empty, does not fit the model, or leads to NaN or infinity.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[4, 4] x) => (float[4, 4] y) {a = MatMul(x, x)  y = Exp(a)}'''))
    >>> half = autocast(model)
    >>> [f"{d.op_type} {d.precision}: {d.rule}" for d in autocast_report(half)]
    ['MatMul fp16: default', 'Exp fp32: wide_range']
    """
    if precision not in LOW or io not in ("fp32", "low"):
        raise ModelError(f"autocast knows the precisions {sorted(LOW)} and io 'fp32' or 'low', "
                         f"not {precision!r} and {io!r}.")
    start = time.perf_counter()
    graph = working_copy(model)
    infer_shapes(graph)
    RemoveIdentities()(graph)  # makes CastLike a Cast, whose type can be read
    _check_names(model, keep_fp32)
    setting = Setting(precision, model.opset, tuple(keep_fp32), _ranges(model, graph, data) if data is not None else {})
    decisions = _decide(graph.graph, setting)
    _Retype(graph.graph, setting, decisions, io).apply()
    RemoveIdentities()(graph)
    RemoveDeadCode()(graph)
    detail = _summary(decisions, sum(node.op_type == "Cast" for node in graph.graph))
    label = precision if model.precision == "fp32" else model.precision  # Q/DQ stay; what lies between them goes low
    return model.rewritten(graph, f"autocast {precision}", detail, time.perf_counter() - start, precision=label)


def autocast_report(model: Model) -> list[Decision]:
    """What `autocast` decided for each node and why; empty for a model that it did not make."""
    return [
        Decision(node.name or "", node.op_type, *(node.metadata_props[_NOTE + key] for key in _NOTED))
        for node in model.ir.graph
        if _NOTE + "rule" in node.metadata_props
    ]


def _check_names(model: Model, keep_fp32: Collection[str]) -> None:
    from fnmatch import filter as matching

    names, ops = [node.name or "" for node in model.ir.graph], set(model.op_counts)
    for pattern in keep_fp32:
        if pattern not in ops and not matching(names, pattern):
            raise ModelError(f"keep_fp32: {model.name!r} has no node or operator {pattern!r}. "
                             f"Its operators are {', '.join(sorted(ops))}.")


def _ranges(model: Model, graph: ir.Model, data: Iterable[Batch]) -> dict[str, float]:
    """The largest |value| of every float tensor over all batches; `graph` is the model with types inferred."""
    names = [v.name or "" for node in graph.graph for v in node.outputs if v.dtype == FLOAT]
    names += [info.name for info in model.inputs if info.dtype == np.float32]
    largest: dict[str, float] = dict.fromkeys(names, 0.0)
    for tensors in stream(Taps(model, names), data):
        for name, tensor in tensors.items():
            largest[name] = max(largest[name], float(np.abs(tensor).max(initial=0)))
    return largest


def _decide(graph: ir.Graph, setting: Setting) -> dict[ir.Node, Decision]:
    """A decision for each node that touches float32 tensors; the notes are written into the nodes."""
    decisions = {node: decide(node, setting) for node in graph if _touches_float(node)}
    kept = {node for node, decision in decisions.items() if decision.precision == "fp32"}
    for node in _islands(decisions, kept):
        decisions[node] = Decision(node.name or "", node.op_type, "fp32", "island", "lies between nodes kept in fp32")
    for node, decision in decisions.items():
        for key in _NOTED:
            node.metadata_props[_NOTE + key] = getattr(decision, key)
    return decisions


def _islands(decisions: dict[ir.Node, Decision], kept: set[ir.Node]) -> set[ir.Node]:
    """Cheap nodes with no low neighbour: converting them would cost two casts and save nothing.

    The largest set of such nodes is found by starting with all and dropping those with a low neighbour until none is
    left; of it, what is not connected to a kept node goes (a network of cheap nodes only shall go low).
    """
    around = {node: set(_neighbours(node)) & decisions.keys() for node in decisions}
    candidates = {node for node in decisions if node not in kept and node.op_type not in _HEAVY}
    todo = list(candidates)
    while todo:
        node = todo.pop()
        if node in candidates and not around[node] <= candidates | kept:
            candidates.remove(node)
            todo.extend(around[node] & candidates)
    reached: set[ir.Node] = set()
    todo = list(kept)
    while todo:
        for node in around[todo.pop()] & candidates - reached:
            reached.add(node)
            todo.append(node)
    return reached


def _neighbours(node: ir.Node) -> Iterator[ir.Node]:
    """Nodes that hand float32 tensors to this one or take them from it."""
    for value in node.inputs:
        producer = value.producer() if value is not None and value.dtype == FLOAT else None
        if producer is not None:
            yield producer
    for value in node.outputs:
        if value.dtype == FLOAT:
            yield from value.consumers()


def _touches_float(node: ir.Node) -> bool:
    if node.op_type == "Constant":
        return False  # converted like an initialiser, for each reader as it needs
    return any(value is not None and value_type(value) == FLOAT for value in (*node.inputs, *node.outputs))


class _Retype:
    """Carry decisions out: convert types of outputs, then let every reader get the type it wants."""

    def __init__(self, graph: ir.Graph, setting: Setting, decisions: dict[ir.Node, Decision], io: str) -> None:
        self.graph, self.setting, self.io = graph, setting, io
        self.low_nodes = {node for node, decision in decisions.items() if decision.precision != "fp32"}
        self.versions: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
        self.names = Names(graph)

    def apply(self) -> None:
        read = {value for node in self.graph.all_nodes() for value in node.inputs if value is not None}
        floats = {value for value in read if value_type(value) == FLOAT}
        readers = [(value, node, i) for value in floats for node, i in value.uses()]
        outputs = [value for value in self.graph.outputs if value.dtype == FLOAT]
        wanted = {(node, i): self._wanted(node, i) for _, node, i in readers}
        self._convert_outputs()
        for value, node, i in sorted(readers, key=lambda use: (use[1].name or "", use[2])):
            if value_type(value) != wanted[node, i]:
                node.replace_input_with(i, self._as_type(value, wanted[node, i]))
        for value in outputs:
            self._keep_output_type(value)

    def _wanted(self, node: ir.Node, position: int) -> ir.DataType:
        low = node in self.low_nodes and may_be_low(node, position, inputs=True, setting=self.setting)
        return self.setting.low if low else FLOAT

    def _convert_outputs(self) -> None:
        low = self.setting.low
        for node in self.low_nodes:
            if node.op_type == "Cast" and node.attributes.get_int("to", 0) == FLOAT:
                node.attributes["to"] = ir.AttrInt64("to", low.value)
            for i, value in enumerate(node.outputs):
                if value.dtype == FLOAT and may_be_low(node, i, inputs=False, setting=self.setting):
                    value.type = ir.TensorType(low)
        if self.io == "low":
            for value in self.graph.inputs:
                if value.dtype == FLOAT and not value.is_initializer():
                    value.type = ir.TensorType(low)

    def _as_type(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another type: a converted weight, or behind a Cast that all readers share."""
        if (value, dtype) not in self.versions:
            data = array(value) if constant(value) is not None else None
            self.versions[value, dtype] = self._cast(value, dtype) if data is None else self._weight(value, data, dtype)
        return self.versions[value, dtype]

    def _weight(self, value: ir.Value, data: np.ndarray, dtype: ir.DataType) -> ir.Value:
        """What stands for infinity becomes the largest number: real infinities would make NaN of fully masked rows."""
        limit = self.setting.largest
        if data.size and not np.abs([data.min(), data.max()]).max() <= limit:
            data = np.where(np.isfinite(data), np.clip(data, -limit, limit), data)
        name = self.names.fresh(f"{value.name}_{self._suffix(dtype)}")
        return initializer(self.graph, name, data.astype(dtype.numpy()), dtype)

    def _cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        name = self.names.fresh(f"{value.name}_to_{self._suffix(dtype)}")
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", dtype.value)], name=name)
        out = node.outputs[0]
        out.name, out.shape = self.names.fresh(f"{value.name}_{self._suffix(dtype)}"), value.shape
        out.type = ir.TensorType(dtype)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return out

    def _suffix(self, dtype: ir.DataType | None) -> str:
        return "fp32" if dtype == FLOAT else self.setting.precision

    def _keep_output_type(self, value: ir.Value) -> None:
        """A graph output keeps its name; with io="fp32" it keeps its type through a last Cast as well."""
        if (value.dtype == FLOAT) == (self.io == "fp32"):
            return
        name, index = value.name or "", self.graph.outputs.index(value)
        value.name = self.names.fresh(f"{name}_{self._suffix(value.dtype)}")
        cast = self._cast(value, FLOAT if self.io == "fp32" else self.setting.low)
        cast.name = name
        self.graph.outputs[index] = cast


def _summary(decisions: dict[ir.Node, Decision], casts: int) -> str:
    low = sum(decision.precision != "fp32" for decision in decisions.values())
    kept = Counter(decision.rule for decision in decisions.values() if decision.precision == "fp32")
    why = "".join(f", {count} kept in fp32 by rule {rule}" for rule, count in kept.most_common())
    return f"{low} of {len(decisions)} nodes converted, {casts} casts{why}"
