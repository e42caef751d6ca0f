"""Initial states of zeros are left out; all others stay."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.passes.graphs import assert_same, ops, parse
from trtkit.importers import load
from trtkit.passes import optimize, run_passes
from trtkit.passes.zero_states import DropZeroStates

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
ZEROS = "z = Shape<start = 1, end = 2>(x) k = Concat<axis = 0>(two, z, two) h = {make} i = Slice(h, zero, one, zero)"


def network(op: str, make: str, states: str) -> str:
    rng = np.random.default_rng(0)
    numbers = ", ".join(f"{v:.3f}" for v in rng.standard_normal(4 * GATES[op]))
    weights = "".join(f"float[1, {2 * GATES[op]}, 2] {name} = {{{numbers}}}, " for name in "wr")
    whole = "int64[1] two = {2}, int64[1] zero = {0}, int64[1] one = {1}, float nought = {0}, float half = {0.5}"
    return f"{weights}{whole} | {ZEROS.format(make=make)} y = {op}<hidden_size = 2>(x, w, r, , , {states})"


@pytest.mark.parametrize(
    ("op", "make", "states", "left"),
    [
        ("LSTM", "ConstantOfShape(k)", "i, i", 1),
        ("LSTM", "Expand(nought, k)", "i", 1),
        ("GRU", "ConstantOfShape(k)", "i", 1),
        ("RNN", "Expand(nought, k)", "i", 1),
        ("LSTM", "Expand(half, k)", "i, i", 5),
        ("GRU", "ConstantOfShape<value = float[1] {1}>(k)", "i", 5),
    ],
)
def test_zeros_go_and_others_stay(op: str, make: str, states: str, left: int) -> None:
    before = parse(network(op, make, states), "float[3, n, 2] x", "float[3, 1, n, 2] y")
    after = run_passes(before, [DropZeroStates()])
    assert len(ops(after)) == left
    assert_same(before, after, {"x": np.random.default_rng(1).standard_normal((3, 4, 2)).astype(np.float32)})


def test_a_state_that_is_given_stays() -> None:
    weights = "float[1, 2, 2] w = {1, 2, 3, 4}, float[1, 2, 2] r = {1, 2, 3, 4}"
    inputs = "float[3, 1, 2] x, float[1, 1, 2] h"
    before = parse(f"{weights} | y = RNN<hidden_size = 2>(x, w, r, , , h)", inputs, "float[3, 1, 1, 2] y")
    assert run_passes(before, [DropZeroStates()]).history == before.history


@pytest.mark.parametrize("dynamo", [True, False])
def test_an_export_with_a_changeable_batch(dynamo: bool, tmp_path) -> None:  # type: ignore[no-untyped-def]
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = torch.nn.LSTM(6, 5, num_layers=2, bidirectional=True, batch_first=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.lstm(x)[0]

    torch.manual_seed(0)
    x = torch.rand(2, 7, 6)
    if dynamo:
        before = load(Net().eval(), x, dynamic_batch=True)
    else:
        file, axes = tmp_path / "lstm.onnx", {"x": {0: "n"}}
        torch.onnx.export(
            Net().eval(), (x,), str(file), dynamo=False, opset_version=17, input_names=["x"], dynamic_axes=axes
        )
        before = load(file)
    after = optimize(before)
    assert set(after.op_counts) == {"LSTM", "Transpose", "Reshape"}
    for batch in (1, 3):
        assert_same(before, after, before.random_inputs(batch=batch))
