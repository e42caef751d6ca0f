"""Network: a finished TensorRT network definition: looked at, evaluated, checked, and built into an engine."""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from trtkit.engine.network.evaluate import Evaluator
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.engine.verify import Verification, compare_outputs
from trtkit.errors import ModelError
from trtkit.model import TensorInfo, check_inputs

if TYPE_CHECKING:
    from rich.table import Table

    from trtkit.engine.engine import Engine
    from trtkit.engine.shapes import Shapes

# A network computes what its framework does with the same numbers, in another order of additions: errors of float32,
# 2^-24 = 6e-8 each, add up over the layers.
TOLERANCE = 1e-4


@contextlib.contextmanager
def in_full_float32() -> Iterator[None]:
    """PyTorch without TF32, which it would take for convolutions on a GPU: a reference must be as exact as it can."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    products, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(products)
        torch.backends.cudnn.allow_tf32 = convolutions


class Framework(NamedTuple):
    """What the framework itself computes: `run` takes arrays by name and returns the outputs in their order."""

    name: str
    run: Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


class NetworkLayer(NamedTuple):
    """One layer of a network definition, before TensorRT optimises it."""

    name: str
    kind: str  # TensorRT's LayerType: CONVOLUTION, SHUFFLE, ...
    source: str  # the framework's layer it belongs to
    outputs: tuple[tuple[int, ...], ...]  # their shapes; -1 is a size that may change


class Network:
    """A TensorRT network written by the network API, and the framework's model that it was written from.

    Attributes:
        name: of the model.
        definition: the `trt.INetworkDefinition`, for whoever wants to add to it or to look inside.
        builder: the `trt.Builder` that it belongs to.
        inputs, outputs: names, shapes and types; "batch" is a size that may change.
        framework: what the network is checked against.
    """

    precision = "fp32"

    def __init__(self, writer: Writer, name: str, outputs: Mapping[str, trt.ITensor], framework: Framework) -> None:
        self.name = name
        self.framework = framework
        self.definition = writer.network
        self.builder = writer.builder
        self._writer = writer  # holds the arrays that TensorRT's weights point at
        for key, tensor in outputs.items():
            _mark_output(writer, tensor, key)
        get = self.definition
        self.inputs = tuple(_info(get.get_input(i)) for i in range(get.num_inputs))
        self.outputs = tuple(_info(get.get_output(i)) for i in range(get.num_outputs))

    def __repr__(self) -> str:
        ends = f"{', '.join(map(str, self.inputs))} -> {', '.join(map(str, self.outputs))}"
        layers = self.definition.num_layers
        return f"Network({self.name!r}, from {self._writer.framework}: {layers} layers of TensorRT; {ends})"

    @property
    def layers(self) -> list[NetworkLayer]:
        """The layers in the order in which they were added."""
        found = [self.definition.get_layer(i) for i in range(self.definition.num_layers)]
        return [
            NetworkLayer(
                layer.name, layer.type.name, _source(layer.metadata),
                tuple(tuple(layer.get_output(i).shape) for i in range(layer.num_outputs)),
            )
            for layer in found
        ]  # fmt: skip

    def table(self) -> Table:
        """The layers as a table for `rich.print`."""
        from rich.table import Table

        grid = Table("layer", "kind", "output", title=f"{self.name}: the network that TensorRT gets")
        for layer in self.layers:
            grid.add_row(layer.name, layer.kind, " ".join(map(str, layer.outputs)))
        return grid

    # What it computes

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, np.ndarray]:
        """Evaluate the definition on the CPU, layer by layer as TensorRT has it; see `Evaluator`."""
        return self.reference.run(self.check_inputs(inputs))

    def check(self, inputs: Iterable[Any] | None = None, tolerance: float = TOLERANCE) -> Verification:
        """Compare what TensorRT's own definition says with what the framework computes, without a GPU.

        Args:
            inputs: several inputs, each a dict or an array; by default random ones of batch 1 and 2.

        Raises:
            ModelError: an input does not fit.
        """
        samples = (
            [self.random_inputs(1), self.random_inputs(2, seed=1)]
            if inputs is None
            else [self.check_inputs(one) for one in inputs]
        )
        got = [self.reference.run(sample) for sample in samples]
        expected = [self.origin.reference.run(sample) for sample in samples]
        what = f"the network against {self.framework.name}"
        return Verification(tuple(compare_outputs(got, expected, what, tolerance)))

    def build(self, shapes: Shapes | None = None, **options: Any) -> Engine:
        """Build a TensorRT engine, verified as `trtkit.build` does; its options are the same, without `isolate`.

        In this process: the definition lives here and cannot be sent to another one, and it holds no more than layers
        that these rules added and TensorRT has taken, not a file from somewhere that a parser might stumble over.

        Raises:
            BuildError: TensorRT refuses; with its own words.
            VerificationError: the network does not compute what its framework does, or the engine not what the
                network says.
        """
        from trtkit.engine.build import build_from_network

        return build_from_network(self, shapes, **options)

    # What an Engine asks of a model: the definition is what the engine must equal, the framework where it came from

    @cached_property
    def reference(self) -> Evaluator:
        return Evaluator(self.definition)

    def open_reference(self, *, exact: bool = False, threads: int = 0) -> Evaluator:
        return self.reference

    @cached_property
    def origin(self) -> Original:
        return Original(self)

    def check_inputs(self, inputs: Mapping[str, Any] | Any) -> dict[str, np.ndarray]:
        return check_inputs(self.inputs, inputs, self.name)

    def random_inputs(
        self, batch: int = 1, seed: int = 0, dims: Mapping[str, int] | None = None
    ) -> dict[str, np.ndarray]:
        """Seeded random inputs: normal numbers, or whole ones that every table they are looked up in has."""
        rng = np.random.default_rng(seed)
        sizes = {"batch": batch, **(dims or {})}
        arrays = {}
        for info in self.inputs:
            shape = [d if isinstance(d, int) else sizes[d] for d in info.shape]
            limit = self._table_length(info.name)
            if info.dtype.kind in "iu" or limit:
                arrays[info.name] = rng.integers(0, limit or 100, shape).astype(info.dtype)
            else:
                arrays[info.name] = rng.standard_normal(shape, np.float32).astype(info.dtype)
        return arrays

    def _table_length(self, name: str) -> int:
        """The number of rows of the smallest table that an input is an index of; 0 where it is none."""
        names, lengths = {name}, []
        for i in range(self.definition.num_layers):
            layer = self.definition.get_layer(i)
            if layer.type == trt.LayerType.CAST and layer.get_input(0).name in names:
                names.add(layer.get_output(0).name)
            if layer.type == trt.LayerType.GATHER and layer.get_input(1).name in names:
                lengths.append(layer.get_input(0).shape[0])
        return min(lengths, default=0)

    def to_bytes(self) -> bytes:
        """A digest of layers and weights, by which an engine file knows the network it was built from."""
        digest = hashlib.sha256(repr((self.inputs, self.outputs, self.layers)).encode())
        for array in self._writer.arrays:
            digest.update(array.tobytes())
        return digest.digest()


class Original:
    """The framework's model, as an engine asks for it."""

    def __init__(self, network: Network) -> None:
        self.name, self.inputs, self.outputs = network.name, network.inputs, network.outputs
        self.precision = network.precision
        self._framework = network.framework
        self.reference = self

    def open_reference(self, *, exact: bool = False, threads: int = 0) -> Original:
        return self

    def run(self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str] | None = None) -> dict[str, np.ndarray]:
        with in_full_float32():
            results = self._framework.run(inputs)
        if len(results) != len(self.outputs):
            raise ModelError(
                f"{self.name!r} returned {len(results)} tensors, and its network has {len(self.outputs)}: "
                f"{[info.name for info in self.outputs]}."
            )
        return {info.name: array for info, array in zip(self.outputs, results, strict=True)}


def _mark_output(writer: Writer, tensor: trt.ITensor, name: str) -> None:
    """Through an identity where the tensor is an input, or an output already: it has a name then."""
    taken = {writer.network.get_output(i).name for i in range(writer.network.num_outputs)}
    if tensor.is_network_input or tensor.name in taken:
        with writer.layer(name):
            tensor = writer.done(writer.network.add_identity(tensor))
    tensor.name = name
    writer.network.mark_output(tensor)


def _info(tensor: trt.ITensor) -> TensorInfo:
    shape = tuple(int(n) if n >= 0 else "batch" if axis == 0 else f"{tensor.name}_{axis}"
                  for axis, n in enumerate(tensor.shape))  # fmt: skip
    return TensorInfo(tensor.name, shape, np.dtype(trt.nptype(tensor.dtype)))


def _source(metadata: str) -> str:
    """'[Keras Layer: conv1]' -> 'conv1'"""
    return metadata.partition(" Layer: ")[2].removesuffix("]")
