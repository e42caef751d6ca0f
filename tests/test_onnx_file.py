"""ONNX files whose weights go past protobuf: the same model comes out, and broken files are protobuf's to judge."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

import trtkit
from trtkit import onnx_file
from trtkit.errors import ModelError
from trtkit.model import save

ROOT = Path(onnx.__file__).parent / "backend" / "test" / "data"


def model(*weights: TensorProto) -> onnx.ModelProto:
    nodes = [helper.make_node("Relu", ["x"], ["y"])]
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2]) for name in "xy"]
    graph = helper.make_graph(nodes, "g", info[:1], info[1:], list(weights), doc_string="a graph")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], producer_name="tests")


def large(name: str = "w", dtype: type = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.arange(1000).astype(dtype), name)


def test_large_weights_are_left_out_and_found() -> None:
    whole = model(numpy_helper.from_array(np.ones(3, np.float32), "small"), large(), large("v", np.int64))
    data = whole.SerializeToString()
    light, where = onnx_file.split(data)
    assert list(where) == [1, 2] and len(light) < 400
    parsed = onnx.ModelProto.FromString(light)
    for place, (start, end) in where.items():
        parsed.graph.initializer[place].raw_data = data[start:end]
    assert parsed == whole


@pytest.mark.parametrize("path", sorted((ROOT / "pytorch-converted").glob("*"))[::6], ids=lambda path: path.name)
def test_a_saved_model_is_the_one_that_was_loaded(path: Path, tmp_path: Path) -> None:
    before = trtkit.load(path / "model.onnx")
    again = trtkit.load(save(before, tmp_path / "again.onnx"))
    assert again.to_proto() == trtkit.load(before.to_proto()).to_proto()
    want, have = (
        {name: value.const_value.numpy() for name, value in each.ir.graph.initializers.items()}
        for each in (before, again)
    )
    assert want.keys() == have.keys()
    for name in want:
        np.testing.assert_array_equal(want[name], have[name])


@pytest.mark.parametrize("code", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN, TensorProto.INT4, TensorProto.BOOL])
def test_odd_types_keep_their_bytes(code: int, tmp_path: Path) -> None:
    weight = helper.make_tensor("w", code, [3000], bytes(i % 2 for i in range(6000))[: {
        TensorProto.BFLOAT16: 6000, TensorProto.INT4: 1500}.get(code, 3000)], raw=True)  # fmt: skip
    before = trtkit.load(model(weight).SerializeToString())
    saved = onnx.load(save(before, tmp_path / "m.onnx")).graph.initializer[0]
    assert saved.raw_data == weight.raw_data and saved.data_type == code


def test_doc_and_metadata_stay() -> None:
    weight = large()
    weight.doc_string = "what it is for"
    weight.metadata_props.add(key="origin", value="a test")
    whole = model(weight)
    saved = onnx.ModelProto.FromString(trtkit.load(whole.SerializeToString()).to_bytes())
    assert saved.graph.initializer[0] == weight
    assert saved.graph.doc_string == "a graph" and saved.producer_name == "tests"


def test_a_weight_of_the_wrong_length_is_refused() -> None:
    weight = large()
    weight.dims[0] = 999
    with pytest.raises(ModelError, match=r"weight 'w' of shape \(999,\) has 4,000 bytes, and needs 3,996"):
        trtkit.load(model(weight).SerializeToString())


def test_a_graph_in_two_pieces_is_merged_by_protobuf() -> None:
    """Protobuf says: a message field that comes twice is merged. Then nothing is left out, and nothing lost."""
    whole = model(large())
    twice = whole.SerializeToString() + onnx.ModelProto(graph=onnx.GraphProto(doc_string="more")).SerializeToString()
    light, where = onnx_file.split(twice)
    assert light == twice and not where
    assert trtkit.load(twice).ir.graph.doc_string == "more"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_broken_files_raise_a_clear_error_or_load(data: st.DataObject) -> None:
    """A flipped byte or a cut anywhere: what protobuf makes of the rest is the same with and without splitting."""
    good = bytearray(model(large(), large("v")).SerializeToString())
    place = data.draw(st.integers(0, 60) | st.integers(0, len(good) - 1))
    good[place] = data.draw(st.integers(0, 255))
    broken = bytes(good[: data.draw(st.integers(1, len(good)) | st.just(len(good)))])
    light, where = onnx_file.split(broken)
    try:
        want = onnx.ModelProto.FromString(broken)
    except Exception:  # noqa: BLE001  protobuf's own error class depends on its implementation
        with pytest.raises(ModelError):
            trtkit.load(broken)
        return
    have = onnx.ModelProto.FromString(light)
    for number, (start, end) in where.items():
        have.graph.initializer[number].raw_data = broken[start:end]
    assert have == want
