"""Writer: adds layers to a TensorRT network, and looks after what TensorRT itself does not.

`trt.Weights` points at an array and does not keep it; a layer that cannot be says so in the log, raises nothing, and
breaks the layers after it; and nobody knows later which of the framework's layers it came from.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from trtkit.engine.child import create_network, log
from trtkit.engine.trt import trt
from trtkit.errors import BuildError


def dims(sizes: Iterable[int]) -> trt.Dims:
    """Numbers, one an axis, as TensorRT takes them."""
    return trt.Dims([int(size) for size in sizes])


class Writer:
    """A TensorRT network being written, one layer at a time.

    Attributes:
        network: the `trt.INetworkDefinition`.
        arrays: every array that TensorRT was given a pointer to; they must live until the engine is built.
        framework: "Keras" or "torch": whose layer names the layers carry.
        owner: name of the framework's layer that is being written; set by `layer`.
    """

    def __init__(self, framework: str) -> None:
        self.framework = framework
        self.logger = log()
        self.builder = trt.Builder(self.logger)
        self.network = create_network(self.builder)
        self.arrays: list[np.ndarray] = []
        self.owner = ""
        self._names: dict[str, int] = {}

    def input(self, name: str, shape: tuple[int, ...], dtype: Any) -> trt.ITensor:
        """An input of the network; -1 in the shape is a size that may change."""
        return self.network.add_input(name, _type_of(dtype), dims(shape))

    @contextmanager
    def layer(self, name: str) -> Iterator[None]:
        """What is added inside belongs to the framework's layer `name`."""
        before, self.owner = self.owner, name
        try:
            yield
        finally:
            self.owner = before

    def weights(self, array: Any) -> trt.Weights:
        """The array as TensorRT takes weights: float32, one piece of memory, kept alive here. None gives no weights."""
        if array is None:
            return trt.Weights()
        self.arrays.append(np.array(array, np.float32, order="C"))
        return trt.Weights(self.arrays[-1])

    def constant(self, array: Any) -> trt.ITensor:
        """A tensor with these values: int32 stays, other whole numbers become int64, and all else float32."""
        given = np.asarray(array)
        whole = np.int32 if given.dtype == np.int32 else np.int64
        kept = np.array(given, whole if given.dtype.kind in "iub" else np.float32, order="C")
        self.arrays.append(kept)
        return self.done(self.network.add_constant(dims(kept.shape), trt.Weights(kept)))

    def done(self, layer: Any) -> trt.ITensor:
        """Name a finished layer after the framework's, check it, and return what it computes.

        Raises:
            BuildError: TensorRT refuses the layer; names the framework's layer, and says it in TensorRT's words.
        """
        self.name(layer)
        output = layer.get_output(0)
        try:
            len(output.shape)
        except (RuntimeError, ValueError):  # how a tensor says that its layer makes no sense
            raise self._refusal(layer.type.name.lower()) from None
        return output

    def name(self, layer: Any) -> None:
        """Name a layer, the first of its owner just like it; `add_...` gives None for what it refuses at once."""
        if layer is None:
            raise self._refusal("a layer")
        count = self._names[self.owner] = self._names.get(self.owner, 0) + 1
        layer.name = self.owner if count == 1 else f"{self.owner} ({layer.type.name.lower()} {count})"
        layer.metadata = f"[{self.framework} Layer: {self.owner}]"

    def _refusal(self, kind: str) -> BuildError:
        words = [line for line in dict.fromkeys(self.logger.errors) if line][:3]
        said = "\n".join(f"  {line}" for line in words) or "  (it said nothing)"
        return BuildError(
            f"TensorRT refuses {kind} of the {self.framework} layer {self.owner!r}. In its own words:\n{said}",
            "network",
        )


def _type_of(dtype: Any) -> trt.DataType:
    """TensorRT's name of a NumPy type."""
    names = {"float32": "FLOAT", "int32": "INT32", "int64": "INT64", "bool": "BOOL"}
    name = np.dtype(dtype).name
    if name not in names:
        raise BuildError(
            f"An input of type {name}: this route writes float32 networks, with inputs of {', '.join(names)}. "
            "Other precisions go through ONNX: trtkit.load, then trtkit.autocast or trtkit.quantize.",
            "network",
        )
    return getattr(trt.DataType, names[name])
