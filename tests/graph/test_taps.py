"""Every tensor of a graph: the right values, in the graph's order, in bounded memory."""

from __future__ import annotations

import numpy as np
import pytest

from tests.passes.graphs import parse
from trtkit.errors import ModelError
from trtkit.graph.taps import Batch, Taps

MODEL = parse(
    "a = Neg(x)  b = Exp(a)  c, d = Split<num_outputs = 2, axis = 1>(b)  s = Concat<axis = 1>(d, c)  y = Relu(s)"
)
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def test_all_tensors_by_default_and_in_order() -> None:
    taps = Taps(MODEL)
    assert taps.names == ("a", "b", "c", "d", "s", "y")
    values = taps.run(X)
    np.testing.assert_array_equal(values["a"], -X)
    np.testing.assert_allclose(values["b"], np.exp(-X), rtol=1e-6)
    np.testing.assert_array_equal(values["s"], np.concatenate([values["d"], values["c"]], 1))
    assert [o.name for o in MODEL.outputs] == ["y"]  # the model itself stays as it is


@pytest.mark.parametrize("chunk_bytes", [1, 48, 100, 1 << 20])
def test_each_gives_the_same_in_chunks_of_any_size(chunk_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    taps = Taps(MODEL)
    whole, held = taps.run(X), []
    run = Taps.run

    def watched(chunk: Taps, batch: Batch) -> dict[str, np.ndarray]:
        given_out = {output.name for output in chunk._model.ir.graph.outputs}
        assert given_out == {"y", *chunk.names}  # its own chunk and the model's output: the rest would be kept as well
        held.append([whole[name].nbytes for name in chunk.names])
        return run(chunk, batch)

    monkeypatch.setattr(Taps, "run", watched)
    parts = list(taps.each(X, chunk_bytes))
    assert [name for name, _ in parts] == list(taps.names)
    for name, tensor in parts:
        np.testing.assert_array_equal(tensor, whole[name])
    assert all(sum(sizes) <= chunk_bytes or len(sizes) == 1 for sizes in held)
    assert len(held) == {1: 6, 48: 5, 100: 3, 1 << 20: 1}[chunk_bytes]


def test_inputs_repeats_and_a_choice() -> None:
    taps = Taps(MODEL, ["x", "a", "a", "y"])
    assert set(taps.run(X)) == {"x", "a", "y"}
    np.testing.assert_array_equal(taps.run(X, ["x"])["x"], X)


def test_tensors_of_unknown_size_come_alone() -> None:
    model = parse("a = NonZero(x)  b = Cast<to = 1>(a)  y = Neg(x)")
    assert [name for name, _ in Taps(model).each(X)] == ["a", "b", "y"]


def test_errors_list_near_names() -> None:
    model = parse("conv_12_out = Neg(x)  y = Relu(conv_12_out)")
    with pytest.raises(ModelError, match=r"'conv_21_out'.*Did you mean 'conv_12_out'"):
        Taps(model, ["conv_21_out"])
    with pytest.raises(ModelError, match=r"Taps\(model\)\.names"):
        Taps(model, ["zzzzzzzzzz"])
    with pytest.raises(ModelError, match="x"):
        list(Taps(model).each(np.zeros((2, 5), np.float32)))
