"""Instant checks of lesson 04's exercises."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, number, show
from trtkit.course.pictures import lesson04 as pictures
from trtkit.importers.sklearn_trees import Tree, matrices

# A tree that is deeper on its right side, with its nodes in the order in which scikit-learn keeps them.
TREE = Tree(
    feature=np.array([0, 1, 0, 0, 2, 0, 0]),
    threshold=np.array([0.5, -0.2, 0, 0, 0.1, 0, 0], np.float32),
    left=np.array([1, 2, -1, -1, 5, -1, -1]),
    right=np.array([4, 3, -1, -1, 6, -1, -1]),
    value=np.arange(7.0)[:, None],
)


class _Counting(np.ndarray):
    """An array that counts the matrix products it takes part in, whoever asks for them."""

    products = 0

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        if ufunc is np.matmul:
            _Counting.products += 1
        plain = [np.asarray(i) if isinstance(i, _Counting) else i for i in inputs]
        return np.asarray(getattr(ufunc, method)(*plain, **kwargs)).view(_Counting)

    def dot(self, other: Any, out: Any = None) -> Any:
        return np.dot(self, other)

    def __array_function__(self, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
        if func in (np.dot, np.einsum, np.inner, np.tensordot):
            _Counting.products += 1
        return super().__array_function__(func, types, args, kwargs)


def check_merged(two_products: Callable[..., Any]) -> None:
    """Lesson 04, exercise 1: two products with one multiplication."""
    rng = np.random.default_rng(0)
    x, a, b = (rng.normal(size=shape).view(_Counting) for shape in ((4, 6), (6, 3), (6, 5)))
    right = np.asarray(x) @ np.asarray(a), np.asarray(x) @ np.asarray(b)
    _Counting.products = 0
    answer = two_products(x, a, b)
    count = _Counting.products
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise NotSolved("two_products() returns both results, x @ a and x @ b: return first, second")
    shapes = [np.shape(part) for part in answer]
    show(
        pictures.columns({"products": {"yours": count, "wanted": 1}}, "count"),
        f"You used {count} products, wanted is 1.",
    )
    if shapes != [(4, 3), (4, 5)]:
        raise NotSolved(
            f"Your results have the shapes {shapes}; x @ a is (4, 3) and x @ b is (4, 5). Where do you cut?"
        )
    if not all(np.allclose(np.asarray(mine), want) for mine, want in zip(answer, right, strict=True)):
        raise NotSolved("The shapes are right and the values are not. Put the weights side by side: axis 1, a first.")
    if count != 1:
        raise NotSolved(f"Right values, but {count} products. Concatenate the weights first, and multiply once.")
    print("Right: one product, cut where the first weight ends.")


def check_heads(flops: Callable[[float, float, int], tuple[float, float]]) -> None:
    """Lesson 04, exercise 2: FLOPs of k whole networks, and of one trunk with k heads."""
    ks = np.arange(1, 9)
    pairs = [flops(300.0, 20.0, int(k)) for k in ks]
    if not all(isinstance(pair, (tuple, list)) and len(pair) == 2 for pair in pairs):
        raise NotSolved(
            "flops(trunk, head, k) returns two numbers: those of k networks, and of one trunk with k heads."
        )
    yours = np.array([[number(part, "flops(trunk, head, k)") for part in pair] for pair in pairs])
    right = np.stack([ks * 320.0, 300.0 + 20.0 * ks], axis=1)
    curves = {"k networks, yours": yours[:, 0].tolist(), "one trunk, yours": yours[:, 1].tolist()}
    show(pictures.lines(ks.tolist(), curves, "heads", "MFLOP"), "Your FLOPs over the number of heads.")
    for column, what in ((0, "k networks"), (1, "one trunk with k heads")):
        wrong = np.flatnonzero(~np.isclose(yours[:, column], right[:, column]))
        if wrong.size:
            k = int(ks[wrong[0]])
            got, want = yours[wrong[0], column], right[wrong[0], column]
            raise NotSolved(f"A trunk of 300 and heads of 20: for {what} with k = {k} you get {got:g}, and it is "
                            f"{want:g}. What has to be computed k times, and what once?")  # fmt: skip
    print("Right: 8 heads cost 2560 as networks of their own, and 460 on one trunk.")


def check_names(rename: Callable[[Mapping[str, list[str]]], Any]) -> None:
    """Lesson 04, exercise 3: which names get their model's name in front."""
    models = {"cats": ["conv", "relu", "y"], "dogs": ["conv", "pool", "y"], "age": ["pool", "score"]}
    counts = Counter(name for names in models.values() for name in names)
    right = {(m, n): f"{m}/{n}" if counts[n] > 1 else n for m, names in models.items() for n in names}
    answer = rename({model: list(names) for model, names in models.items()})
    if not isinstance(answer, Mapping) or not answer:
        raise NotSolved(
            "rename(models) returns a dict: {('cats', 'conv'): 'cats/conv', ...}, one entry a name of a model."
        )
    rows = [(m, n, str(answer.get((m, n), "(missing)")), answer.get((m, n)) == new) for (m, n), new in right.items()]
    show(pictures.renamed(rows), "Every name and what your code makes of it; wrong ones are red.")
    for model, name, new, fine in rows:
        if not fine:
            why = f"{counts[name]} models have it" if counts[name] > 1 else "only one model has it, so it may stay"
            raise NotSolved(
                f"{name!r} of {model!r} became {new!r}: {why}. The rule looks at all models first, then renames."
            )
    print("Right: six names change, two stay, and the order of the models does not matter.")


def check_paths(path_of: Callable[[NDArray[Any], NDArray[Any]], Any]) -> None:
    """Lesson 04, exercise 4: the matrix of left and right turns of a tree."""
    m = matrices(TREE)
    answer = path_of(TREE.left.copy(), TREE.right.copy())
    if answer is None:
        raise NotSolved("path_of(left, right) returned nothing yet. It returns the matrix, (questions, leaves).")
    yours = np.asarray(answer, np.float64)
    if yours.shape != m.path.shape:
        raise NotSolved(f"Your matrix has shape {yours.shape}; the tree has {m.path.shape[0]} questions (rows) and "
                        f"{m.path.shape[1]} leaves (columns), both in the order of their numbers.")  # fmt: skip
    show(pictures.check_paths(yours, m.path, m.lefts), "Your path matrix beside the tree's.")
    if not np.array_equal(yours, m.path):
        row, column = (int(i) for i in np.argwhere(yours != m.path)[0])
        hint = "all signs are turned around: yes means left" if np.array_equal(yours, -m.path) else (
            "leaves that do not lie below a question get 0" if m.path[row, column] == 0
            else "follow the way from the root to this leaf")  # fmt: skip
        raise NotSolved(f"Question {'abcdefgh'[row]}, leaf {column + 1}: you have {yours[row, column]:+g}, and it is "
                        f"{m.path[row, column]:+g}; {hint}.")  # fmt: skip
    x = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    reached = (x[:, m.feature] <= m.threshold).astype(float) @ yours == m.lefts
    print(f"Right: of 200 random rows every one reaches exactly one leaf: {bool((reached.sum(axis=1) == 1).all())}.")
