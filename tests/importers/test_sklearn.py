"""scikit-learn's estimators in ONNX's own operators, against scikit-learn and against skl2onnx."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx.reference import ReferenceEvaluator
from sklearn import (
    cluster,
    datasets,
    decomposition,
    ensemble,
    feature_selection,
    linear_model,
    naive_bayes,
    neural_network,
    pipeline,
    preprocessing,
    svm,
    tree,
)

import trtkit
from trtkit.errors import ModelError
from trtkit.importers.sklearn import from_sklearn
from trtkit.importers.sklearn_trees import round_down

DIGITS = datasets.load_digits()
X, Y = DIGITS.data.astype(np.float32), DIGITS.target
TRAIN, TEST = slice(0, 500), slice(500, 900)
PAIR = np.flatnonzero((Y == 3) | (Y == 8))  # two classes, whose labels are not 0 and 1

CLASSIFIERS: dict[str, Any] = {
    "logistic": pipeline.make_pipeline(preprocessing.StandardScaler(), linear_model.LogisticRegression()),
    "liblinear": pipeline.make_pipeline(
        preprocessing.MinMaxScaler(clip=True),
        linear_model.LogisticRegression(solver="liblinear"),
    ),
    "linear svc": pipeline.make_pipeline(preprocessing.MaxAbsScaler(), svm.LinearSVC()),
    "ridge": pipeline.make_pipeline(preprocessing.RobustScaler(), linear_model.RidgeClassifier()),
    "rbf svc": pipeline.make_pipeline(decomposition.PCA(20, whiten=True), svm.SVC()),
    "poly svc": pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC(kernel="poly", degree=2, coef0=1)),
    "linear-kernel svc": svm.SVC(kernel="linear", break_ties=True),
    "sigmoid svc": pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC(kernel="sigmoid", gamma=0.01)),
    "mlp": pipeline.make_pipeline(preprocessing.Normalizer(), neural_network.MLPClassifier((20, 10), max_iter=60)),
    "tanh mlp": neural_network.MLPClassifier((8,), activation="tanh", max_iter=30),
    "decision tree": tree.DecisionTreeClassifier(),
    "forest": ensemble.RandomForestClassifier(20),
    "extra trees": ensemble.ExtraTreesClassifier(10, max_depth=4),
    "boosting": ensemble.GradientBoostingClassifier(n_estimators=8),
    "histogram boosting": ensemble.HistGradientBoostingClassifier(max_iter=8),
    "selection": pipeline.make_pipeline(
        feature_selection.VarianceThreshold(0.1),
        "passthrough",
        decomposition.TruncatedSVD(10),
        linear_model.LogisticRegression(),
    ),
}


def fit(estimator: Any, rows: Any, x: np.ndarray = X, y: np.ndarray = Y) -> Any:
    for key in estimator.get_params():
        if key == "random_state" or key.endswith("__random_state"):
            estimator.set_params(**{key: 0})
        if key.endswith("max_iter") and "logistic" in key:
            estimator.set_params(**{key: 1000})
    return estimator.fit(x[rows], y[rows])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize(
    ("name", "classes"), [(n, c) for n in CLASSIFIERS for c in (10, 2) if (n, c) != ("liblinear", 10)]
)
def test_classifiers_answer_as_scikit_learn_does(name: str, classes: int) -> None:
    rows, test = (TRAIN, TEST) if classes == 10 else (PAIR[:150], PAIR[150:])
    estimator = fit(CLASSIFIERS[name], rows)
    model = from_sklearn(estimator)
    assert {node.domain for node in model.ir.graph} == {""}
    got = model.run(X[test])
    np.testing.assert_array_equal(got["label"], estimator.predict(X[test]))
    if "probabilities" in got:
        np.testing.assert_allclose(got["probabilities"], estimator.predict_proba(X[test]), atol=1e-5)
        assert got["probabilities"].dtype == np.float32
    else:
        np.testing.assert_allclose(got["scores"], estimator.decision_function(X[test]), rtol=1e-4, atol=1e-4)
    by_onnx = ReferenceEvaluator(model.to_proto()).run(None, {"features": X[test][:20]})
    np.testing.assert_array_equal(by_onnx[0], got["label"][:20])
    np.testing.assert_allclose(by_onnx[1], next(v for k, v in got.items() if k != "label")[:20], rtol=1e-4, atol=1e-5)


def test_one_against_the_rest_of_liblinear_with_many_classes() -> None:
    """Newer versions of scikit-learn no longer fit this; its rule of old is still there under another name."""
    estimator = linear_model.LogisticRegression(max_iter=1000).fit(X[TRAIN], Y[TRAIN])
    estimator.solver = "liblinear"
    got = from_sklearn(estimator).run(X[TEST])
    np.testing.assert_allclose(got["probabilities"], estimator._predict_proba_lr(X[TEST]), atol=1e-5)


REGRESSORS = {
    "ridge": linear_model.Ridge(),
    "svr": svm.SVR(),
    "mlp": neural_network.MLPRegressor(hidden_layer_sizes=(8,), max_iter=60),
    "tree": tree.DecisionTreeRegressor(max_depth=5),
    "forest": ensemble.RandomForestRegressor(8),
    "boosting": ensemble.GradientBoostingRegressor(n_estimators=10),
    "histogram boosting": ensemble.HistGradientBoostingRegressor(max_iter=10),
    "poisson": ensemble.HistGradientBoostingRegressor(loss="poisson", max_iter=5),
}


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("name", REGRESSORS)
def test_regressors_predict_as_scikit_learn_does(name: str) -> None:
    estimator = fit(REGRESSORS[name], TRAIN, y=Y.astype(np.float64))
    got = from_sklearn(estimator).run(X[TEST])["prediction"]
    np.testing.assert_allclose(got, estimator.predict(X[TEST]), rtol=1e-4, atol=1e-4)


def test_several_targets_and_clusters_and_transformers() -> None:
    both = np.stack([Y, 2 * Y + 1], 1).astype(np.float64)
    line = linear_model.LinearRegression().fit(X[TRAIN], both[TRAIN])
    np.testing.assert_allclose(
        from_sklearn(line).run(X[TEST])["prediction"], line.predict(X[TEST]), rtol=1e-3, atol=1e-3
    )
    means = cluster.KMeans(10, random_state=0).fit(X[TRAIN])
    got = from_sklearn(means).run(X[TEST])
    np.testing.assert_array_equal(got["label"], means.predict(X[TEST]))
    np.testing.assert_allclose(got["distances"], means.transform(X[TEST]), rtol=1e-4)
    pca = decomposition.PCA(5).fit(X[TRAIN])
    np.testing.assert_allclose(from_sklearn(pca).run(X[TEST])["transformed"], pca.transform(X[TEST]), atol=1e-3)


@pytest.mark.parametrize("name", ["forest", "boosting", "histogram boosting", "decision tree"])
def test_both_ways_of_computing_trees_agree(name: str) -> None:
    estimator = fit(CLASSIFIERS[name], TRAIN)
    gemm, walk = (from_sklearn(estimator, trees=way) for way in ("gemm", "walk"))
    assert "GatherElements" in walk.op_counts and "GatherElements" not in gemm.op_counts
    for key, value in gemm.run(X[TEST]).items():
        np.testing.assert_allclose(walk.run(X[TEST])[key], value, atol=1e-6)


def test_a_value_on_the_threshold_goes_where_scikit_learn_sends_it() -> None:
    """float32 features against float64 thresholds: rounding a threshold up would let too much pass."""
    stump = tree.DecisionTreeClassifier().fit(np.array([[0.1], [0.37]], np.float32), [0, 1])
    near = np.float32(stump.tree_.threshold[0])
    x = np.array([[np.nextafter(near, np.float32(-1))], [near], [np.nextafter(near, np.float32(1))]])
    assert set(stump.predict(x)) == {0, 1}
    for way in ("gemm", "walk"):
        np.testing.assert_array_equal(from_sklearn(stump, trees=way).run(x)["label"], stump.predict(x))
    rng = np.random.default_rng(0)
    threshold, values = rng.normal(size=5000), rng.normal(size=5000).astype(np.float32)
    values[:2500] = threshold[:2500].astype(np.float32)  # as near as float32 can be
    np.testing.assert_array_equal(values <= round_down(threshold), values.astype(np.float64) <= threshold)


def test_a_tree_without_a_decision_and_labels_that_are_words() -> None:
    x = np.zeros((4, 2), np.float32)
    only = tree.DecisionTreeClassifier().fit(x, [7, 7, 7, 7])
    for way in ("gemm", "walk"):
        assert from_sklearn(only, trees=way).run(x)["label"].tolist() == [7] * 4
    words = linear_model.LogisticRegression().fit([[0.0], [1.0]], ["cat", "dog"])
    assert from_sklearn(words).run(np.array([[5.0], [-5.0]], np.float32))["label"].tolist() == [1, 0]


def test_load_takes_an_estimator_and_its_engine_builds() -> None:
    model = trtkit.load(fit(CLASSIFIERS["boosting"], TRAIN), name="boosted")
    assert model.name == "boosted" and model.inputs[0].shape == ("batch", 64)
    engine = trtkit.build(model)
    assert engine.fusion_map().unexplained == ()


def test_skl2onnx_serves_where_it_needs_no_foreign_operator() -> None:
    bayes = fit(naive_bayes.GaussianNB(var_smoothing=1e-2), TRAIN)
    got = trtkit.load(bayes).run(X[TEST])
    np.testing.assert_array_equal(got["label"], bayes.predict(X[TEST]))
    np.testing.assert_allclose(got["probabilities"], bayes.predict_proba(X[TEST]), atol=1e-4)


def test_our_outputs_are_those_of_skl2onnx() -> None:
    import skl2onnx

    estimator = fit(CLASSIFIERS["logistic"], TRAIN)
    theirs = skl2onnx.to_onnx(estimator, X[:1], options={"zipmap": False}, target_opset={"": 20, "ai.onnx.ml": 3})
    assert any(node.domain == "ai.onnx.ml" for node in theirs.graph.node)  # what TensorRT cannot do
    want = ReferenceEvaluator(theirs).run(None, {"X": X[TEST]})
    got = from_sklearn(estimator).run(X[TEST])
    np.testing.assert_array_equal(got["label"], want[0])
    np.testing.assert_allclose(got["probabilities"], want[1], atol=1e-5)


def refused(estimator: Any) -> str:
    with pytest.raises(ModelError) as caught:
        from_sklearn(estimator)
    return str(caught.value)


def test_what_cannot_come_over_is_refused() -> None:
    assert "SVC is not fitted: call its fit(X, y) first" in refused(svm.SVC())
    assert "not fitted" in refused(pipeline.make_pipeline(preprocessing.StandardScaler(), svm.SVC()))
    bagged = ensemble.AdaBoostClassifier(n_estimators=2).fit(X[TRAIN], Y[TRAIN])
    assert "needs ['TreeEnsembleClassifier'], which TensorRT does not know" in refused(bagged)
    lda = ensemble.IsolationForest(n_estimators=2, random_state=0).fit(X[TRAIN])
    assert "no rule in trtkit" in refused(lda)
    assert "decision_function_shape='ovo'" in refused(svm.SVC(decision_function_shape="ovo").fit(X[TRAIN], Y[TRAIN]))
    own = svm.SVC(kernel=lambda a, b: a @ b.T).fit(X[TRAIN], Y[TRAIN])
    assert "does not say how many features" in refused(own)
    own = svm.SVC(kernel="precomputed").fit(X[TRAIN] @ X[TRAIN].T, Y[TRAIN])
    assert "has no rule in trtkit: rbf, linear, poly, sigmoid" in refused(own)
    several = tree.DecisionTreeRegressor(max_depth=2).fit(X[TRAIN], np.stack([Y, Y], 1)[TRAIN])
    assert "several outputs" in refused(several)
    started = ensemble.GradientBoostingRegressor(n_estimators=2, init=linear_model.Ridge()).fit(X[TRAIN], Y[TRAIN])
    assert "starts from an estimator of its own" in refused(started)
    kinds = ensemble.HistGradientBoostingRegressor(max_iter=2, categorical_features=[0]).fit(
        np.round(X[TRAIN] % 5), Y[TRAIN]
    )
    assert "with categorical features has no rule" in refused(kinds)
    assert "does not say how many features" in refused(pipeline.make_pipeline("passthrough").fit(X[TRAIN]))
