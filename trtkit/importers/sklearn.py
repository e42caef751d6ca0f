"""scikit-learn's estimators in the operators of a network, which TensorRT has kernels for.

The usual converter, skl2onnx, writes most of them with operators of the domain ai.onnx.ml (LinearClassifier,
TreeEnsembleClassifier, SVMClassifier, ZipMap), which TensorRT does not know. The rules here use ONNX's own operators
alone; what has no rule goes through skl2onnx, and is taken when its graph happens to do the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from trtkit.errors import MissingError, ModelError, extra
from trtkit.importers.sklearn_finals import FINALS, Outputs
from trtkit.importers.sklearn_graph import Builder
from trtkit.importers.sklearn_trees import Strategy
from trtkit.model import Model

_ML = "ai.onnx.ml"


def from_sklearn(estimator: Any, *, name: str | None = None, trees: Strategy = "auto") -> Model:
    """A fitted estimator or pipeline as a Model: features (batch, F) float32 in, and out

    - of a classifier: `label` int64 (batch,) and `probabilities` (batch, classes), or `scores` where it has none, of
      the shape of its `decision_function`. A label is the class itself where classes are whole numbers, else an index
      into `estimator.classes_`: TensorRT has no strings.
    - of a regressor: `prediction` (batch,) or (batch, targets); of a cluster model: `label` and `distances`; of a
      transformer: `transformed` (batch, ...).

    Args:
        trees: how tree ensembles are computed: as matrix products ("gemm"), level by level ("walk"), or as their size
            suggests ("auto").

    Raises:
        ModelError: the estimator is not fitted, or cannot be written in ONNX's own operators (says which step).
        MissingError: scikit-learn is not installed, or skl2onnx where it would be needed.

    >>> from sklearn.linear_model import LogisticRegression
    >>> x = np.array([[0.0], [1.0], [2.0], [3.0]], np.float32)
    >>> model = from_sklearn(LogisticRegression().fit(x, [0, 0, 1, 1]))
    >>> model.run(x)["label"].tolist(), [output.name for output in model.outputs]
    ([0, 0, 1, 1], ['label', 'probabilities'])
    """
    features = _fitted(estimator)
    title = name or type(estimator).__name__
    *before, final = _steps(estimator)
    ruled = all(type(step).__name__ in TRANSFORMS or hasattr(step, "get_support") for step in before)
    last = type(final).__name__
    if not ruled or (last not in FINALS and last not in TRANSFORMS and not hasattr(final, "get_support")):
        return _through_skl2onnx(estimator, features, title)
    g, x = Builder(), "features"
    for step in before:
        x = _transform(g, x, step)
    outputs: Outputs = FINALS[last](g, x, final, trees) if last in FINALS else {"transformed": _transform(g, x, final)}
    proto = g.model(title, features, [(value, wanted) for wanted, value in outputs.items()])
    return Model(ir.from_proto(proto), title)


def is_estimator(source: Any) -> bool:
    """Whether this is a scikit-learn estimator; asks only when somebody imported scikit-learn already."""
    base = sys.modules.get("sklearn.base")
    return base is not None and isinstance(source, base.BaseEstimator)


def _fitted(estimator: Any) -> int:
    """The number of features that a fitted estimator takes."""
    try:
        from sklearn.exceptions import NotFittedError
        from sklearn.utils.validation import check_is_fitted
    except ImportError as error:
        raise MissingError(f"scikit-learn's models need scikit-learn: {extra('sklearn')}.") from error
    try:
        check_is_fitted(estimator)
    except (NotFittedError, TypeError) as error:
        raise ModelError(f"{type(estimator).__name__} is not fitted: call its fit(X, y) first. ({error})") from error
    features = getattr(estimator, "n_features_in_", None)
    if features is None:
        raise ModelError(f"{type(estimator).__name__} does not say how many features it takes (n_features_in_).")
    return int(features)


def _steps(estimator: Any) -> list[Any]:
    """The steps of a pipeline, of pipelines inside it as well."""
    if type(estimator).__name__ != "Pipeline":
        return [estimator]
    steps = [step for _, step in estimator.steps if step is not None and step != "passthrough"]
    return [inner for step in steps for inner in _steps(step)]


def _transform(g: Builder, x: str, step: Any) -> str:
    rule = TRANSFORMS.get(type(step).__name__)
    if rule is not None:
        return rule(g, x, step)
    chosen = np.flatnonzero(step.get_support()).astype(np.int64)  # any of scikit-learn's feature selectors
    return g.add("Gather", x, g.constant("chosen", chosen), axis=1)


def _standard_scaler(g: Builder, x: str, s: Any) -> str:
    if s.mean_ is not None and s.with_mean:
        x = g.add("Sub", x, g.constant("mean", s.mean_.astype(np.float32)))
    if s.scale_ is not None and s.with_std:
        x = g.add("Div", x, g.constant("scale", s.scale_.astype(np.float32)))
    return x


def _min_max_scaler(g: Builder, x: str, s: Any) -> str:
    x = g.add("Mul", x, g.constant("scale", s.scale_.astype(np.float32)))
    x = g.add("Add", x, g.constant("minimum", s.min_.astype(np.float32)))
    low, high = s.feature_range
    return g.add("Clip", x, g.number(low), g.number(high)) if s.clip else x


def _max_abs_scaler(g: Builder, x: str, s: Any) -> str:
    return g.add("Div", x, g.constant("scale", s.scale_.astype(np.float32)))


def _robust_scaler(g: Builder, x: str, s: Any) -> str:
    if s.center_ is not None and s.with_centering:
        x = g.add("Sub", x, g.constant("centre", s.center_.astype(np.float32)))
    if s.scale_ is not None and s.with_scaling:
        x = g.add("Div", x, g.constant("scale", s.scale_.astype(np.float32)))
    return x


def _normalizer(g: Builder, x: str, s: Any) -> str:
    axes = g.constant("axes", np.array([1]))
    length = {"l1": "ReduceL1", "l2": "ReduceL2", "max": "ReduceMax"}[s.norm]
    norm = g.add(length, g.add("Abs", x) if s.norm == "max" else x, axes, keepdims=1)
    zero = g.add("Equal", norm, g.number(0))  # a row of zeros stays one
    return g.add("Div", x, g.add("Where", zero, g.number(1), norm))


def _pca(g: Builder, x: str, s: Any) -> str:
    x = g.add("Sub", x, g.constant("mean", s.mean_.astype(np.float32)))  # first, lest large numbers cancel in float32
    scale = 1 / np.sqrt(s.explained_variance_) if s.whiten else np.ones(len(s.components_))
    return g.add("MatMul", x, g.constant("components", (s.components_ * scale[:, None]).T.astype(np.float32)))


def _truncated_svd(g: Builder, x: str, s: Any) -> str:
    return g.add("MatMul", x, g.constant("components", s.components_.T.astype(np.float32)))


TRANSFORMS: dict[str, Callable[[Builder, str, Any], str]] = {
    "StandardScaler": _standard_scaler,
    "MinMaxScaler": _min_max_scaler,
    "MaxAbsScaler": _max_abs_scaler,
    "RobustScaler": _robust_scaler,
    "Normalizer": _normalizer,
    "PCA": _pca,
    "TruncatedSVD": _truncated_svd,
}


def _gather_instead(proto: onnx.ModelProto) -> None:
    """ArrayFeatureExtractor, by which skl2onnx looks up labels, is a Gather along the last axis."""
    nodes = []
    for node in proto.graph.node:
        if node.op_type == "ArrayFeatureExtractor":
            flat = f"{node.output[0]}_indices"
            shape = onnx.numpy_helper.from_array(np.array([-1]), f"{flat}_shape")
            proto.graph.initializer.append(shape)
            nodes.append(onnx.helper.make_node("Reshape", [node.input[1], shape.name], [flat]))
            node = onnx.helper.make_node("Gather", [node.input[0], flat], node.output, axis=-1)
        nodes.append(node)
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _through_skl2onnx(estimator: Any, features: int, title: str) -> Model:
    """skl2onnx's graph, where it needs none but ONNX's own operators."""
    try:
        import skl2onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise MissingError(f"{title} has no rule of trtkit's and needs skl2onnx: {extra('sklearn')}.") from error
    kind = [("features", FloatTensorType([None, features]))]
    options = {"zipmap": False} if hasattr(estimator, "predict_proba") else None
    try:
        proto = skl2onnx.to_onnx(estimator, initial_types=kind, options=options, target_opset={"": 20, _ML: 3})
    except Exception as error:  # it raises errors of many kinds
        raise ModelError(f"{title} has no rule in trtkit, and skl2onnx cannot convert it: {error}") from error
    _gather_instead(proto)
    foreign = sorted({node.op_type for node in proto.graph.node if node.domain not in ("", "ai.onnx")})
    if foreign:
        raise ModelError(
            f"{title} has no rule in trtkit, and what skl2onnx makes of it needs {foreign}, which TensorRT does not "
            f"know. Known: {', '.join(sorted((*TRANSFORMS, *FINALS)))}, and feature selectors."
        )
    from trtkit.importers import load

    return load(proto, name=title)
