"""A small ONNX graph under construction, for the models of scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 20, 10


class Builder:
    """Collects nodes and constants; every value gets a name of its own, and `add` returns it.

    >>> g = Builder()
    >>> g.add("Add", "x", g.constant("one", np.ones(1, np.float32)))
    'add'
    >>> g.add("Add", "add", "one")
    'add_2'
    """

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self.taken = {"features"}

    def constant(self, name: str, values: np.ndarray) -> str:
        name = self._fresh(name)
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def number(self, value: float) -> str:
        return self.constant("number", np.array(value, np.float32))

    def add(self, op: str, *inputs: str, name: str = "", **attributes: Any) -> str:
        output = self._fresh(name or op.lower())
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=output, **attributes))
        return output

    def gemm(self, x: str, weight: np.ndarray, bias: np.ndarray | float) -> str:
        """x @ weight + bias, (N, K) with (K, M)."""
        shift = np.broadcast_to(np.asarray(bias, np.float32), weight.shape[1])
        weights = self.constant("weight", np.asarray(weight, np.float32)), self.constant("bias", shift)
        return self.add("Gemm", x, *weights)

    def model(self, name: str, features: int, outputs: list[tuple[str, str]]) -> onnx.ModelProto:
        """The finished model; `outputs` are (value, name that it shall have)."""
        renamed = dict(outputs)
        for node in self.nodes:
            for names in (node.input, node.output):
                names[:] = [renamed.get(each, each) for each in names]
        taken = helper.make_tensor_value_info("features", onnx.TensorProto.FLOAT, ["batch", features])
        given = [onnx.ValueInfoProto(name=each) for each in renamed.values()]
        graph = helper.make_graph(self.nodes, name, [taken], given, self.weights)
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        proto = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True)
        for output in proto.graph.output:  # behind a Reshape the inference no longer knows that this is the batch
            output.type.tensor_type.shape.dim[0].dim_param = "batch"
        return proto

    def _fresh(self, name: str) -> str:
        candidate, number = name, 1
        while candidate in self.taken:
            number += 1
            candidate = f"{name}_{number}"
        self.taken.add(candidate)
        return candidate
