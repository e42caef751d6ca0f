"""Horizontal merging: one wide Conv, MatMul or Gemm for several that read the same tensor."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace
from trtkit.passes.linear import is_float

COPY_LIMIT = 1 << 20  # bytes of weights that others read too, and that merging therefore keeps twice


class MergeSiblings(Rewrite):
    """Operators with weights that read the same tensor are one with the weights side by side, and a Split.

        x W1, x W2, x W3 = Split(x [W1 | W2 | W3])

    Columns of a product, and output channels of a convolution, do not know of each other, so that this is exact.

    1. *Requires* nodes of one operator in the same graph that read one value in first place, with equal attributes:
       Conv of group 1 with kernels of one size, MatMul by a constant matrix, Gemm by a constant matrix. Biases are
       constant and the same for every row; where only some have one, the others get zeros. Of the weights at most
       `COPY_LIMIT` bytes are also read elsewhere. Opset 7 or later, where a bias of one row broadcasts.
       Grouped convolutions are refused: outputs of one group have to lie side by side, those of one sibling, too.
    2. *Rewrite*: one wide node in the place of the first, and a Split along the output channels.
    3. *Ensures*: equal up to the order of summation; outputs keep their names.

    No level of `optimize` has this rule. TensorRT merges sibling products by itself: BERT-base gives 122 kernels either
    way. Convolutions it leaves apart, but within a network the cut costs what the merging saves: GoogLeNet in FP16 (18
    convolutions fewer, 9 Splits more) gives 73 kernels instead of 74 with TensorRT-RTX 1.7.1, and takes as long as
    before in ONNX Runtime. It pays where the parts meet again in a Concat, which `SinkSplits` finds. Run both, and
    measure.

    >>> import onnx, trtkit
    >>> from trtkit.passes import run_passes
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 1] q, float[n, 2] k) <float[2, 1] wq = {1, 2}, float[2, 2] wk = {3, 4, 5, 6}>
    ...     {q = MatMul(x, wq)  k = MatMul(x, wk)}'''))
    >>> run_passes(model, [MergeSiblings()]).op_counts
    {'MatMul': 1, 'Split': 1}
    """

    title = "merge siblings"
    ops = frozenset({"Conv", "MatMul", "Gemm"})

    def rewrite(self, node: ir.Node) -> str | None:
        x, key = node.inputs[0], _key(node)
        if x is None or key is None or dims(x) is None or self.opset < 7:
            return None
        readers = dict.fromkeys(use.node for use in x.uses() if use.idx == 0 and use.node.graph is node.graph)
        siblings = [node, *(each for each in readers if each is not node and _key(each) == key)]
        if len(siblings) < 2 or _kept_twice(siblings) > COPY_LIMIT:
            return None
        self._split(self._wide(siblings), siblings)
        return f"{node.op_type} for {len(siblings)}"

    def _wide(self, siblings: Sequence[ir.Node]) -> ir.Node:
        """The wide node, put before the first sibling: nodes are visited in order, so that it comes before them all."""
        first = siblings[0]
        assert first.graph is not None
        name = self.names.fresh(f"{first.name}_wide")
        weights = [weight for node in siblings if (weight := array(node.inputs[1])) is not None]
        data = np.concatenate(weights, axis=_channel_axis(first))
        inputs = [first.inputs[0], initializer(first.graph, self.names.fresh(f"{name}.weight"), data)]
        if any(_given_bias(node) is not None for node in siblings):
            bias = np.concatenate([_bias(node) for node in siblings])
            inputs.append(initializer(first.graph, self.names.fresh(f"{name}.bias"), bias))
        wide = ir.Node("", first.op_type, inputs, first.attributes.values(), name=name)
        wide.metadata_props.update(first.metadata_props)
        out, like = wide.outputs[0], first.outputs[0]
        out.name, out.type = self.names.fresh(f"{like.name}_wide"), like.type
        first.graph.insert_before(first, wide)
        return wide

    def _split(self, wide: ir.Node, siblings: Sequence[ir.Node]) -> None:
        x, graph, whole = siblings[0].inputs[0], wide.graph, wide.outputs[0]
        rank = len(dims(x) or ())
        axis = rank - 1 if wide.op_type == "MatMul" else 1
        sizes = [_channels(node) for node in siblings]
        split = split_node(self, whole, axis, sizes, name=f"{siblings[0].name}_split")
        if (shape := dims(siblings[0].outputs[0])) is not None:
            whole.shape = ir.Shape([sum(sizes) if i == axis else d for i, d in enumerate(shape)])
        assert graph is not None
        graph.insert_after(wide, split)
        for node, part in zip(siblings, split.outputs, strict=True):
            old = node.outputs[0]
            part.name, part.type, part.shape = self.names.fresh(f"{old.name}_part"), old.type, old.shape
            replace(old, part)  # never refused: the part is computed in this graph, and is no output yet
            remove(node)


def split_node(rule: Rewrite, whole: ir.Value, axis: int, sizes: Sequence[int], name: str) -> ir.Node:
    """A Split of a value in the spelling of the rule's opset, not yet in any graph but that of its sizes."""
    attributes, inputs = [ir.AttrInt64("axis", axis)], [whole]
    if rule.opset < 13:
        attributes.append(ir.AttrInt64s("split", sizes))
    else:
        assert whole.graph is not None
        inputs.append(initializer(whole.graph, rule.names.fresh(f"{name}_sizes"), np.array(sizes, np.int64)))
    return ir.Node("", "Split", inputs, attributes, num_outputs=len(sizes), name=rule.names.fresh(name))


def _key(node: ir.Node) -> Hashable:
    """What siblings have in common besides their input; None where a node cannot be one."""
    weight = array(node.inputs[1]) if node.op_type in MergeSiblings.ops and node.domain == "" else None
    if weight is None or not is_float(weight) or node.attributes.get_int("group", 1) != 1:
        return None
    if node.op_type == "Conv":
        inner = weight.shape[1:]
    elif weight.ndim != 2:
        return None
    else:
        inner = (weight.shape[1 - _channel_axis(node)],)
    bias = _given_bias(node)
    if bias is None and len(node.inputs) > 2 and node.inputs[2] is not None:
        return None
    if bias is not None and (bias.dtype != weight.dtype or bias.shape[:-1] != (1,) * (bias.ndim - 1)):
        return None
    rest = {a.name: repr(a.value) for a in node.attributes.values() if a.name not in ("group", "kernel_shape")}
    return node.op_type, weight.dtype.name, inner, tuple(sorted(rest.items()))


def _channel_axis(node: ir.Node) -> int:
    """Along which axis of the weight the output channels are counted."""
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1
    return 0 if node.op_type == "Conv" or transposed else 1


def _channels(node: ir.Node) -> int:
    weight = array(node.inputs[1])
    assert weight is not None
    return int(weight.shape[_channel_axis(node)])


def _given_bias(node: ir.Node) -> np.ndarray | None:
    return array(node.inputs[2]) if len(node.inputs) > 2 else None


def _bias(node: ir.Node) -> np.ndarray:
    """The bias as one number for each output channel."""
    bias, weight = _given_bias(node), array(node.inputs[1])
    assert weight is not None
    given = np.zeros(1, weight.dtype) if bias is None else bias.reshape(-1)
    return np.broadcast_to(given, _channels(node))


def _kept_twice(siblings: Sequence[ir.Node]) -> int:
    """Bytes of weights that somebody else reads, too, so that they cannot go when the siblings go."""
    weights = {value for node in siblings for value in node.inputs[1:] if value is not None}
    shared = [w for w in weights if w.is_graph_output() or any(use.node not in siblings for use in w.uses())]
    return sum(data.nbytes for value in shared if (data := array(value)) is not None)
