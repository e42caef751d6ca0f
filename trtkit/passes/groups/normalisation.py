"""A normalisation with the sum that it normalises."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.groups.common import HEAVY, NORMS, POINTWISE, Grouping, GroupRule, adds_constant, is_a, is_global


class ResidualNorm(GroupRule):
    """`LayerNorm(x + f(x) + b)` is one kernel: the sum is in registers when its mean is taken.

    1. *Requires* a LayerNormalization or RMSNormalization whose input is a pointwise node (the residual Add, say). The
       first step of an RMSNorm written out, the Pow or Mul before a mean over rows, will do as well.
    2. *Group*: the normalisation, the node before it, and before that a bias Add read by the sum alone.
    3. The sum may be read by others too, as in a pre-norm transformer: it is then an output of the group. But if it
       adds to a product with a bias, it is left to `Epilogue`: the product's kernel has the sum in its registers
       as well, and would otherwise write its result twice.
    """

    title = "normalisation"

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        total = grouping.made(node.inputs[0]) if is_a(node, NORMS) or _squares(node, grouping) else None
        if total is None or not is_a(total, POINTWISE):
            return []
        biases = [b for v in total.inputs if (b := _bias(v, total, grouping)) is not None]
        shared = grouping.wiring.sole_reader(total) is not node
        if shared and (biases or any(_is_gemm(grouping.made(v)) for v in total.inputs)):
            return []
        return [*biases, total, node]


def _bias(value: ir.Value | None, total: ir.Node, grouping: Grouping) -> ir.Node | None:
    node = grouping.made(value)
    if node is None or not adds_constant(node) or grouping.next(node) is not total:
        return None
    return node if any(is_a(grouping.made(v), HEAVY) for v in node.inputs) else None


def _squares(node: ir.Node, grouping: Grouping) -> bool:
    mean = grouping.next(node) if is_a(node, ("Pow",)) else None
    return is_a(mean, ("ReduceMean",)) and mean is not None and not is_global(mean)


def _is_gemm(node: ir.Node | None) -> bool:
    return is_a(node, ("Gemm",))
