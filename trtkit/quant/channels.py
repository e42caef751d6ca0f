"""Channels of an activation divided by numbers, and the weights behind it multiplied by them: the product stays.

    x @ W  =  (x / s) @ (s[:, None] * W)

Two methods choose s: `smooth.smooth`, so that activations get easy to quantise, and `weight_only.quantize_weights`, so
that those weights keep most digits whose channels are large.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Names, array, constant, initializer
from trtkit.quant.qdq import why_no_weights


def products(
    graph: ir.Graph, ops: Collection[str], skip: Collection[str] = (), block: int = 1
) -> tuple[dict[ir.Value, list[ir.Node]], dict[ir.Node, str]]:
    """MatMul and Gemm nodes with constant weights by the activation that they share; and why others are left.

    Args:
        ops: operators to look at.
        skip: names of nodes to leave.
        block: what the length of a sum has to be a multiple of.
    """
    groups: dict[ir.Value, list[ir.Node]] = {}
    left: dict[ir.Node, str] = {}
    for node in graph:
        if node.op_type not in ops or node.domain != "":
            continue
        obstacle = "the caller skips it" if node.name in skip else _obstacle(node, block)
        if obstacle:
            left[node] = obstacle
        elif node.inputs[0] is not None:
            groups.setdefault(node.inputs[0], []).append(node)
    return groups, left


def _obstacle(node: ir.Node, block: int) -> str | None:
    weight, obstacle = constant(node.inputs[1]), why_no_weights(node)
    if obstacle or weight is None:
        return obstacle
    if len(weight.shape) != 2 or node.attributes.get_int("transA", 0) != 0:
        return "its weight is no matrix, or its input is transposed"
    length = weight.shape.numpy()[1 if node.attributes.get_int("transB", 0) else 0]
    return f"its sums do not divide into blocks of {block}" if length % block else None


def matrix(node: ir.Node) -> np.ndarray:
    """The weight of a product as (K, N): sums run along the first axis."""
    data = array(node.inputs[1])
    assert data is not None
    return data.T if node.attributes.get_int("transB", 0) else data


def divide(graph: ir.Graph, names: Names, x: ir.Value, scales: np.ndarray, why: str) -> ir.Value:
    """A Mul of x (..., K) by 1 / scales (K,), put right behind x: TensorRT fuses it with whatever made x."""
    factor = initializer(graph, names.fresh(f"{x.name}_{why}"), (1 / scales).astype(np.float32))
    mul = ir.node("Mul", [x, factor], name=names.fresh(f"{x.name}_divided"))
    out, producer = mul.outputs[0], x.producer()
    out.name, out.shape, out.type = names.fresh(f"{x.name}_divided"), x.shape, x.type
    if producer is None:
        graph.insert_before(graph[0], mul)
    else:
        graph.insert_after(producer, mul)
    return out


def replace(graph: ir.Graph, names: Names, node: ir.Node, x: ir.Value, weight: np.ndarray, why: str) -> None:
    """Make a product read x and another weight, (K, N), stored as the old one was."""
    old = node.inputs[1]
    assert old is not None
    data = weight.T if node.attributes.get_int("transB", 0) else weight
    node.replace_input_with(0, x)
    node.replace_input_with(1, initializer(graph, names.fresh(f"{old.name}_{why}"), np.ascontiguousarray(data)))
