"""Decision trees as tensors: what a network's runtime can compute, and TensorRT has kernels for.

Two ways, both after Nakandala et al., "A Tensor Compiler for Unified Machine Learning Prediction Serving", OSDI 2020
(Hummingbird): trees as matrix products, and trees walked level by level with gathers.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from trtkit.importers.sklearn_graph import Builder

Strategy = Literal["auto", "gemm", "walk"]

_NEVER = 1e6  # a count of left turns that no path has
_MOST_LEAVES = 512  # beyond it the matrices (inner nodes x leaves a tree) grow past a megabyte a tree


class Tree(NamedTuple):
    """One tree: for every node its feature, threshold and children (-1 at a leaf) and its values (nodes, K)."""

    feature: NDArray[np.int64]
    threshold: NDArray[np.float32]
    left: NDArray[np.int64]
    right: NDArray[np.int64]
    value: NDArray[np.float64]

    @property
    def leaves(self) -> int:
        return int((self.left < 0).sum())

    @property
    def depth(self) -> int:
        """Decisions on the longest path."""
        depth, level = 0, [0]
        while level := [int(c) for n in level if self.left[n] >= 0 for c in (self.left[n], self.right[n])]:
            depth += 1
        return depth


def round_down(threshold: NDArray[Any]) -> NDArray[np.float32]:
    """The largest float32 not above each threshold: for a float32 x, x <= t then is the same question as before.

    >>> round_down(np.array([0.1])) <= 0.1
    array([ True])
    """
    wide = np.asarray(threshold, np.float64)
    near = wide.astype(np.float32)
    return np.where(near > wide, np.nextafter(near, np.float32(-np.inf)), near).astype(np.float32)


def forest(g: Builder, x: str, trees: list[Tree], strategy: Strategy = "auto") -> str:
    """The sum over trees of the values of the leaves that x (N, F) falls into: (N, K)."""
    if strategy == "auto":
        strategy = "gemm" if max(tree.leaves for tree in trees) <= _MOST_LEAVES else "walk"
    return (_gemm if strategy == "gemm" else _walk)(g, x, trees)


class Matrices(NamedTuple):
    """One tree with I inner nodes and L leaves as matrices: see `matrices`."""

    feature: NDArray[np.int64]  # (I,) which feature each inner node asks for
    threshold: NDArray[np.float32]  # (I,)
    path: NDArray[np.float32]  # (I, L) 1: the leaf lies to the left of the node, -1: to the right, 0: elsewhere
    lefts: NDArray[np.float32]  # (L,) left turns on the way to each leaf
    value: NDArray[np.float32]  # (L, K)


def matrices(tree: Tree) -> Matrices:
    """A tree as matrices. All its questions are asked at once: t = (x[feature] <= threshold), 0 or 1 each.

    t @ path counts, for each leaf, the left turns that were answered yes minus the right turns answered yes. That
    equals `lefts` at one leaf only: the one where every answer was the one its path needs. So (t @ path == lefts) @
    value is the value of the leaf that x falls into.

    >>> stump = Tree(np.array([0, 0, 0]), np.array([0.5, 0, 0], np.float32), np.array([1, -1, -1]),
    ...              np.array([2, -1, -1]), np.array([[0.], [10.], [20.]]))
    >>> m = matrices(stump)
    >>> m.path.tolist(), m.lefts.tolist(), m.value.ravel().tolist()
    ([[1.0, -1.0]], [1.0, 0.0], [10.0, 20.0])
    """
    inner, leaves = np.flatnonzero(tree.left >= 0), np.flatnonzero(tree.left < 0)
    row = {int(node): i for i, node in enumerate(inner)}
    column = {int(node): i for i, node in enumerate(leaves)}
    path = np.zeros((len(inner), len(leaves)), np.float32)
    todo: list[tuple[int, list[tuple[int, int]]]] = [(0, [])]
    while todo:
        node, turns = todo.pop()
        if node in column:
            for i, way in turns:
                path[i, column[node]] = way
        else:
            todo.append((int(tree.left[node]), [*turns, (row[node], 1)]))
            todo.append((int(tree.right[node]), [*turns, (row[node], -1)]))
    lefts = (path > 0).sum(axis=0).astype(np.float32)
    return Matrices(tree.feature[inner], tree.threshold[inner], path, lefts, tree.value[leaves].astype(np.float32))


def _gemm(g: Builder, x: str, trees: list[Tree]) -> str:
    """All trees padded to one size and asked together: two batched matrix products.

    Features are gathered, not multiplied by a one-hot matrix: a product in TF32 would round them before they are
    compared. The products that are left hold small whole numbers, which every precision has exactly.
    """
    parts = [matrices(tree) for tree in trees]
    count, outputs = len(parts), parts[0].value.shape[1]
    inner, leaves = max(1, *(len(p.feature) for p in parts)), max(p.path.shape[1] for p in parts)
    feature, threshold = np.zeros((count, inner), np.int64), np.zeros((count, 1, inner), np.float32)
    path, lefts = np.zeros((count, inner, leaves), np.float32), np.full((count, 1, leaves), _NEVER, np.float32)
    value = np.zeros((count, leaves, outputs), np.float32)
    for i, part in enumerate(parts):
        n, m = part.path.shape
        feature[i, :n], threshold[i, 0, :n] = part.feature, part.threshold
        path[i, :n, :m], lefts[i, 0, :m], value[i, :m] = part.path, part.lefts, part.value
    asked = g.add("Gather", g.add("Transpose", x, perm=[1, 0]), g.constant("feature", feature.ravel()), axis=0)
    asked = g.add("Reshape", asked, g.constant("shape", np.array([count, inner, -1])))
    asked = g.add("Transpose", asked, perm=[0, 2, 1])  # (trees, N, inner nodes)
    answers = g.add("Cast", g.add("LessOrEqual", asked, g.constant("threshold", threshold)), to=1)
    turns = g.add("MatMul", answers, g.constant("path", path))
    reached = g.add("Cast", g.add("Equal", turns, g.constant("lefts", lefts)), to=1)
    values = g.add("MatMul", reached, g.constant("value", value))
    return g.add("ReduceSum", values, g.constant("axes", np.array([0])), keepdims=0)


def _walk(g: Builder, x: str, trees: list[Tree]) -> str:
    """All trees in one table, and for every row and tree the node it has come to; a leaf leads to itself.

    Small whatever the depth, but TensorRT takes long to build it: 24 s for 50 trees of 20 levels.
    """
    starts = np.cumsum([0, *(len(tree.left) for tree in trees)])[:-1]
    here = [np.arange(len(tree.left)) for tree in trees]
    sides = [
        np.concatenate([np.where(s < 0, n, s) + start for s, n, start in zip(side, here, starts, strict=True)])
        for side in ([tree.left for tree in trees], [tree.right for tree in trees])
    ]
    feature = np.concatenate([np.where(tree.left < 0, 0, tree.feature) for tree in trees])
    threshold = np.concatenate([tree.threshold for tree in trees])
    left, right = (g.constant(name, side.astype(np.int64)) for name, side in zip(("left", "right"), sides, strict=True))
    # the first question of every tree is known
    asked = g.add("Gather", x, g.constant("root_feature", feature[starts]), axis=1)
    yes = g.add("LessOrEqual", asked, g.constant("root_threshold", threshold[starts]))
    at = g.add("Where", yes, g.constant("root_left", sides[0][starts]), g.constant("root_right", sides[1][starts]))
    features, thresholds = g.constant("feature", feature), g.constant("threshold", threshold)
    for _ in range(max(tree.depth for tree in trees) - 1):
        asked = g.add("GatherElements", x, g.add("Gather", features, at), axis=1)
        yes = g.add("LessOrEqual", asked, g.add("Gather", thresholds, at))
        at = g.add("Where", yes, g.add("Gather", left, at), g.add("Gather", right, at))
    values = np.concatenate([tree.value for tree in trees]).astype(np.float32)
    found = g.add("Gather", g.constant("value", values), at, axis=0)  # (N, trees, K)
    return g.add("ReduceSum", found, g.constant("axes", np.array([1])), keepdims=0)
