"""What all passes share: the base class, and safe ways to read and to rewire a graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from trtkit.graph.shapes import WITH_BODY, bodies, graphs_of
from trtkit.model import Model
from trtkit.passes.index import Index
from trtkit.passes.inference import Answers, frozen_shape, infer_node, infer_shapes

__all__ = [
    "Dims", "Learner", "Names", "Rewrite", "array", "bodies", "constant", "dims", "drop_unused", "graphs_of",
    "infer_shapes", "initializer", "is_used", "let_go", "remove", "replace", "single_use", "type_of", "working_copy",
]  # fmt: skip

Dims = tuple[int | str | None, ...]  # a number, the name of a symbolic dimension, or None where nothing is known


class Rewrite(ir.passes.InPlacePass):
    """A pass that offers every node of every graph, bodies of If, Loop and Scan included, to its rule.

    A subclass sets `title` and writes `rewrite`. Each subclass documents its rules as

    - *requires*: what must be provable before anything is touched,
    - *rewrite*: what is put in the place of what,
    - *ensures*: what holds afterwards; always: same inputs, same outputs and output names, equal values.
    """

    title: ClassVar[str]
    ops: ClassVar[frozenset[str]] = frozenset()  # operators that the rule is about; empty: all of them
    index: Index | None = None  # of the graph as it stands, from whoever runs several passes and has one
    early: ClassVar[int | None] = None  # the place among the rules that are worth a turn before shapes are inferred

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.opset = 0
        self._root: ir.Graph | None = None

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self._begin(model)
        self.walk(self.index or Index(model))
        return ir.passes.PassResult(model, modified=bool(self.done))

    def _begin(self, model: ir.Model) -> None:
        self.done = Counter()
        self.opset = model.opset_imports.get("", 0)
        self._root = model.graph
        self.__dict__.pop("names", None)

    def walk(self, index: Index) -> None:
        """Offer every node to `rewrite`, in topological order; nodes may be removed on the way."""
        for node in index.of(self.ops):
            if what := self.rewrite(node):
                self.done[what] += 1

    @cached_property
    def names(self) -> Names:
        """All names of the model, collected once a run and only if a rule needs a new one."""
        assert self._root is not None
        return Names(self._root)

    def rewrite(self, node: ir.Node) -> str | None:
        """Apply the rule to one node: what was done in a few words, or None when the rule does not hold."""
        raise NotImplementedError

    @property
    def detail(self) -> str:
        """What the last call did, for the model's history: `53 BatchNormalization into Conv`."""
        return ", ".join(f"{count} {what}" for what, count in self.done.most_common())


class Learner(Rewrite):
    """A pass that finds out shapes on its way.

    `tell` names nodes of whose inputs something new is known. When the walk comes to one and does not rewrite it, it is
    inferred again, once, and what that brings is told to its readers. Nodes without types wait for `infer_shapes`.
    """

    def _begin(self, model: ir.Model) -> None:
        super()._begin(model)
        self._told: set[ir.Node] = set()
        self._answers: Answers = {}

    def tell(self, nodes: Iterable[ir.Node]) -> None:
        """These come later in the walk than the node that is being rewritten."""
        self._told.update(nodes)

    def walk(self, index: Index) -> None:
        ops, rewrite, told = self.ops, self.rewrite, self._told
        for node in index.of(()):
            if (not ops or node.op_type in ops) and (what := rewrite(node)):
                self.done[what] += 1
            elif node in told and all(v.type is not None for v in node.outputs) and self._infer(node):
                self.tell(reader for value in node.outputs for reader, _ in value.uses())

    def _infer(self, node: ir.Node) -> bool:
        return infer_node(node, self.opset, self._answers)


def constant(value: ir.Value | None) -> ir.TensorProtocol | None:
    """The tensor behind a value that can never change, else None.

    An initialiser that is also a graph input is only a default, which a caller may override: not a constant.
    """
    if value is None:
        return None
    node = value.producer()
    if node is None:
        return value.const_value if value.is_initializer() and not value.is_graph_input() else None
    if node.op_type != "Constant" or node.domain != "" or "sparse_value" in node.attributes:
        return None
    stated = node.attributes.get("value")
    if stated is None:
        return ir.convenience.get_const_tensor(value)
    tensor: ir.TensorProtocol | None = stated.value  # as_tensor would ask whether it has each method of the protocol
    return tensor


def array(value: ir.Value | None) -> np.ndarray | None:
    """The constant behind a value as NumPy array (shared, never write to it), else None."""
    tensor = constant(value)
    return None if tensor is None else tensor.numpy()


def type_of(value: ir.Value | None) -> ir.DataType | None:
    """The type of a value's numbers if it is stated or can be read off a constant, which is then stated, too."""
    if value is not None and value.dtype is None and (tensor := constant(value)) is not None:
        value.dtype = tensor.dtype
    return None if value is None else value.dtype


def replace(old: ir.Value, new: ir.Value) -> bool:
    """Let everything that reads `old` read `new`; False, and nothing done, where the graph's interface forbids it.

    Uses inside subgraphs are uses like any other. A graph output keeps its name: `new` takes it over, which is
    possible only when `new` is computed by a node of the same graph and is not an output itself.
    """
    new.type = new.type or old.type  # before inference either may be the one that states it
    if not old.is_graph_output():
        old.replace_all_uses_with(new)
        return True
    if new.is_graph_output() or new.producer() is None or new.graph is not old.graph:
        return False
    name, shape = old.name, old.shape
    old.replace_all_uses_with(new, replace_graph_outputs=True)
    old.name = f"{name}_replaced"
    new.name, new.shape = name, shape if shape is not None else new.shape
    return True


def remove(nodes: ir.Node | Iterable[ir.Node]) -> None:
    """Take nodes that nobody reads any more out of their graph."""
    for node in tuple(nodes) if isinstance(nodes, Iterable) else (nodes,):
        assert node.graph is not None
        if any(map(is_used, node.outputs)):
            raise ValueError(f"{node.name!r} is still read: nothing may be removed that somebody needs.")
        let_go(node)
        node.graph.remove(node)


def let_go(node: ir.Node) -> None:
    """Take a node, about to be removed, off its inputs, and the nodes in its bodies off what they read outside.

    `replace_input_with` would make a new tuple of all inputs for each of them.
    """
    _let_go_inside(node)
    for place, value in enumerate(node.inputs):
        if value is not None:
            value._remove_usage(node, place)
    node._inputs = (None,) * len(node.inputs)


def _let_go_inside(node: ir.Node) -> None:
    if node.op_type in WITH_BODY or node.domain:
        for body in bodies(node):
            body.outputs.clear()
            for inner in body:
                let_go(inner)


def is_used(value: ir.Value) -> bool:
    """Whether a node reads the value or a graph gives it out."""
    return value.is_graph_output() or bool(value._uses)  # uses() makes a tuple of what may be thousands


class Names:
    """The names of all values and nodes in a graph and in the bodies inside it, and new ones beside them.

    >>> graph = ir.Graph([], [], nodes=[], initializers=[ir.Value(name="x", const_value=ir.tensor([1.0]))])
    >>> names = Names(graph)
    >>> names.fresh("x"), names.fresh("x"), names.fresh("y")
    ('x_2', 'x_3', 'y')
    """

    def __init__(self, graph: ir.Graph) -> None:
        self.taken: set[str | None] = set()
        for each in graphs_of(graph):
            self.taken.update(value.name for value in (*each.inputs, *each.initializers.values()))
            for node in each:
                self.taken.add(node.name)
                self.taken.update(value.name for value in node.outputs)

    def fresh(self, name: str) -> str:
        """`name`, or `name_2`, `name_3` ... if it is taken; from now on the result is taken, too."""
        candidate, number = name, 1
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate


def initializer(graph: ir.Graph, name: str, data: np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """A new initialiser of `graph`, whose name must be free: see `Names`."""
    tensor = ir.Tensor(data, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=frozen_shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def drop_unused(value: ir.Value) -> None:
    """Take an initialiser that nobody reads any more out of its graph; the interface stays."""
    graph = value.graph
    if value.is_initializer() and graph is not None and not is_used(value) and not value.is_graph_input():
        del graph.initializers[value.name or ""]


def single_use(value: ir.Value) -> bool:
    """Whether exactly one node reads the value, once, and no graph gives it out."""
    return len(value._uses) == 1 and not value.is_graph_output()  # see is_used


def dims(value: ir.Value | None) -> Dims | None:
    """A value's shape as plain Python, None where not even its rank is known."""
    if value is None or value.shape is None:
        return None
    return tuple(d if isinstance(d, int) else d.value for d in value.shape)


def working_copy(model: Model) -> ir.Model:
    """A copy of a model's graph that passes may change.

    Before IR version 4 every weight had to be listed as an input, too; these are dropped from the inputs, since nobody
    meant them to be overridden. (`Model.inputs` does not show them either.)
    """
    graph = model.working_graph()
    if graph.ir_version < 4:
        graph.ir_version = 4
        for value in tuple(graph.graph.inputs):
            if value.is_initializer():
                graph.graph.inputs.remove(value)
    return graph
