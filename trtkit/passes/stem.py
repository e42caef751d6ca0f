"""Give the first convolution of a vision network more channels and fewer taps: space to depth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from trtkit.passes.common import Rewrite, array, dims, initializer, remove, replace

_FEW_CHANNELS = 4  # tensor cores read 8 or 16 channels at a time: with three most of what is loaded is padding
_PHASES = 4  # 2x2 pixels
_ALIGNED = 8  # FP16 numbers in the 16 bytes that the strides of Hopper's tensor memory accelerator are multiples of


class SpaceToDepthStem(Rewrite):
    """A stride-2 convolution of 3 channels is a stride-1 convolution of 16 on an image of half the size.

    Output pixel i of the convolution with stride 2, K taps and p pixels of padding in front reads x[2i + k - p]. Put
    zero taps in front until the offset p is even and behind until K is even; then taps come in pairs (k = 2b + r), and
    x[2(i + b) + r - p] is pixel i + b - p/2 of the phase r. `SpaceToDepth` makes the 2x2 phases channels:

        W'[m, (ry, rx, c), by, bx] = W[m, c, 2 by + ry, 2 bx + rx]

    Three colours would make 12 channels; a fourth of zeros makes 16, and whole vectors of memory. (ResNet-50 in FP16 at
    batch 1 on an H100: this convolution takes 26.8 us as exported, 13.2 us on 12 channels, both in kernels made for the
    GPU before, and 9.8 us on 16 channels, in one made for Hopper.)

    1. *Requires* Conv of at most 4 channels, group 1, stride 2, no dilation, on an image of known, even height and
       width; constant weights; opset 13 or later.
    2. *Rewrite*: Pad of the channels where their number asks for it, SpaceToDepth with block size 2, and a Conv of
       stride 1 with W' and the same bias.
    3. *Ensures*: equal up to the order of summation. A 7x7 kernel has 49 taps on 3 channels, the new one 16 on 16.
    """

    title = "space to depth"
    ops = frozenset({"Conv"})

    def rewrite(self, node: ir.Node) -> str | None:
        weight, shape, out = array(node.inputs[1]), dims(node.inputs[0]), dims(node.outputs[0])
        if weight is None or shape is None or out is None or len(shape) != 4 or self.opset < 13:
            return None
        if weight.shape[1] > _FEW_CHANNELS or min(weight.shape[2:]) < 2 or not _plain_stride_2(node):
            return None
        sizes = [(h, o) for h, o in zip(shape[2:], out[2:], strict=True) if isinstance(h, int) and isinstance(o, int)]
        if len(sizes) < 2 or any(height % 2 for height, _ in sizes):
            return None
        front = node.attributes.get_ints("pads", [0, 0, 0, 0])[:2]
        weight, begin = _paired(weight, front)
        end = [o - h // 2 - b + taps // 2 - 1 for (h, o), b, taps in zip(sizes, begin, weight.shape[2:], strict=True)]
        if min(end) < 0:
            return None
        extra = (-_PHASES * weight.shape[1] % _ALIGNED) // _PHASES
        weight = np.pad(weight, ((0, 0), (0, extra), (0, 0), (0, 0)))
        return self._put(node, _phases(weight), [*begin, *end], extra)

    def _put(self, node: ir.Node, weight: np.ndarray, pads: list[int], extra: int) -> str | None:
        assert node.graph is not None
        chain, image = [], node.inputs[0]
        if extra:
            widths = initializer(
                node.graph, self.names.fresh(f"{node.name}.widths"), np.array([0, 0, 0, 0, 0, extra, 0, 0])
            )
            chain.append(ir.node("Pad", [image, widths], name=self.names.fresh(f"{node.name}.colours")))
            image = chain[0].outputs[0]
        depth = ir.node("SpaceToDepth", [image], {"blocksize": 2}, name=self.names.fresh(f"{node.name}.depth"))
        kernel = initializer(node.graph, self.names.fresh(f"{node.name}.phases"), weight)
        conv = ir.node(
            "Conv", [depth.outputs[0], kernel, *node.inputs[2:]],
            {"kernel_shape": list(weight.shape[2:]), "pads": pads, "strides": [1, 1]},
            name=self.names.fresh(f"{node.name}.stride1"),
        )  # fmt: skip
        return "Conv of stride 2" if put_instead(node, [*chain, depth, conv], self) else None


def _plain_stride_2(node: ir.Node) -> bool:
    get = node.attributes.get_ints
    return (
        list(get("strides", [1, 1])) == [2, 2]
        and list(get("dilations", [1, 1])) == [1, 1]
        and node.attributes.get_int("group", 1) == 1
        and node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    )


def _paired(weight: np.ndarray, front: Sequence[int]) -> tuple[np.ndarray, list[int]]:
    """The weight with zero taps, so that offset and number of taps are even; and the offset in pairs."""
    extra = [pad % 2 for pad in front]
    behind = [(taps + more) % 2 for taps, more in zip(weight.shape[2:], extra, strict=True)]
    padded = np.pad(weight, ((0, 0), (0, 0), *zip(extra, behind, strict=True)))
    return padded, [(pad + more) // 2 for pad, more in zip(front, extra, strict=True)]


def _phases(weight: np.ndarray) -> np.ndarray:
    """(M, C, 2Y, 2X) to (M, 4C, Y, X), the channels in the order of SpaceToDepth: phase first, then colour."""
    m, c, y, x = weight.shape
    return weight.reshape(m, c, y // 2, 2, x // 2, 2).transpose(0, 3, 5, 1, 2, 4).reshape(m, 4 * c, y // 2, x // 2)


def put_instead(node: ir.Node, chain: list[ir.Node], rule: Rewrite) -> bool:
    """Put a chain of nodes in the place of one: the last takes over its name and type. False where that may not be."""
    graph, old = node.graph, node.outputs[0]
    assert graph is not None
    for each in chain:
        for value in each.outputs:
            value.name = rule.names.fresh(f"{each.name}.out")
            value.type = old.type
    new = chain[-1].outputs[0]
    new.shape = old.shape
    graph.insert_before(node, chain)
    if not replace(old, new):
        graph.remove(list(reversed(chain)), safe=True)
        return False
    remove(node)
    return True
