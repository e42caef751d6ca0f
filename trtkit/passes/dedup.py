"""Keep one of several equal initialisers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, constant
from trtkit.passes.index import Index


class ShareInitializers(Rewrite):
    """Let readers of equal initialisers read the same one.

    *Requires* equal type, shape and bytes (so 0.0 and -0.0 differ, and NaN equals itself), in the same graph, and
    neither an input nor an output of it. *Rewrite*: all readers read the first; the others go.
    *Ensures*: no two initialisers of a graph hold the same data. Only tensors that agree in type, shape and their first
    bytes are compared in full, so that the weights of a network are hardly read.
    """

    title = "share initialisers"

    def walk(self, index: Index) -> None:
        for graph in index.graphs:
            self._share(graph)

    def _share(self, graph: ir.Graph) -> None:
        alike: dict[tuple, list[tuple[ir.Value, np.ndarray]]] = {}
        for name, value in tuple(graph.initializers.items()):
            tensor = constant(value)
            if tensor is None or tensor.dtype == ir.DataType.STRING or value.is_graph_output():
                continue
            data = tensor.numpy()
            key = (tensor.dtype, data.shape, data.flat[: 64 // data.itemsize].tobytes())
            twin = next((first for first, other in alike.get(key, ()) if _equal_bytes(data, other)), None)
            if twin is None:
                alike.setdefault(key, []).append((value, data))
                continue
            value.replace_all_uses_with(twin)
            del graph.initializers[name]
            self.done["duplicate weights shared"] += 1


def _equal_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    if a is b:
        return True
    return bool(np.array_equal(np.ascontiguousarray(a).view(np.uint8), np.ascontiguousarray(b).view(np.uint8)))
