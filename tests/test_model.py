"""Model: what it says of itself, what it takes, copying and history, saving, running."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trtkit.model as model_module
from tests.passes.graphs import parse
from trtkit.errors import ModelError
from trtkit.importers import load
from trtkit.model import Model, Step, TensorInfo, save, write_atomically
from trtkit.passes import optimize

X = np.array([[-1, 0, 1, 2]], np.float32)
TABLE = "float[5, 4] small = {" + ", ".join("0" * 20) + "}, float[7, 4] large = {" + ", ".join("1" * 28) + "}"


def weighted() -> Model:
    return parse("float[4] w = {1, 2, 3, 4} | a = Add(x, w) y = Relu(a)")


def rejected(model: Model, inputs: Any) -> str:
    with pytest.raises(ModelError) as caught:
        model.check_inputs(inputs)
    return str(caught.value)


# What it says of itself


def test_a_fresh_model() -> None:
    model = weighted()
    assert model.inputs == (TensorInfo("x", ("n", 4), np.dtype(np.float32)),)
    assert model.outputs[0].name == "y"
    assert (model.node_count, model.opset, model.size_bytes, model.precision) == (2, 20, 16, "fp32")
    assert list(model.op_counts.items()) == [("Add", 1), ("Relu", 1)]
    assert model.origin is model and model.history == ()
    assert repr(model) == ("Model('g': 2 nodes, 1 weights in 16 bytes, opset 20; x float32 (n, 4) -> y float32 (n, 4))")
    assert str(model.inputs[0]) == "x float32 (n, 4)"


def test_operators_are_counted_the_most_frequent_first() -> None:
    assert list(parse("a = Relu(x) b = Neg(a) y = Neg(b)").op_counts.items()) == [("Neg", 2), ("Relu", 1)]


def test_a_dimension_without_a_name_gets_one() -> None:
    model = parse("y = Relu(x)", "float[?, 4] x", "float[?, 4] y")
    assert model.inputs[0].shape == ("x_dim0", 4)
    assert model.run(X)["y"].shape == (1, 4)


def test_an_output_without_a_shape_is_named() -> None:
    graph = weighted().ir.clone()
    graph.graph.outputs[0].shape = None
    with pytest.raises(ModelError, match=r"'y' has no shape in the ONNX file.*infer_shapes"):
        _ = load(graph).outputs


# What it takes


def test_inputs_as_a_dict_or_one_array() -> None:
    model = weighted()
    for inputs in ({"x": X}, X, np.asfortranarray(X)):
        checked = model.check_inputs(inputs)
        assert list(checked) == ["x"] and checked["x"].flags.c_contiguous
        np.testing.assert_array_equal(checked["x"], X)


def test_several_inputs_come_by_name_and_in_the_models_order() -> None:
    model = parse("y = Add(x, z)", "float[n, 4] x, float[n, 4] z")
    assert list(model.check_inputs({"z": X, "x": X})) == ["x", "z"]
    assert "give them by name: a dict with ['x', 'z']" in rejected(model, X)
    assert "needs input z float32 (n, 4), and it was not given" in rejected(model, {"x": X})
    assert rejected(model, {"x": X, "z": np.vstack([X, X])}) == (
        "Input z float32 (n, 4): 'n' is 2 here and 1 in input 'x'; one name means one size."
    )


def test_a_wrong_name_names_the_nearest() -> None:
    model = parse("y = Relu(image)", "float[n, 4] image")
    assert rejected(model, {"imgae": X}).endswith("its inputs are ['image']. Did you mean 'image'?")
    assert rejected(model, {"qqq": X}).endswith("its inputs are ['image'].")
    assert "no input 'extra'" in rejected(model, {"image": X, "extra": X})


def test_shapes_and_types() -> None:
    model = parse("y = Relu(x)", "float[n, 3, 8, 8] x", "float[n, 3, 8, 8] y")

    def said(*shape: int, dtype: Any = np.float32) -> str:
        return rejected(model, np.zeros(shape, dtype))

    assert said(3, 8, 8).endswith("The batch dimension is missing: try array[None].")
    assert said(2, 8, 8, 3).endswith("Its channels come last: try array.transpose(0, 3, 1, 2).")
    assert said(2, 3, 8, 9).endswith("got float32 (2, 3, 8, 9).")
    assert said(2, 3, 8, 8, 1).endswith("got float32 (2, 3, 8, 8, 1).")
    assert said().endswith("got float32 ().")
    assert said(2, 3, 8, 8, dtype=np.float64).endswith("Convert it first, e.g. with .astype('float32').")
    assert "An empty batch has no result" in said(0, 3, 8, 8)


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=4))
def test_an_input_is_accepted_exactly_when_it_fits(shape: list[int]) -> None:
    fits = len(shape) == 3 and shape[1] == 2 and 0 not in shape
    model = parse("y = Relu(x)", "float[n, 2, m] x", "float[n, 2, m] y")
    try:
        model.check_inputs(np.zeros(shape, np.float32))
    except ModelError:
        assert not fits
    else:
        assert fits


def test_what_cannot_be_an_array_is_refused() -> None:
    ragged = [[1.0, 2.0], [3.0]]
    assert "cannot be made an array" in rejected(weighted(), {"x": ragged})


# Random inputs


def test_random_inputs_come_from_a_seed() -> None:
    model = weighted()
    first, again, other = (model.random_inputs(batch=3, seed=seed)["x"] for seed in (1, 1, 2))
    assert first.shape == (3, 4) and first.dtype == np.float32
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    model.check_inputs(model.random_inputs())


def test_random_indices_fit_every_table() -> None:
    body = f"{TABLE} | k = Cast <to = 7> (i) a = Gather(small, k) b = Gather(large, i) y = Add(a, b)"
    model = parse(body, "int32[n, 50] i", "float[n, 50, 4] y")
    indices = model.random_inputs(batch=8)["i"]
    assert indices.dtype == np.int32
    assert set(np.unique(indices)) == {0, 1, 2, 3, 4}  # all of the smaller table, and none beyond it
    assert np.isfinite(model.run({"i": indices})["y"]).all()


def test_random_integers_and_bools_that_index_nothing() -> None:
    model = parse("a = Cast <to = 1> (m) b = Cast <to = 1> (c) y = Add(a, b)", "int64[n, 4] m, bool[n, 4] c")
    inputs = model.random_inputs(batch=20)
    assert inputs["c"].dtype == bool and set(np.unique(inputs["m"])) == {0, 1}


def test_open_dimensions_have_to_be_said() -> None:
    model = parse("y = Relu(x)", "float[n, length, 2] x", "float[n, length, 2] y")
    with pytest.raises(ModelError, match=r"changeable dimension 'length'.*random_inputs\(dims=\{'length': 128\}\)"):
        model.random_inputs()
    assert model.random_inputs(batch=2, dims={"length": 7})["x"].shape == (2, 7, 2)
    assert model.random_inputs(dims={"n": 3, "length": 7})["x"].shape == (3, 7, 2)


def test_a_table_of_one_row_is_indexed_by_zero_alone() -> None:
    """BERT's token types may have a single row: index 1 would be out of range."""
    model = parse("float[1, 4] one = {1, 1, 1, 1} | y = Gather(one, i)", "int64[n] i", "float[n, 4] y")
    indices = model.random_inputs(batch=30)["i"]
    assert not indices.any()
    assert model.run({"i": indices})["y"].shape == (30, 4)


# Copying and rewriting


def test_a_copy_may_be_changed_freely() -> None:
    model = weighted()
    before = model.to_bytes()
    copied = model.copy()
    node = next(iter(copied.ir.graph))
    copied.ir.graph.initializers["w"].const_value = ir.Tensor(np.zeros(4, np.float32), name="w")
    node.name = "other"
    assert model.to_bytes() == before
    assert copied.origin is model and copied.history == model.history
    np.testing.assert_array_equal(model.run(X)["y"], [[0, 2, 4, 6]])
    np.testing.assert_array_equal(copied.run(X)["y"], [[0, 0, 1, 2]])


IDENTITIES = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y)
    <float[4] w = {1, 2, 3, 4}> {a = Identity(x) b = Mul(a, w) y = Identity(b)}"""


def test_a_model_from_a_file_is_what_it_was_after_its_graph_was_taken_for_a_rewriting() -> None:
    proto = onnx.parser.parse_model(IDENTITIES)
    model, untouched = load(proto.SerializeToString()), load(proto.SerializeToString())
    small = optimize(model)
    optimize(small)
    assert (small.op_counts, small.origin) == ({"Mul": 1}, model)
    assert model.to_bytes() == untouched.to_bytes()
    assert (model.op_counts, model.inputs, model.history) == (untouched.op_counts, untouched.inputs, ())
    inputs = model.random_inputs(batch=3)
    np.testing.assert_array_equal(model.run(inputs)["y"], small.run(inputs)["y"])


def test_a_graph_that_somebody_has_seen_stays_with_its_model() -> None:
    model = load(onnx.parser.parse_model(IDENTITIES).SerializeToString())
    graph, nodes = model.ir, list(model.ir.graph)
    small = optimize(model)
    assert model.ir is graph
    assert list(model.ir.graph) == nodes
    assert small.ir is not graph


def test_a_message_that_is_changed_later_does_not_change_the_model() -> None:
    proto = onnx.parser.parse_model(IDENTITIES)
    model = load(proto)
    optimize(model)
    del proto.graph.node[:]
    assert model.node_count == 3


def test_a_copy_shares_its_weights() -> None:
    model = weighted()
    copied = model.copy()
    assert copied.ir.graph.initializers["w"].const_value is model.ir.graph.initializers["w"].const_value


def test_history_grows_and_the_origin_stays() -> None:
    model = weighted()
    first = model.rewritten(parse("y = Relu(x)").ir, "fold", "one less", 0.5)
    second = first.rewritten(parse("y = Neg(x)").ir, "autocast", "to half", 0.25, precision="fp16")
    assert model.history == ()
    assert first.history == (Step("fold", "one less", 2, 1, 0.5),)
    assert second.history == (*first.history, Step("autocast", "to half", 1, 1, 0.25))
    assert first.origin is model and second.origin is model
    assert (model.precision, first.precision, second.precision) == ("fp32", "fp32", "fp16")
    assert second.rewritten(parse("y = Abs(x)").ir, "pass", "", 0.0).precision == "fp16"
    assert second.name == model.name


# Running


def test_running_is_onnx_runtime_and_agrees_with_onnxs_own_evaluator() -> None:
    model = parse("a = Softmax(x) b = Tanh(a) y = Exp(b)")
    inputs = model.random_inputs(batch=6)
    (want,) = onnx.reference.ReferenceEvaluator(model.to_proto()).run(None, inputs)
    np.testing.assert_allclose(model.run(inputs)["y"], want, rtol=1e-5)
    assert model.reference is model.reference  # one session, kept


def test_bfloat16_goes_in_and_comes_out() -> None:
    model = parse(
        "a = Cast <to = 16> (x) b = Cast <to = 1> (z) c = Cast <to = 16> (b) y = Identity(a)",
        "float[n, 4] x, bfloat16[n, 4] z",
        "bfloat16[n, 4] y, bfloat16[n, 4] c",
    )
    z = np.array([[1, 2, 3, 4.03]], ml_dtypes.bfloat16)
    outputs = model.run({"x": X + 0.001, "z": z})
    assert [outputs[name].dtype.name for name in "yc"] == ["bfloat16", "bfloat16"]
    np.testing.assert_array_equal(outputs["y"], (X + 0.001).astype(ml_dtypes.bfloat16))
    np.testing.assert_array_equal(outputs["c"], z)
    kept = outputs["y"].copy()
    model.run({"x": X * 0, "z": z})
    np.testing.assert_array_equal(outputs["y"], kept)  # a copy, not a view of memory that is used again
    assert model.random_inputs()["z"].dtype == np.dtype(ml_dtypes.bfloat16)


def test_what_onnx_runtime_refuses() -> None:
    wrong = parse("int64[2] k = {3, 5} | y = Reshape(x, k)", outputs="float[3, 5] y")
    with pytest.raises(ModelError, match="ONNX Runtime failed while running this graph"):
        wrong.run(X)


# Saving


def test_saved_and_loaded_again(tmp_path: Path) -> None:
    model = weighted()
    path = save(model, str(tmp_path / "net.onnx"))
    assert path == tmp_path / "net.onnx"
    again = load(path)
    inputs = model.random_inputs(batch=4)
    np.testing.assert_array_equal(again.run(inputs)["y"], model.run(inputs)["y"])
    assert [n.name for n in again.ir.graph] == [n.name for n in model.ir.graph]
    onnx.checker.check_model(str(path), full_check=True)
    assert oct(path.stat().st_mode)[-3:] == "644"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the folder .*nowhere does not exist\. Make it first"):
        save(weighted(), tmp_path / "nowhere" / "net.onnx")
    with pytest.raises(ModelError, match=r"that is a folder\. Name a file in it"):
        save(weighted(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["fdopen", "replace", "chmod"])
def test_a_failing_write_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(b"old")

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    write_atomically(path, b"a" * 100_000)
    seen, stop = set(), time.monotonic() + 0.3

    def read() -> None:
        while time.monotonic() < stop:
            data = path.read_bytes()
            seen.add((len(data), data[:1], data[-1:]))

    reader = threading.Thread(target=read)
    reader.start()
    while time.monotonic() < stop:
        write_atomically(path, b"b" * 100_000)
        write_atomically(path, b"a" * 100_000)
    reader.join()
    assert seen <= {(100_000, b"a", b"a"), (100_000, b"b", b"b")}


def wide(op: str, value: float) -> Model:
    """4096 bytes of weights, which count as too many for protobuf where its limit is patched."""
    weights = ", ".join([str(value)] * 1024)
    return parse(f"float[1024] w = {{{weights}}} | y = {op}(x, w)", "float[n, 1024] x", "float[n, 1024] y")


def test_weights_too_large_for_protobuf_go_into_a_second_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = wide("Add", 0.5)
    monkeypatch.setattr(model_module, "_PROTOBUF_LIMIT", 4000)  # bytes, so that no test writes gigabytes
    with pytest.raises(ModelError, match=r"trtkit\.save\(model, path\)"):
        model.to_bytes()
    path = save(model, tmp_path / "big.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
    assert path.stat().st_size < 1000
    again, inputs = load(path), model.random_inputs(batch=2)
    np.testing.assert_array_equal(again.run(inputs)["y"], inputs["x"] + 0.5)
    np.testing.assert_array_equal(model.run(inputs)["y"], inputs["x"] + 0.5)  # by way of a temporary file


@pytest.mark.parametrize("failing", ["onnx.save", "os.replace"])
def test_a_large_model_is_written_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    monkeypatch.setattr(model_module, "_PROTOBUF_LIMIT", 4000)
    path = save(wide("Add", 0.5), tmp_path / "big.onnx")

    def full(*arguments: Any, **options: Any) -> Any:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(failing, full)
        with pytest.raises(OSError, match="No space left"):
            save(wide("Mul", 2.0), path)
    np.testing.assert_array_equal(load(path).run(np.zeros((1, 1024), np.float32))["y"], np.full((1, 1024), 0.5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["big.onnx", "big.onnx.data"]
