"""A graph interpreter: what running an ONNX graph means, in a dozen lines of NumPy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from trtkit.errors import ModelError
from trtkit.model import Model

OPERATORS: dict[str, Callable[..., Any]] = {
    "Mul": np.multiply,
    "Add": np.add,
    "Sub": np.subtract,
    "Neg": np.negative,
    "Exp": np.exp,
    "MatMul": np.matmul,
    "Relu": lambda x: np.maximum(x, 0),
    "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Gemm": lambda a, b, c=0, alpha=1.0, beta=1.0, transA=0, transB=0: (
        alpha * (a.T if transA else a) @ (b.T if transB else b) + beta * np.asarray(c)
    ),
}


def interpret(
    model: Model, inputs: Mapping[str, np.ndarray], operators: Mapping[str, Callable[..., Any]] = OPERATORS
) -> dict[str, np.ndarray]:
    """Run a graph node by node: read the inputs by name, compute, store the output under its name.

    ONNX demands that a node stands after those it reads from, so one pass from first to last is enough.

    Raises:
        ModelError: an operator has no function in `operators`.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n] x) => (float[n] y) {a = Neg(x)  y = Relu(a)}'''))
    >>> interpret(model, {"x": np.array([1, -2], np.float32)})["y"].tolist()
    [0.0, 2.0]
    """
    graph = model.ir.graph
    values = {name: weight.const_value.numpy() for name, weight in graph.initializers.items() if weight.const_value}
    values.update(inputs)
    for node in graph:
        if node.op_type not in operators:
            raise ModelError(f"The interpreter has no function for {node.op_type}; it has {sorted(operators)}.")
        arguments = [values[value.name or ""] for value in node.inputs if value is not None]
        settings = {name: attribute.value for name, attribute in node.attributes.items()}
        values[node.outputs[0].name or ""] = operators[node.op_type](*arguments, **settings)
    return {output.name: values[output.name] for output in model.outputs}
