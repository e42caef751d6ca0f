"""Model: one ONNX graph in memory, what it takes and gives, and how it came to be."""

from __future__ import annotations

import contextlib
import difflib
import gc
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

from trtkit import onnx_file
from trtkit.errors import ModelError
from trtkit.reference import Reference

WITH_BODY = frozenset({"If", "Loop", "Scan", "SequenceMap"})  # of ONNX's own operators these run graphs of their own
_PROTOBUF_LIMIT = 2_000_000_000  # bytes; protobuf refuses messages of 2 GiB, and the graph needs some room as well


IrModel = ir.Model  # inside of Model, `ir` is the graph


class TensorInfo(NamedTuple):
    """Name, shape and dtype of a model's input or output; a str in the shape is a dimension that may change."""

    name: str
    shape: tuple[int | str, ...]
    dtype: np.dtype

    def __str__(self) -> str:
        return f"{self.name} {self.dtype.name} ({', '.join(map(str, self.shape))})"


class Step(NamedTuple):
    """One entry of a model's history: what was done to it and what that did to its size."""

    name: str
    detail: str
    nodes_before: int
    nodes_after: int
    seconds: float


class Model:
    """An ONNX graph that knows its history and the model it was loaded as.

    Functions of trtkit never change a Model: they return a new one that shares its weights, carries one more
    `Step` in `history` and the same `origin`, the reference it is verified against.

    >>> import trtkit
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'))
    >>> model
    Model('g': 1 node, 0 weights in 0 bytes, opset 20; x float32 (n, 4) -> y float32 (n, 4))
    >>> model.run({"x": np.array([[-1, 0, 1, 2]], np.float32)})["y"].tolist()
    [[0.0, 0.0, 1.0, 2.0]]
    """

    def __init__(
        self,
        graph: ir.Model,
        name: str | None = None,
        *,
        history: tuple[Step, ...] = (),
        origin: Model | None = None,
        precision: str | None = None,
        remake: Callable[[], ir.Model] | None = None,
    ) -> None:
        self._graph: ir.Model | None = graph
        self._remake = remake
        self.name = name or graph.graph.name or "model"
        self.history = history
        self.precision = precision or _precision_of(graph.graph)
        self._origin = origin
        _name_nodes(graph.graph)

    def __repr__(self) -> str:
        ends = f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"
        nodes = f"{self.node_count} node{'' if self.node_count == 1 else 's'}"
        weights = f"{len(self._peek().graph.initializers)} weights in {self.size_bytes:,} bytes"
        return f"Model({self.name!r}: {nodes}, {weights}, opset {self.opset}; {ends})"

    # What it is

    @property
    def ir(self) -> ir.Model:
        """The graph. Whoever asks may hold on to its nodes, so from now on it stays the one that this model has."""
        graph = self._peek()
        self._remake = None
        return graph

    def _peek(self) -> IrModel:
        """The graph for a look at it, made again if a rewriting took it."""
        if self._graph is None:
            assert self._remake is not None
            self._graph, self._remake = self._remake(), None
            _name_nodes(self._graph.graph)
        return self._graph

    def working_graph(self) -> IrModel:
        """A graph with this model's weights that may be changed.

        A clone of this model's; or, once, that itself, if nobody else has seen it and it can be made from its file
        again should anybody ask. What is loaded, rewritten and saved is then never cloned.
        """
        graph = self._peek()
        if self._remake is None:
            return graph.clone()
        self._graph = None
        return graph

    @property
    def origin(self) -> Model:
        """The model as it was loaded, before any rewriting; itself when nothing was rewritten."""
        return self._origin or self

    @cached_property
    def inputs(self) -> tuple[TensorInfo, ...]:
        weights = self._peek().graph.initializers
        return tuple(_info(value) for value in self._peek().graph.inputs if value.name not in weights)

    @cached_property
    def outputs(self) -> tuple[TensorInfo, ...]:
        return tuple(_info(value) for value in self._peek().graph.outputs)

    @property
    def node_count(self) -> int:
        """Number of nodes, those inside If, Loop and Scan bodies included."""
        return sum(1 for _ in every_node(self._peek().graph))

    @property
    def op_counts(self) -> dict[str, int]:
        """How many nodes of each operator, the most frequent first."""
        return dict(Counter(node.op_type for node in every_node(self._peek().graph)).most_common())

    @property
    def opset(self) -> int:
        return self._peek().opset_imports.get("", 0)

    @property
    def size_bytes(self) -> int:
        """Bytes that the weights (initialisers) take."""
        return sum(v.const_value.nbytes for v in self._peek().graph.initializers.values() if v.const_value is not None)

    # In and out of it

    def copy(self) -> Model:
        """A copy whose graph may be changed freely; the weight tensors are shared: nothing ever writes to them."""
        return Model(
            self.working_graph(), self.name, history=self.history, origin=self._origin or self, precision=self.precision
        )

    def rewritten(
        self, graph: IrModel, name: str, detail: str, seconds: float, *, precision: str | None = None
    ) -> Model:
        """The model after a rewriting step: `graph` in place of its own, one more Step in its history."""
        after = sum(1 for _ in every_node(graph.graph))
        step = Step(name, detail, self.node_count, after, seconds)
        return Model(
            graph, self.name, history=(*self.history, step), origin=self.origin, precision=precision or self.precision
        )

    def to_proto(self) -> onnx.ModelProto:
        return ir.to_proto(self._peek())

    def to_bytes(self) -> bytes:
        """The model as one ONNX protobuf message, weights included.

        Raises:
            ModelError: over 2 GB, protobuf's limit; `save` writes such a model with its weights beside it.
        """
        if self.size_bytes > _PROTOBUF_LIMIT:
            raise ModelError(
                f"{self.name!r} has {self.size_bytes:,} bytes of weights, and protobuf's limit is 2 GB. "
                "Use trtkit.save(model, path), which puts the weights of such a model into a second file."
            )
        return b"".join(onnx_file.chunks(self._peek()))

    # Running it

    def check_inputs(self, inputs: Mapping[str, Any] | np.ndarray) -> dict[str, np.ndarray]:
        """Validate a set of inputs; one array will do where the model has one input.

        Raises:
            ModelError: a name is unknown or missing, a shape or dtype does not fit, or the batch is empty.
        """
        return check_inputs(self.inputs, inputs, self.name)

    def random_inputs(
        self, batch: int = 1, seed: int = 0, dims: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Random inputs from a seed: normal numbers, or integers that every lookup table in the graph can index.

        Args:
            batch: the size of every changeable first dimension, and of every one called "batch".
            dims: sizes of changeable dimensions by name, e.g. {"sequence": 128}.

        Raises:
            ModelError: a changeable dimension other than the batch has no size.
        """
        rng = np.random.default_rng(seed)
        values = {value.name: value for value in self._peek().graph.inputs}
        arrays = {}
        sizes = {"batch": batch, **(dims or {})}
        for info in self.inputs:
            first = {info.shape[0]: batch} if info.shape else {}
            shape = [d if isinstance(d, int) else sizes.get(d, first.get(d, 0)) for d in info.shape]
            if 0 in shape:
                unknown = info.shape[shape.index(0)]
                raise ModelError(
                    f"Input {info} of {self.name!r} has a changeable dimension {unknown!r}: say how long it shall be, "
                    f"e.g. random_inputs(dims={{{unknown!r}: 128}})."
                )
            if info.dtype.kind in "iu":
                arrays[info.name] = rng.integers(0, _index_limit(values[info.name]), shape).astype(info.dtype)
            elif info.dtype.kind == "b":
                arrays[info.name] = rng.integers(0, 2, shape).astype(bool)
            else:
                arrays[info.name] = rng.standard_normal(shape, np.float32).astype(info.dtype)
        return arrays

    @cached_property
    def reference(self) -> Reference:
        """This graph in ONNX Runtime on the CPU, made on first use and kept."""
        return self.open_reference()

    def open_reference(self, *, exact: bool = False, threads: int = 0) -> Reference:
        """A new `Reference` of this graph, see there; `reference` is the one that is kept."""
        as_it_stands = partial(Reference, exact=exact, threads=threads, keep_pairs=self.precision == "fp8")
        if self.size_bytes <= _PROTOBUF_LIMIT:
            return as_it_stands(self.to_bytes())
        with tempfile.TemporaryDirectory() as folder:
            return as_it_stands(str(save(self, Path(folder) / "model.onnx")))

    def run(self, inputs: Mapping[str, Any] | np.ndarray) -> dict[str, np.ndarray]:
        """Compute the outputs on the CPU with ONNX Runtime.

        Raises:
            ModelError: the inputs do not fit, or ONNX Runtime cannot run the graph.
        """
        return self.reference.run(self.check_inputs(inputs))


def save(model: Model, path: str | os.PathLike[str]) -> Path:
    """Write a model as an ONNX file, whole or not at all; above 2 GB the weights go to `<path>.data` beside it.

    Raises:
        ModelError: the folder does not exist, or `path` is one.
    """
    path = Path(path)
    if path.is_dir():
        raise ModelError(f"Cannot save {model.name!r} to {path}: that is a folder. Name a file in it.")
    if not path.parent.is_dir():
        raise ModelError(
            f"Cannot save {model.name!r} to {path}: the folder {path.parent} does not exist. Make it first."
        )
    if model.size_bytes > _PROTOBUF_LIMIT:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=path.name) as folder:
            whole = Path(folder) / path.name
            ir.save(model._peek(), whole, external_data=path.name + ".data")
            for file in (whole.with_name(path.name + ".data"), whole):
                os.replace(file, path.with_name(file.name))
        return path
    write_atomically(path, onnx_file.chunks(model._peek()))
    return path


def write_atomically(path: Path, data: onnx_file.Chunk | Iterable[onnx_file.Chunk]) -> None:
    """Write data, or pieces of it, to a temporary name in the same folder, then rename: nobody sees half a file."""
    pieces = (data,) if isinstance(data, (bytes, memoryview)) else data
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(pieces)
        os.chmod(temporary, 0o644)  # mkstemp made it private
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def check_inputs(
    expected: tuple[TensorInfo, ...], inputs: Mapping[str, Any] | np.ndarray, owner: str
) -> dict[str, np.ndarray]:
    """Validate inputs against what is expected; shared by models and sessions. Raises ModelError."""
    if not isinstance(inputs, Mapping):
        if len(expected) != 1:
            names = [info.name for info in expected]
            raise ModelError(f"{owner!r} has {len(names)} inputs, so give them by name: a dict with {names}.")
        inputs = {expected[0].name: inputs}
    arrays = {name: _as_array(name, value) for name, value in inputs.items()}
    check_fit(expected, {name: (array.shape, array.dtype) for name, array in arrays.items()}, owner)
    return {info.name: np.ascontiguousarray(arrays[info.name]) for info in expected}


def _as_array(name: str, value: Any) -> np.ndarray:
    try:
        return np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as error:  # ragged lists; tensors on a GPU or that require gradients
        raise ModelError(f"Input {name!r} cannot be made an array: {error}") from error


def check_fit(
    expected: tuple[TensorInfo, ...], given: Mapping[str, tuple[tuple[int, ...], np.dtype]], owner: str
) -> None:
    """Validate names, shapes and dtypes alone, so that tensors on a GPU can be checked too. Raises ModelError."""
    names = [info.name for info in expected]
    for name in given:
        if name not in names:
            folded = {known.casefold(): known for known in names}
            close = difflib.get_close_matches(name.casefold(), folded, n=1)
            hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
            raise ModelError(f"{owner!r} has no input {name!r}; its inputs are {names}.{hint}")
    sizes: dict[str, tuple[int, str]] = {}
    for info in expected:
        if info.name not in given:
            raise ModelError(f"{owner!r} needs input {info}, and it was not given.")
        _check_one(info, *given[info.name], sizes)


def _check_one(info: TensorInfo, shape: tuple[int, ...], dtype: np.dtype, sizes: dict[str, tuple[int, str]]) -> None:
    given = f"got {dtype.name} {shape}"
    if dtype != info.dtype:
        raise ModelError(f"Input {info}: {given}. Convert it first, e.g. with .astype({info.dtype.name!r}).")
    fits = len(shape) == len(info.shape) and all(
        isinstance(want, str) or want == have for want, have in zip(info.shape, shape, strict=True)
    )
    if not fits:
        raise ModelError(f"Input {info}: {given}.{_shape_hint(info.shape, shape)}")
    if 0 in shape:
        raise ModelError(f"Input {info}: {given}, which holds nothing. An empty batch has no result; skip the call.")
    for dim, size in zip(info.shape, shape, strict=True):
        if isinstance(dim, str) and sizes.setdefault(dim, (size, info.name))[0] != size:
            other_size, other = sizes[dim]
            raise ModelError(
                f"Input {info}: {dim!r} is {size} here and {other_size} in input {other!r}; one name means one size."
            )


def _shape_hint(want: tuple[int | str, ...], have: tuple[int, ...]) -> str:
    if len(have) == len(want) - 1:
        return " The batch dimension is missing: try array[None]."
    if len(want) == len(have) == 4 and want[1] in (1, 3) and have[3] == want[1]:
        return " Its channels come last: try array.transpose(0, 3, 1, 2)."
    return ""


def _info(value: ir.Value) -> TensorInfo:
    if value.shape is None or value.dtype in (None, ir.DataType.UNDEFINED):
        raise ModelError(
            f"{value.name!r} has no {'shape' if value.dtype else 'type'} in the ONNX file. "
            "Run onnx.shape_inference.infer_shapes on it, or export it again."
        )
    shape = tuple(
        d if isinstance(d, int) else (d.value or f"{value.name}_dim{axis}") for axis, d in enumerate(value.shape)
    )
    return TensorInfo(value.name or "", shape, np.dtype(value.dtype.numpy()))


def has_body(node: ir.Node) -> bool:
    """Whether a node runs graphs of its own (If, Loop, Scan): what that costs is known only at run time."""
    if node.op_type not in WITH_BODY and not node.domain:  # much quicker than a look at all attributes
        return False
    return any(a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for a in node.attributes.values())


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The graphs that a node runs, in the order of its attributes."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def every_node(graph: ir.Graph) -> Iterator[ir.Node]:
    """A graph's nodes, each followed by those in its bodies.

    As onnx_ir's `all_nodes`, but it asks for an operator's name before it looks at all attributes of all nodes.
    """
    for node in graph:
        yield node
        if node.op_type in WITH_BODY or node.domain:
            for body in bodies(node):
                yield from every_node(body)


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Keep Python's garbage collector from running while a graph is built.

    A graph of 100,000 nodes is a million objects that refer to each other in circles and are all alive. The collector
    would look through all of them again and again as they grow in number, which takes as long as all else together.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


_PRECISIONS = {
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.INT4: "int4",
    ir.DataType.FLOAT8E4M3FN: "fp8",
    ir.DataType.FLOAT8E5M2: "fp8",
}


def _precision_of(graph: ir.Graph) -> str:
    """The precision a graph is written in: that of its Q/DQ pairs, else of its weights and inputs, else "fp32"."""
    quantised = [n.inputs[0] for n in graph if n.op_type == "DequantizeLinear"]
    low = [*quantised, *graph.initializers.values(), *graph.inputs]
    kinds = [_PRECISIONS[value.dtype] for value in low if value is not None and value.dtype in _PRECISIONS]
    # int8 tensors that nothing dequantises are data, not a precision
    floats = [kind for kind in kinds if quantised or kind in ("fp16", "bf16")]
    return floats[0] if floats else "fp32"


def _index_limit(value: ir.Value) -> int:
    """How large an integer input may be: the length of the shortest table that it (or a cast of it) indexes, else 2."""
    return min(_table_lengths(value), default=2)


def _table_lengths(value: ir.Value) -> list[int]:
    lengths = []
    for node, position in value.uses():
        if node.op_type in ("Cast", "Identity"):
            lengths += _table_lengths(node.outputs[0])
        table = node.inputs[0] if node.op_type == "Gather" and position == 1 else None
        if table is not None and table.shape is not None:
            length = table.shape[node.attributes.get_int("axis", 0)]
            lengths.append(length if isinstance(length, int) else 2)
    return lengths


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a name of its own: TensorRT reports its kernels by the names of ONNX nodes."""
    taken: set[str] = set()
    for number, node in enumerate(every_node(graph)):
        base = node.name or f"{node.op_type}_{number}"
        name, count = base, 1
        while name in taken:
            count += 1
            name = f"{base}_{count}"
        if name != node.name:
            node.name = name
        taken.add(name)
