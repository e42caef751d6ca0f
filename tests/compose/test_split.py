"""split, share_trunk, multi_head: parts that make the whole, and wholes that hold their parts once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torchvision import models

import trtkit
from tests.compose.test_merge import X, model, run
from trtkit.compose.multi_head import multi_head
from trtkit.compose.split import split, until
from trtkit.compose.trunk import share_trunk
from trtkit.errors import ModelError
from trtkit.model import Model


def in_sequence(parts: Sequence[Model], inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Run the parts one after the other, each fed with all that is known by then."""
    known = dict(inputs)
    for part in parts:
        onnx.checker.check_model(part.to_proto(), full_check=True)
        known |= part.run({info.name: known[info.name] for info in part.inputs})
    return known


def test_parts_in_sequence_are_the_whole() -> None:
    torch.manual_seed(0)
    whole = trtkit.load(models.resnet18().eval(), torch.rand(1, 3, 64, 64))
    small = trtkit.optimize(whole)
    adds = [node.outputs[0].name for node in small.ir.graph if node.op_type == "Add"]
    parts = split(small, [adds[1], adds[5]])
    assert [p.node_count for p in parts] and sum(p.node_count for p in parts) == small.node_count
    assert parts[0].outputs[0].shape == ("batch", 64, 16, 16) and parts[1].inputs == parts[0].outputs
    x = small.random_inputs(batch=2)
    name = small.outputs[0].name
    np.testing.assert_allclose(in_sequence(parts, x)[name], small.run(x)[name], rtol=1e-5, atol=1e-5)
    assert parts[1].history[-1].name == "split" and len(parts[1].history) == len(small.history) + 1


def test_a_cut_through_two_branches_and_outputs_on_the_way() -> None:
    whole = model("a = Abs(x) b = Neg(x) c = Exp(a) y = Add(c, b)", outputs="float[n, 4] y, float[n, 4] a")
    first, second = split(whole, [("a", "b")])
    assert [o.name for o in first.outputs] == ["a", "b"] and [i.name for i in second.inputs] == ["a", "b"]
    got = in_sequence((first, second), {"x": X})
    want = run(whole, x=X)
    for name in ("y", "a"):
        np.testing.assert_array_equal(got[name], want[name])


def test_an_input_that_only_the_second_part_reads_goes_there() -> None:
    whole = model("a = Abs(x) y = Add(a, mask)", inputs="float[n, 4] x, float[n, 4] mask")
    first, second = split(whole, ["a"])
    assert [i.name for i in first.inputs] == ["x"] and [i.name for i in second.inputs] == ["a", "mask"]


def test_constants_are_copied_where_they_are_needed() -> None:
    whole = model("float[4] w = {1.0, 2.0, 3.0, 4.0}|n = Neg(w) a = Add(x, n) b = Mul(a, n) y = Sub(b, w)")
    parts = split(whole, ["a"])
    assert [p.op_counts for p in parts] == [{"Neg": 1, "Add": 1}, {"Neg": 1, "Mul": 1, "Sub": 1}]
    np.testing.assert_array_equal(in_sequence(parts, {"x": X})["y"], run(whole, x=X)["y"])


def test_what_goes_around_a_cut_is_named() -> None:
    whole = model("[stem] h = Abs(x) [conv] a = Exp(h) [residual] y = Add(a, h)")
    with pytest.raises(ModelError, match=r"does not separate 'g': 'h'.* reaches 'y' around it, through residual\. Cut"):
        split(whole, ["a"])
    assert len(split(whole, [("a", "h")])) == 2
    branches = model("a = Abs(x) b = Neg(x) y = Add(a, b)")
    with pytest.raises(ModelError, match=r"'x', there before it, reaches 'y' around it, through Neg_1 -> Add_2"):
        split(branches, ["a"])
    body = "then_branch = t () => (float[n, 4] p) {p = Relu(h)}, else_branch = e () => (float[n, 4] p) {p = Neg(h)}"
    hidden = model(f"h = Abs(x) a = Exp(h) s = ReduceSum<keepdims = 0>(a) c = Cast<to = 9>(s) y = If <{body}> (c)")
    with pytest.raises(ModelError, match=r"'h'.* reaches 'y' around it"):
        split(hidden, ["a"])


def test_impossible_cuts_are_refused() -> None:
    whole = model("alpha = Abs(x) beta = Neg(alpha) y = Relu(beta)")
    with pytest.raises(ModelError, match=r"no tensor 'alpa' to cut at\. Near it: alpha"):
        split(whole, ["alpa"])
    with pytest.raises(ModelError, match="'x' is an input or a weight"):
        split(whole, ["x"])
    with pytest.raises(ModelError, match=r"in order|comes after|does not separate"):
        split(whole, ["beta", "alpha"])
    with pytest.raises(ModelError, match="Nothing in 'g' comes after the cut"):
        split(whole, ["y"])
    unknown = model("a = mine.Op(x) y = Relu(a)", opset='"": 20, "mine": 1')
    with pytest.raises(ModelError, match="Type and shape of 'a' in 'g' cannot be inferred"):
        split(unknown, ["a"])


def test_a_part_is_verified_against_the_same_part_of_the_origin() -> None:
    whole = trtkit.optimize(model("h = Identity(x) a = Abs(h) b = Identity(a) y = Neg(b)"))
    first, second = split(whole, ["a"])
    assert first.origin.op_counts == {"Identity": 1, "Abs": 1} and second.origin.op_counts == {"Identity": 1, "Neg": 1}
    assert trtkit.build(second).verification.passed


class TwoLayers(nn.Module):
    def __init__(self, head: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        torch.manual_seed(head)
        self.head = nn.Linear(8, 4 + head)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


def test_models_with_one_trunk_compute_it_once() -> None:
    parts = {f"task{k}": trtkit.load(TwoLayers(k).eval(), torch.rand(1, 3, 12, 12)) for k in range(3)}
    parts = {name: trtkit.optimize(part) for name, part in parts.items()}
    whole = share_trunk(parts)
    assert whole.op_counts["Conv"] == 1 and whole.op_counts["Gemm"] == 3
    x = parts["task0"].random_inputs(batch=2)
    got = run(whole, **x)
    for have, part in zip(got.values(), parts.values(), strict=True):
        np.testing.assert_allclose(have, next(iter(part.run(x).values())), rtol=1e-5, atol=1e-6)
    assert whole.origin.op_counts["Conv"] == 3  # verified against what was loaded
    assert trtkit.build(whole).verification.passed
    kept = whole.node_count
    assert whole.history[-1].detail.endswith(f"{sum(p.node_count for p in parts.values()) - kept} of "
                                             f"{sum(p.node_count for p in parts.values())} nodes shared")  # fmt: skip


def test_models_with_nothing_in_common_stay_whole() -> None:
    whole = share_trunk({"a": model("h = Abs(x) y = Neg(h)"), "b": model("h = Exp(x) y = Neg(h)")})
    assert whole.op_counts == {"Neg": 2, "Abs": 1, "Exp": 1} and "0 of 4 nodes shared" in whole.history[-1].detail


def test_attributes_order_of_operands_and_random_numbers_tell_nodes_apart() -> None:
    parts = {str(a): model(f"y = LeakyRelu<alpha = {a}>(x)") for a in (0.1, 0.2)}
    assert share_trunk(parts).op_counts == {"LeakyRelu": 2}
    sides = {k: model(f"h = Abs(x) y = Sub({k})") for k in ("h, x", "x, h")}
    assert share_trunk(sides).op_counts == {"Sub": 2, "Abs": 1}
    noise = {k: model("r = RandomNormalLike(x) y = Add(r, x)") for k in "ab"}
    assert share_trunk(noise).op_counts["RandomNormalLike"] == 2


def test_whole_models_that_are_equal_still_give_every_output() -> None:
    whole = share_trunk({"a": model("y = Abs(x)"), "b": model("y = Abs(x)")})
    got = run(whole, x=X)
    assert list(got) == ["a/y", "b/y"]
    np.testing.assert_array_equal(got["a/y"], got["b/y"])


def heads(width: int, names: Sequence[str] = ("age", "mood")) -> dict[str, Model]:
    weights = {
        name: f"float[{width}, 2] w = {{{', '.join([str(k + 0.5)] * (2 * width))}}}" for k, name in enumerate(names)
    }
    return {
        name: model(f"{weights[name]}|y = MatMul(f, w)", name, f"float[n, {width}] f", "float[n, 2] y")
        for name in names
    }


def test_many_heads_on_one_backbone() -> None:
    backbone = model("a = Abs(x) b = Exp(a) old = Neg(b)", "trunk", outputs="float[n, 4] old")
    whole = multi_head(backbone, heads(4), at="a")
    assert whole.op_counts == {"MatMul": 2, "Abs": 1}  # what came after the features is gone
    got = run(whole, x=X)
    assert list(got) == ["age/y", "mood/y"]
    np.testing.assert_allclose(got["mood/y"], np.abs(X) @ np.full((4, 2), 1.5), rtol=1e-5)
    engine = trtkit.build(whole)
    assert engine.fusion_map().unexplained == ()


def test_heads_that_do_not_fit_are_refused() -> None:
    backbone = model("a = Abs(x) y = Neg(a)", "trunk", outputs="float[n, 4] y, float[n, 4] a")
    with pytest.raises(ModelError, match=r"outputs \['y', 'a'\]: say with `at`"):
        multi_head(backbone, heads(4))
    with pytest.raises(
        ModelError, match=r"Input 'f' of 'age', float \(n, 5\) cannot be fed from output 'a' of 'trunk'"
    ):
        multi_head(backbone, heads(5), at="a")
    with pytest.raises(ModelError, match="needs heads, called otherwise than the backbone"):
        multi_head(backbone, {}, at="a")
    with pytest.raises(ModelError, match="called otherwise"):
        multi_head(backbone, heads(4, ["trunk"]), at="a")
    two = model("y = Add(f, g)", "two", "float[n, 4] f, float[n, 4] g")
    with pytest.raises(ModelError, match=r"head 'two' has the inputs \['f', 'g'\]"):
        multi_head(backbone, [two], at="a")


def test_until_keeps_the_origin() -> None:
    small = trtkit.optimize(model("h = Identity(x) a = Abs(h) y = Neg(a)", "net"))
    part = until(small, "a")
    assert part.name == "net" and part.op_counts == {"Abs": 1} and part.origin.op_counts == {"Identity": 1, "Abs": 1}
