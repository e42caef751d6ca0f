"""Fusion groups: what may be one kernel, that the rules keep to it, and that the marks stay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings

import trtkit
from benchmarks import random_graphs, zoo
from tests.passes.graphs import parse
from trtkit.engine.agreement import agreement
from trtkit.errors import ModelError
from trtkit.graph.groups import KEY, check_groups, groups_of, mark
from trtkit.graph.legality import Wiring, detour, fault
from trtkit.model import Model
from trtkit.passes.groups import fuse_groups

SQUARE = "float[1, 4, 8, 8] x, float[4, 4, 1, 1] w"
IMAGE = "float[1, 4, 8, 8] y"
BLOCK = "[conv] a = Conv(x, w)  [add] b = Add(a, x)  [relu] y = Relu(b)"


def nodes(model: Model, *names: str) -> list[ir.Node]:
    return [node for node in model.ir.graph if node.name in names]


def test_a_residual_block_is_one_group_with_its_edges() -> None:
    (group,) = groups_of(fuse_groups(parse(BLOCK, SQUARE, IMAGE)))
    assert (group.rule, group.label, group.nodes) == ("epilogue", "Conv+Add+Relu", ("conv", "add", "relu"))
    assert (group.inputs, group.outputs) == (("x", "w"), ("y",))


def test_marking_changes_nothing_else_and_leaves_the_argument_alone() -> None:
    before = parse(BLOCK, SQUARE, IMAGE)
    after = fuse_groups(before)
    assert groups_of(before) == ()
    assert after.history[-1].name == "fuse groups" and after.node_count == before.node_count
    inputs = before.random_inputs()
    np.testing.assert_array_equal(after.run(inputs)["y"], before.run(inputs)["y"])


def test_marks_survive_a_file_and_a_second_call_replaces_them(tmp_path: Path) -> None:
    fused = fuse_groups(parse(BLOCK, SQUARE, IMAGE))
    again = trtkit.load(trtkit.save(fused, tmp_path / "fused.onnx"))
    assert groups_of(again) == groups_of(fused)
    assert groups_of(fuse_groups(again)) == groups_of(fused)
    assert groups_of(fuse_groups(again, rules=())) == ()


def test_a_set_that_is_left_and_entered_again_is_no_kernel() -> None:
    model = parse("[a] s = Exp(x)  [b] t = Softmax(s)  [c] y = Add(s, t)", "float[2, 4] x", "float[2, 4] y")
    wiring = Wiring(model.ir.graph)
    assert [node.name for node in detour(wiring, nodes(model, "a", "c"))] == ["a", "b", "c"]
    assert detour(wiring, nodes(model, "a", "b", "c")) == ()
    assert fault(wiring, nodes(model, "a", "c"))


def test_two_convolutions_in_a_row_are_no_kernel() -> None:
    model = parse("[one] a = Conv(x, w)  [two] y = Conv(a, w)", SQUARE, IMAGE)
    assert fault(Wiring(model.ir.graph), nodes(model, "one", "two"))
    mark(nodes(model, "one", "two"), 0, "everything")
    with pytest.raises(ModelError, match="one, two, cannot be one kernel"):
        check_groups(model)


def test_groups_that_wait_for_each_other_are_refused() -> None:
    body = "[a] p = Exp(x)  [b] q = Neg(x)  [c] r = Abs(q)  [d] s = Relu(p)  [e] y = Add(r, s)"
    model = parse(body, "float[2, 4] x", "float[2, 4] y")
    check_groups(fuse_groups(model))
    circular = parse(
        "[a] p = Exp(x)  [b] q = Neg(p)  [c] r = Abs(x)  [d] y = Add(q, r)", "float[2, 4] x", "float[2, 4] y"
    )
    mark(nodes(circular, "a", "d"), 0, "outer")
    mark(nodes(circular, "b", "c"), 1, "inner")
    with pytest.raises(ModelError, match=r"cannot be one kernel|wait for each other"):
        check_groups(circular)


def test_a_mark_of_somebody_else_is_named() -> None:
    model = parse("[a] y = Exp(x)", "float[2, 4] x", "float[2, 4] y")
    nodes(model, "a")[0].metadata_props[KEY] = "fast please"
    with pytest.raises(ModelError, match="'a' is marked"):
        groups_of(model)


@settings(max_examples=60, deadline=None)
@given(random_graphs.graphs())
def test_the_groups_of_any_graph_are_legal(proto: onnx.ModelProto) -> None:
    fused = fuse_groups(trtkit.load(proto))
    check_groups(fused)
    names = [name for group in groups_of(fused) for name in group.nodes]
    assert len(names) == len(set(names)), "a node is in one group"
    onnx.checker.check_model(fused.to_proto())


AXIS = "int64[1] axis = {1}, int64[1] start = {0}, int64[1] middle = {2}, int64[1] end = {4}"
SHUFFLE = f"""{AXIS}, int64[5] apart = {{1, 2, 2, 8, 8}}, int64[4] back = {{1, 4, 8, 8}} |
    a = Conv(x, w)  [parts] b = Reshape(a, apart)  [turn] c = Transpose<perm = [0, 2, 1, 3, 4]>(b)
    [whole] d = Reshape(c, back)  [left] e = Slice(d, start, middle, axis)  [right] f = Slice(d, middle, end, axis)
    g = Conv(f, v)  h = Concat<axis = 1>(e, g)  y = Conv(h, w)"""


def test_the_slices_of_a_shuffle_are_copied_where_it_is() -> None:
    """As in ShuffleNet: one half goes through a convolution, the other waits for it. TensorRT's engine is the judge."""
    fused = fuse_groups(parse(SHUFFLE, f"{SQUARE}, float[2, 2, 1, 1] v", IMAGE))
    assert ("parts", "turn", "whole", "left", "right") in {group.nodes for group in groups_of(fused)}
    found = agreement(fused, trtkit.build(fused, verify=False).layers)
    assert found.recall == 1 and not found.disagreements


def test_only_slices_that_are_all_that_reads_a_tensor_are_chunks() -> None:
    slices = f"{AXIS} | [left] e = Slice(x, start, middle, axis)  [right] f = Slice(x, middle, end, axis)"
    outputs = "float[1, 2, 8, 8] e, float[1, 2, 8, 8] f"
    (pair,) = groups_of(fuse_groups(parse(slices, SQUARE, outputs)))
    assert (pair.rule, pair.nodes) == ("chunks", ("left", "right"))
    assert groups_of(fuse_groups(parse(f"{slices} y = Softmax(x)", SQUARE, f"{outputs}, {IMAGE}"))) == ()


@pytest.mark.parametrize("name", ["unet-ts", "vit", "whisper_encoder", "gpt2"])
def test_the_groups_of_real_networks_are_legal(name: str) -> None:
    fused = fuse_groups(trtkit.optimize(zoo.model(name)))
    check_groups(fused)
    assert sum(len(group.nodes) for group in groups_of(fused)) > fused.node_count / 2
