"""A network with a scikit-learn estimator behind it: one graph, one engine, the same answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn import ensemble, linear_model, pipeline, preprocessing, svm
from torch import nn

import trtkit
from trtkit.compose.sklearn import append_sklearn
from trtkit.errors import ModelError
from trtkit.model import Model


class Features(nn.Module):
    """A small network whose features come as (N, 6, 1, 1), as from a global pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3)
        self.last = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(torch.relu(self.conv(x)), 1)
        return self.last(pooled.flatten(1))


@pytest.fixture(scope="module")
def network() -> Model:
    torch.manual_seed(0)
    return trtkit.optimize(trtkit.load(Features().eval(), torch.rand(1, 1, 8, 8)))


@pytest.fixture(scope="module")
def pictures() -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(120, 1, 8, 8)) * rng.uniform(0.5, 2, (120, 1, 1, 1))).astype(np.float32)


def pooled_name(network: Model) -> str:
    return next(n.outputs[0].name for n in network.ir.graph if n.op_type in ("GlobalAveragePool", "ReduceMean"))


@pytest.mark.parametrize(
    "estimator",
    [
        pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
        svm.SVC(),
        ensemble.GradientBoostingClassifier(n_estimators=5, random_state=0),
    ],
)
def test_the_hybrid_answers_as_the_two_one_after_the_other(
    network: Model, pictures: np.ndarray, estimator: Any
) -> None:
    at = pooled_name(network)
    from trtkit.compose.split import until

    trunk = until(network, at)
    features = trunk.run(pictures)[at].reshape(len(pictures), -1)
    y = (pictures.std((1, 2, 3)) > 1).astype(int) + (pictures.std((1, 2, 3)) > 1.5)
    estimator.fit(features, y)
    hybrid = append_sklearn(network, estimator, at=at)
    assert {node.domain for node in hybrid.ir.graph} == {""}
    got = hybrid.run(pictures)
    np.testing.assert_array_equal(got["label"], estimator.predict(features))
    if "probabilities" in got:
        np.testing.assert_allclose(got["probabilities"], estimator.predict_proba(features), atol=1e-5)
    assert hybrid.origin is not hybrid and len(hybrid.inputs) == 1
    engine = trtkit.build(hybrid, data=[pictures[:8]])
    assert engine.verification is not None and engine.verification.passed
    assert engine.fusion_map().unexplained == ()


def test_the_networks_output_is_the_default(network: Model, pictures: np.ndarray) -> None:
    logits = next(iter(network.run(pictures).values()))
    estimator = linear_model.LogisticRegression().fit(logits, (logits[:, 0] > np.median(logits[:, 0])).astype(int))
    np.testing.assert_array_equal(append_sklearn(network, estimator).run(pictures)["label"], estimator.predict(logits))


def test_what_does_not_fit_is_refused(network: Model) -> None:
    with pytest.raises(ModelError, match="LogisticRegression is not fitted"):
        append_sklearn(network, linear_model.LogisticRegression())
    five = linear_model.LogisticRegression().fit(np.eye(5), [0, 1, 0, 1, 0])
    with pytest.raises(ModelError, match=r"was fitted on 5 features.* has 3 numbers a row"):
        append_sklearn(network, five)
    with pytest.raises(ModelError, match="no tensor 'nowhere'"):
        append_sklearn(network, five, at="nowhere")
