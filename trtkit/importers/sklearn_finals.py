"""The last step of a scikit-learn pipeline, a classifier, regressor or cluster model, in ONNX's own operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from trtkit.errors import ModelError
from trtkit.importers.sklearn_graph import Builder
from trtkit.importers.sklearn_trees import Strategy, Tree, forest, round_down

Outputs: TypeAlias = dict[str, str]  # name of the output -> value in the graph


def label(g: Builder, values: str, classes: NDArray[Any], *, lowest: bool = False) -> str:
    """The class with the largest (or lowest) value in (N, classes), the first of several equal ones."""
    index = g.add("ArgMin" if lowest else "ArgMax", values, axis=1, keepdims=0)
    if classes.dtype.kind not in "iub" or np.array_equal(classes, np.arange(len(classes))):
        return index
    return g.add("Gather", g.constant("classes", classes.astype(np.int64)), index, axis=0)


def both_sides(g: Builder, chance: str) -> str:
    """(N, 1) chances of the second class as (N, 2) chances of both."""
    return g.add("Concat", g.add("Sub", g.number(1), chance), chance, axis=1)


def from_probabilities(g: Builder, chances: str, e: Any) -> Outputs:
    return {"label": label(g, chances, e.classes_), "probabilities": chances}


def from_scores(g: Builder, scores: str, e: Any) -> Outputs:
    """Labels of a classifier without probabilities; with two classes the score (N, 1) is that of the second."""
    if len(e.classes_) > 2:
        return {"label": label(g, scores, e.classes_), "scores": scores}
    pair = g.add("Concat", g.add("Neg", scores), scores, axis=1)
    flat = g.add("Squeeze", scores, g.constant("axes", np.array([1])))
    return {"label": label(g, pair, e.classes_), "scores": flat}


def linear(g: Builder, x: str, e: Any) -> str:
    return g.gemm(x, np.atleast_2d(e.coef_).T, e.intercept_)


def logistic_regression(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    scores = linear(g, x, e)
    if len(e.classes_) == 2:
        return from_probabilities(g, both_sides(g, g.add("Sigmoid", scores)), e)
    if e.solver == "liblinear":  # one against the rest, each with its own sigmoid
        chances = g.add("Sigmoid", scores)
        total = g.add("ReduceSum", chances, g.constant("axes", np.array([1])), keepdims=1)
        return from_probabilities(g, g.add("Div", chances, total), e)
    return from_probabilities(g, g.add("Softmax", scores, axis=1), e)


def linear_classifier(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    return from_scores(g, linear(g, x, e), e)


def linear_regressor(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    return prediction(g, linear(g, x, e), flat=np.ndim(e.coef_) == 1)


def prediction(g: Builder, values: str, flat: bool) -> Outputs:
    return {"prediction": g.add("Squeeze", values, g.constant("axes", np.array([1]))) if flat else values}


_ACTIVATIONS = {"relu": "Relu", "tanh": "Tanh", "logistic": "Sigmoid"}


def _layers(g: Builder, x: str, e: Any) -> str:
    for number, (weight, bias) in enumerate(zip(e.coefs_, e.intercepts_, strict=True)):
        x = g.gemm(x, weight, bias)
        if number < len(e.coefs_) - 1 and e.activation != "identity":
            x = g.add(_ACTIVATIONS[e.activation], x)
    return x


def mlp_classifier(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    scores = _layers(g, x, e)
    if e.out_activation_ == "softmax":
        return from_probabilities(g, g.add("Softmax", scores, axis=1), e)
    if len(e.classes_) != 2 or e.n_outputs_ != 1:
        raise ModelError("MLPClassifier with several labels a row has no rule in trtkit.")
    return from_probabilities(g, both_sides(g, g.add("Sigmoid", scores)), e)


def mlp_regressor(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    return prediction(g, _layers(g, x, e), flat=e.n_outputs_ == 1)


def squared_distances(g: Builder, x: str, points: NDArray[Any]) -> str:
    """|x - p|^2 = |x|^2 - 2 x.p + |p|^2 for every row and point, (N, F) to (N, points): one matrix product.

    Everything is shifted first so that the points lie around 0: the three terms are then small and little cancels.
    """
    centre = points.mean(axis=0)
    shifted = points - centre
    x = g.add("Sub", x, g.constant("centre", centre.astype(np.float32)))
    own = g.add("ReduceSumSquare", x, g.constant("axes", np.array([1])), keepdims=1)
    cross = g.gemm(x, -2 * shifted.T, (shifted**2).sum(axis=1))
    return g.add("Relu", g.add("Add", cross, own))  # rounding must not make a distance negative


def kmeans(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    distances = g.add("Sqrt", squared_distances(g, x, e.cluster_centers_))
    return {"label": label(g, distances, np.arange(len(e.cluster_centers_)), lowest=True), "distances": distances}


def _kernel(g: Builder, x: str, e: Any) -> str:
    """The kernel between every row and every support vector, (N, support vectors)."""
    vectors, gamma = np.asarray(e.support_vectors_), float(getattr(e, "_gamma", 0) or 0)
    if e.kernel == "rbf":
        return g.add("Exp", g.add("Mul", squared_distances(g, x, vectors), g.number(-gamma)))
    if e.kernel == "linear":
        return g.gemm(x, vectors.T, 0)
    if e.kernel == "poly":
        return g.add("Pow", g.gemm(x, gamma * vectors.T, e.coef0), g.number(e.degree))
    if e.kernel == "sigmoid":
        return g.add("Tanh", g.gemm(x, gamma * vectors.T, e.coef0))
    raise ModelError(
        f"{type(e).__name__} with the kernel {e.kernel!r} has no rule in trtkit: rbf, linear, poly, sigmoid."
    )


def _pairs(e: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Weights of the support vectors for each pair of classes (vectors, pairs), and who is first and second in it."""
    count, ends = len(e.classes_), np.cumsum([0, *e.n_support_])
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    weights = np.zeros((ends[-1], len(pairs)))
    first, second = np.zeros((len(pairs), count)), np.zeros((len(pairs), count))
    for k, (i, j) in enumerate(pairs):
        weights[ends[i] : ends[i + 1], k] = e.dual_coef_[j - 1, ends[i] : ends[i + 1]]
        weights[ends[j] : ends[j + 1], k] = e.dual_coef_[i, ends[j] : ends[j + 1]]
        first[k, i] = second[k, j] = 1
    return weights, first, second


def svc(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    """One against one: every pair of classes votes, and of classes with equal votes the surer one wins.

    Scores are those of scikit-learn's `_ovr_decision_function`: votes plus the summed decisions, squeezed to below 1/3.
    """
    kernel = _kernel(g, x, e)
    if len(e.classes_) == 2:
        return from_scores(g, g.gemm(kernel, e.dual_coef_.T, e.intercept_), e)
    if e.decision_function_shape != "ovr":
        raise ModelError(
            "SVC with decision_function_shape='ovo' has no rule in trtkit; fit it with 'ovr', the default."
        )
    weights, first, second = _pairs(e)
    decisions = g.gemm(kernel, weights, e.intercept_)
    won = g.add("Cast", g.add("Greater", decisions, g.number(0)), to=1)
    votes = g.gemm(won, first - second, second.sum(axis=0))  # the second of a pair has what the first has not
    sure = g.gemm(decisions, first - second, 0)
    squeezed = g.add("Div", sure, g.add("Mul", g.add("Add", g.add("Abs", sure), g.number(1)), g.number(3)))
    scores = g.add("Add", votes, squeezed)
    return {"label": label(g, scores if e.break_ties else votes, e.classes_), "scores": scores}


def svr(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    return prediction(g, g.gemm(_kernel(g, x, e), e.dual_coef_.T, e.intercept_), flat=True)


def _tree(e: Any, *, chances: bool = False) -> Tree:
    t = e.tree_
    if t.n_outputs != 1:
        raise ModelError(f"{type(e).__name__} with several outputs has no rule in trtkit.")
    value = t.value[:, 0, :]
    value = value / value.sum(axis=1, keepdims=True) if chances else value
    left, right = (np.asarray(side, np.int64) for side in (t.children_left, t.children_right))
    return Tree(np.asarray(t.feature, np.int64), round_down(t.threshold), left, right, value)


def _members(e: Any) -> list[Any]:
    return list(e.estimators_) if hasattr(e, "estimators_") else [e]


def forest_classifier(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    members = _members(e)
    total = forest(g, x, [_tree(member, chances=True) for member in members], trees)
    return from_probabilities(g, g.add("Mul", total, g.number(1 / len(members))), e)


def forest_regressor(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    members = _members(e)
    total = forest(g, x, [_tree(member) for member in members], trees)
    return prediction(g, g.add("Mul", total, g.number(1 / len(members))), flat=True)


def _spread(tree: Tree, column: int, columns: int, scale: float = 1) -> Tree:
    """A tree of one value a leaf as one of `columns` values, of which only its own is not 0."""
    value = np.zeros((len(tree.left), columns))
    value[:, column] = scale * tree.value[:, 0]
    return tree._replace(value=value)


def _boosted(g: Builder, x: str, e: Any, trees: Strategy) -> str:
    """Raw scores (N, classes or 1) of gradient boosting: where it starts, plus what every tree adds."""
    rounds = e.estimators_
    if e.init_ != "zero" and type(e.init_).__name__ not in ("DummyClassifier", "DummyRegressor"):
        raise ModelError(f"{type(e).__name__} that starts from an estimator of its own (init=) has no rule in trtkit.")
    columns = rounds.shape[1]
    members = [_spread(_tree(t), k, columns, e.learning_rate) for row in rounds for k, t in enumerate(row)]
    start = np.asarray(e._raw_predict_init(np.zeros((1, e.n_features_in_), np.float32)))
    return g.add("Add", forest(g, x, members, trees), g.constant("start", start.astype(np.float32)))


def _hist_boosted(g: Builder, x: str, e: Any, trees: Strategy) -> str:
    if getattr(e, "is_categorical_", None) is not None:  # they are encoded and moved to other columns first
        raise ModelError(f"{type(e).__name__} with categorical features has no rule in trtkit.")
    members, columns = [], len(e._predictors[0])
    for row in e._predictors:
        for k, predictor in enumerate(row):
            n = predictor.nodes
            left, right = (np.where(n["is_leaf"], -1, n[side].astype(np.int64)) for side in ("left", "right"))
            tree = Tree(
                n["feature_idx"].astype(np.int64), round_down(n["num_threshold"]), left, right, n["value"][:, None]
            )
            members.append(_spread(tree, k, columns))
    start = np.asarray(e._baseline_prediction, np.float32).reshape(1, -1)
    return g.add("Add", forest(g, x, members, trees), g.constant("start", start))


def boosting_classifier(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    raw = (_hist_boosted if hasattr(e, "_predictors") else _boosted)(g, x, e, trees)
    if getattr(e, "loss", "log_loss") != "log_loss":
        raise ModelError(f"{type(e).__name__} with the loss {e.loss!r} has no rule in trtkit; use log_loss.")
    if len(e.classes_) == 2:
        return from_probabilities(g, both_sides(g, g.add("Sigmoid", raw)), e)
    return from_probabilities(g, g.add("Softmax", raw, axis=1), e)


def boosting_regressor(g: Builder, x: str, e: Any, trees: Strategy) -> Outputs:
    raw = (_hist_boosted if hasattr(e, "_predictors") else _boosted)(g, x, e, trees)
    if e.loss in ("poisson", "gamma"):  # these fit the logarithm
        raw = g.add("Exp", raw)
    return prediction(g, raw, flat=True)


_Rule: TypeAlias = Callable[[Builder, str, Any, Strategy], Outputs]
_GROUPS: dict[_Rule, tuple[str, ...]] = {
    logistic_regression: ("LogisticRegression",),
    linear_classifier: ("LinearSVC", "RidgeClassifier", "Perceptron"),
    linear_regressor: ("LinearRegression", "Ridge", "Lasso", "ElasticNet", "LinearSVR"),
    mlp_classifier: ("MLPClassifier",),
    mlp_regressor: ("MLPRegressor",),
    kmeans: ("KMeans", "MiniBatchKMeans"),
    svc: ("SVC",),
    svr: ("SVR",),
    forest_classifier: (
        "DecisionTreeClassifier",
        "ExtraTreeClassifier",
        "RandomForestClassifier",
        "ExtraTreesClassifier",
    ),
    forest_regressor: ("DecisionTreeRegressor", "ExtraTreeRegressor", "RandomForestRegressor", "ExtraTreesRegressor"),
    boosting_classifier: ("GradientBoostingClassifier", "HistGradientBoostingClassifier"),
    boosting_regressor: ("GradientBoostingRegressor", "HistGradientBoostingRegressor"),
}
FINALS: dict[str, _Rule] = {name: rule for rule, names in _GROUPS.items() for name in names}
