"""A network with a classical model behind it, in one graph: features from the one, the decision from the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from trtkit.compose.merge import merge
from trtkit.compose.multi_head import features_of
from trtkit.errors import ModelError
from trtkit.importers.sklearn import from_sklearn
from trtkit.importers.sklearn_trees import Strategy
from trtkit.model import Model
from trtkit.passes.common import initializer


def append_sklearn(
    network: Model, estimator: Any, *, at: str | None = None, trees: Strategy = "auto", name: str | None = None
) -> Model:
    """Feed a tensor of a network to a fitted scikit-learn estimator or pipeline: one graph, one engine.

    Args:
        at: the tensor with the features, by default the network's only output; (N, C, H, W) is flattened to rows, as
            `features.reshape(len(features), -1)` does.
        trees: see `trtkit.importers.sklearn.from_sklearn`, which also says what the outputs are.

    Raises:
        ModelError: the estimator is not fitted, has no rule, or was fitted on another number of features.

    >>> import onnx, trtkit
    >>> from sklearn.linear_model import LogisticRegression
    >>> net = trtkit.load(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> net '
    ...     '(float[n, 1] x) => (float[n, 1] y) {y = Neg(x)}'))
    >>> classifier = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> hybrid = append_sklearn(net, classifier)
    >>> hybrid.run(np.array([[-3.0], [0.0]], np.float32))["label"].tolist()
    [1, 0]
    """
    trunk = features_of(network, at)
    classical = from_sklearn(estimator, trees=trees)
    features = trunk.outputs[0]
    rows = classical.inputs[0].shape[1]
    found = features.shape[1:]
    if not found or any(isinstance(d, str) for d in found) or math.prod(map(int, found)) != rows:
        raise ModelError(
            f"{classical.name} was fitted on {rows} features, and {features} of {network.name!r} has "
            f"{' x '.join(map(str, found)) or 'no'} numbers a row. Fit it on the features that the network gives."
        )
    if features.dtype != np.float32:
        raise ModelError(f"{features} of {network.name!r} is not float32; features for an estimator must be.")
    if len(found) > 1:
        classical = _flattening(classical, found)
    connect = {(classical.name, classical.inputs[0].name): (trunk.name, features.name)}
    return merge({trunk.name: trunk, classical.name: classical}, connect=connect, name=name)


def _flattening(model: Model, shape: tuple[int | str, ...]) -> Model:
    """The model with its features (batch, F) taken as (batch, *shape)."""
    graph = model.copy().ir
    rows = graph.graph.inputs[0]
    wide = ir.Value(name="feature_map", shape=ir.Shape(["batch", *shape]), type=rows.type)
    graph.graph.inputs[0] = wide
    target = initializer(graph.graph, "row", np.array([0, -1]))
    node = ir.node("Reshape", [wide, target], name="flatten_features")
    flat = node.outputs[0]
    flat.name, flat.shape, flat.type = "features", rows.shape, rows.type
    rows.replace_all_uses_with(flat)
    graph.graph.insert_before(graph.graph[0], node)
    return Model(graph, model.name)
