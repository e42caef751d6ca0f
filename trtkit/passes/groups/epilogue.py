"""A convolution or matrix product with what is done to its result before it is written."""

from __future__ import annotations

import onnx_ir as ir

from trtkit.passes.common import dims
from trtkit.passes.groups.activation import NATIVE, activation, gated
from trtkit.passes.groups.common import POINTWISE, REDUCES, Grouping, GroupRule, adds_constant, data_inputs, is_a
from trtkit.passes.match import with_scalar

_CONVOLUTIONS = ("Conv", "ConvTranspose")
_PRODUCTS = ("Gemm", "MatMul")
_LONGEST = 8


class Epilogue(GroupRule):
    """`activation(Conv(x) + residual)` is one kernel: each result passes through the epilogue while in a register.

    1. *Requires* a Conv, ConvTranspose, Gemm or MatMul.
    2. *Group*: the operator, then as far as each is read by the next alone: BatchNormalization, sums and products
       with constants (a bias), an Add with another tensor (the residual: read once by this kernel, where it would be
       written and read again by the next), one activation. After a product all of these may come again, as in
       `relu(x W + b) + x`; after a convolution the activation is the last.
    3. The Add of two convolutions goes to the one that is computed last: the other result is there by then.
    4. A product of four dimensions or more is computed as one of two, and what adds a tensor of the full shape would
       need it shaped back first: only bias and activation stay with it.
    5. An activation that is no part of a convolution's own code (`NATIVE`) is left to the kernel behind it, if that
       is pointwise; and the whole chain behind a product of three dimensions or fewer is left to a softmax or
       normalisation that ends it.
    """

    title = "epilogue"

    def apply(self, grouping: Grouping) -> None:
        """From the last operator to the first, for rule 3."""
        for node in reversed(grouping.nodes):
            if grouping.free(node):
                grouping.claim(self.match(node, grouping), self.title)

    def match(self, node: ir.Node, grouping: Grouping) -> list[ir.Node]:
        if is_a(node, _CONVOLUTIONS):
            return [node, *_after_convolution(node, grouping)]
        if is_a(node, _PRODUCTS):
            return [*_scales(node, grouping), node, *_after_product(node, grouping)]
        return []


def _after_convolution(node: ir.Node, grouping: Grouping) -> list[ir.Node]:
    sums = _sums(node, grouping, adds=2)
    last = sums[-1] if sums else node
    act = _next_activation(last, grouping)
    if not act or (act[0].op_type in NATIVE and len(act) == 1):
        return [*sums, *act]
    behind = grouping.wiring.after[act[-1]]
    return sums if any(is_a(reader, POINTWISE | REDUCES) for reader in behind) else [*sums, *act]


def _after_product(node: ir.Node, grouping: Grouping) -> list[ir.Node]:
    found: list[ir.Node] = []
    shape = dims(node.outputs[0])
    flat = shape is None or len(shape) <= 3
    while len(found) < _LONGEST:
        last = found[-1] if found else node
        more = _sums(last, grouping, adds=int(flat)) or _next_activation(last, grouping)
        if not more:
            break
        found += more
    end = grouping.next(found[-1] if found else node)
    return [] if flat and is_a(end, REDUCES) else found


def _sums(node: ir.Node, grouping: Grouping, adds: int) -> list[ir.Node]:
    """BatchNormalization, bias and at most so many residual additions behind a node."""
    found: list[ir.Node] = []
    while (after := grouping.next(found[-1] if found else node)) is not None and len(found) < _LONGEST:
        residual = is_a(after, ("Add",)) and len(data_inputs(after)) == 2
        if residual and adds:
            adds -= 1
        elif not (is_a(after, ("BatchNormalization",)) or adds_constant(after, ("Add", "Mul"))):
            break
        found.append(after)
    return found


def _next_activation(node: ir.Node, grouping: Grouping) -> list[ir.Node]:
    after = grouping.next(node)
    if after is None and len(node.outputs) == 1:
        after = gated(node.outputs[0], grouping)
    return activation(after, grouping)


def _scales(node: ir.Node, grouping: Grouping) -> list[ir.Node]:
    """Products with a number right before a MatMul, which becomes its alpha."""
    makers = dict.fromkeys(grouping.made(value) for value in node.inputs[:2])
    return [m for m in makers if m is not None and is_a(m, ("Mul",)) and with_scalar(m) and grouping.next(m) is node]
