"""Recognise GELU, exact or by tanh, in what exporters write for it."""

from __future__ import annotations

import math

import onnx_ir as ir

from trtkit.passes.common import Rewrite, dims, single_use
from trtkit.passes.match import Product, made_by, near, private, put, with_scalar

_ROOT = math.sqrt(2 / math.pi)
_CUBIC = 0.044715


class FuseGelu(Rewrite):
    """GELU (Hendrycks & Gimpel 2016, section 2) is one operator of ONNX from opset 20 on.

    1. `0.5 x (1 + erf(x / sqrt(2)))` is `Gelu(x)`.
    2. `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` is `Gelu(x, approximate="tanh")`; also with x taken out of
       the bracket.

    *Requires* opset 20; factors in any order and any nesting of Mul, Div by a number and Pow to 2 or 3; constants of
    one element within 0.1 % of these (exporters round them); no intermediate value read elsewhere. *Rewrite*: Gelu in
    the place of the last Mul. *Ensures*: equal up to rounding, and up to that of the constants; names of outputs stay.
    """

    title = "fuse GELU"
    ops = frozenset({"Mul"})

    def rewrite(self, node: ir.Node) -> str | None:
        if self.opset < 20:
            return None
        product = Product(node.outputs[0])
        if not near(product.number, 0.5) or len(product.factors) != 2:
            return None
        for x, bracket in (product.factors, product.factors[::-1]):
            if dims(x) and (found := self._match(x, bracket)):  # a constant of one axis would give one to a number
                approximate, inner = found
                if not private([*inner, *product.nodes], node):
                    return None
                attributes = [ir.AttrString("approximate", approximate)]
                name = self.names.fresh(f"{node.name or node.outputs[0].name}_gelu")
                put(node, ir.Node("", "Gelu", [x], attributes, num_outputs=1, name=name))
                return "Gelu" if approximate == "none" else "Gelu by tanh"
        return None

    def _match(self, x: ir.Value, bracket: ir.Value) -> tuple[str, list[ir.Node]] | None:
        """The kind of GELU if `bracket` is 1 + erf(...) or 1 + tanh(...) of x, and the nodes it is made of."""
        add = made_by(bracket, "Add")
        pair = with_scalar(add)
        function = made_by(pair[0], "Erf", "Tanh") if pair and near(pair[1], 1) else None
        if add is None or function is None:
            return None
        inside = Product(function.inputs[0])
        nodes = [add, function, *inside.nodes]
        if function.op_type == "Erf":
            return ("none", nodes) if near(inside.number, math.sqrt(0.5)) and inside.is_power(x, 1) else None
        polynomial = _cubic(x, inside) if near(inside.number, _ROOT) else None
        return None if polynomial is None else ("tanh", [*nodes, *polynomial])


def _cubic(x: ir.Value, inside: Product) -> list[ir.Node] | None:
    """The nodes of x + 0.044715 x^3 or x (1 + 0.044715 x^2), None if it is something else."""
    others = [factor for factor in inside.factors if factor is not x]
    add = made_by(others[0], "Add") if len(others) == 1 else None
    if add is None or not single_use(add.outputs[0]):
        return None
    if len(inside.factors) == 2:
        pair = with_scalar(add)
        square = Product(pair[0]) if pair and near(pair[1], 1) else None
        fits = square is not None and near(square.number, _CUBIC) and square.is_power(x, 2)
        return [add, *square.nodes] if square is not None and fits else None
    if len(inside.factors) == 1 and x in add.inputs:
        cube = Product(add.inputs[1] if add.inputs[0] is x else add.inputs[0])
        return [add, *cube.nodes] if near(cube.number, _CUBIC) and cube.is_power(x, 3) else None
    return None
