"""Transposes go down through operators that do not mind, where fewer of them are left then."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.passes.graphs import apply, assert_same, ops, parse
from trtkit.importers import load
from trtkit.passes import LEVELS, optimize, run_passes
from trtkit.passes.transpose_sinking import SinkTransposes

T = "Transpose<perm = [0, 2, 3, 1]>"
BACK = "Transpose<perm = [0, 3, 1, 2]>"
X = "float[n, 2, 3, 4] x"
C = "float[2] c = {1, 2}, float[4, 1] d = {1, 2, 3, 4}, float one = {3}, int64[8] pads = {0, 1, 0, 0, 0, 0, 2, 1}"


@pytest.mark.parametrize(
    ("middle", "shape"),
    [
        ("b = Relu(a)", "n, 2, 3, 4"),
        ("b = Add(a, c)", "n, 2, 3, 4"),
        ("b = Sub(d, a)", "n, 2, 3, 4"),
        ("b = Mul(a, one)", "n, 2, 3, 4"),
        ("b = PRelu(a, c)", "n, 2, 3, 4"),
        ("b = Softmax(a)", "n, 2, 3, 4"),
        ("b = Concat<axis = -1>(a, a)", "n, 4, 3, 4"),
        ("b = ReduceMean(a, axes)", "n, 2, 1, 1"),
        ("b = Pad(a, pads)", "n, 3, 4, 6"),
        ("b = Slice(a, begin, end, axes)", "n, 2, 1, 1"),
        ("g = Greater(a, one) b = Where(g, a, c)", "n, 2, 3, 4"),
        ("s = Sigmoid(a) b = Mul(a, s)", "n, 2, 3, 4"),
    ],
)  # fmt: skip
def test_a_transpose_meets_its_inverse(middle: str, shape: str) -> None:
    axes = "int64[2] axes = {1, -2}, int64[2] begin = {1, 1}, int64[2] end = {2, 2}"
    model = parse(f"{C}, {axes} | a = {T}(x) {middle} y = {BACK}(b)", X, f"float[{shape}] y")
    after = apply(model, SinkTransposes)
    assert "Transpose" not in ops(after)
    assert [value.shape.rank() for node in after.ir.graph for value in node.outputs] == [4] * after.node_count


@pytest.mark.parametrize(
    "body",
    [
        f"a = {T}(x) y = Relu(a)",  # nothing to meet
        f"a = {T}(x) b = Flatten(a) y = Relu(b)",  # not past a view
        f"a = {T}(x) b = Relu(a) e = Relu(b) f = {BACK}(e) g = {BACK}(b) h = Add(f, g) i = {T}(h) j = MatMul(i, m) "
        "y = Add(j, a)",
    ],
)
def test_it_stays_where_nothing_is_saved(body: str) -> None:
    model = parse(f"{C}, float[2, 2] m = {{1, 2, 3, 4}} | {body}", X, "float[n, 3, 4, 2] y")
    if "Flatten" in body:
        model = parse(f"{C} | {body}", X, "float[n, k] y")
    before = ops(model).count("Transpose")
    after = ops(apply(model, SinkTransposes))
    assert after.count("Transpose") <= before and len(after) <= len(ops(model))


@pytest.mark.parametrize(("axes", "left"), [("1, 2", 0), ("-1, 1", 0), ("0, 3", 0), ("1", 1)])
def test_a_reduction_that_leaves_the_order_absorbs_it(axes: str, left: int) -> None:
    """A mean over pixels needs no channels last; (0, 2, 3, 1) without axis 1 is (0, 3, 1), not in order."""
    body = f"a = {T}(x) b = ReduceMean<keepdims = 0>(a, axes) y = Relu(b)"
    shape = "p, q" if "," in axes else "p, q, r"
    count = len(axes.split(","))
    model = parse(f"int64[{count}] axes = {{{axes}}} | {body}", X, f"float[{shape}] y")
    assert ops(apply(model, SinkTransposes)).count("Transpose") == left


def test_other_readers_and_outputs_get_what_they_read_before() -> None:
    body = f"a = {T}(x) b = Relu(a) z = Neg(b) e = {BACK}(z) y = Abs(e)"
    before = parse(f"{C} | {body}", X, "float[n, 2, 3, 4] y, float[n, 3, 4, 2] z")
    after = apply(before, SinkTransposes)
    assert ops(after).count("Transpose") == 1 and after.node_count == before.node_count - 1


@pytest.mark.parametrize("level", sorted(LEVELS))
def test_an_output_inside_is_not_asked_to_be_a_second_one(level: int) -> None:
    """Found by fuzzing: once z is r under another name, y cannot be r as well."""
    body = f"a = {T}(x) r = Relu(a) y = {BACK}(r) z = {T}(y) w = Add(y, s)"
    model = parse(
        f"float[4] s = {{0, 0, 0, 0}} | {body}", X, "float[n, 2, 3, 4] y, float[n, 3, 4, 2] z, float[n, 2, 3, 4] w"
    )
    after = optimize(model, level)
    assert [value.name for value in after.outputs] == ["y", "z", "w"]
    assert_same(model, after)


def test_two_outputs_by_the_inverse_stay_two() -> None:
    body = f"a = {T}(x) b = Relu(a) y = {BACK}(b) z = {BACK}(b)"
    after = apply(parse(f"{C} | {body}", X, "float[n, 2, 3, 4] y, float[n, 2, 3, 4] z"), SinkTransposes)
    assert ops(after) == ["Relu", "Transpose"]


def test_a_residual_network_in_the_other_layout_comes_free() -> None:
    """Channels last with convolutions that want them first: as a converter writes it, round every convolution."""
    w = "float[2, 2, 1, 1] w = {1, 2, 3, 4}"
    body = f"a = {T}(x) r = Relu(a) "
    for i in range(3):
        body += f"f{i} = {BACK}(r{i or ''}) g{i} = Conv(f{i}, w) h{i} = {T}(g{i}) s{i} = Add(h{i}, c) "
        body += f"t{i} = Add(s{i}, r{i or ''}) r{i + 1} = Relu(t{i}) "
    before = parse(f"{C}, {w} | {body} y = {BACK}(r3)", X, "float[n, 2, 3, 4] y")
    after = optimize(before)
    assert "Transpose" not in after.op_counts
    assert_same(before, after)


def test_in_a_body() -> None:
    def inner(name: str, op: str) -> str:
        return f"{name} () => (float[n, 2, 3, 4] q) {{ a = {T}(x) b = {op}(a) q = {BACK}(b) }}"

    branches = f"then_branch = {inner('t', 'Relu')}, else_branch = {inner('e', 'Neg')}"
    model = parse(f"bool t = {{1}} | i = Identity(t) y = If(i) <{branches}>", X, "float[n, 2, 3, 4] y")
    assert "Transpose" not in ops(apply(model, SinkTransposes))


@settings(max_examples=60, deadline=None)
@given(
    perm=st.permutations(range(3)),
    other=st.permutations(range(3)),
    steps=st.lists(st.sampled_from(["Relu", "both", "row", "Concat", "Softmax", "mean"]), min_size=1, max_size=5),
    tap=st.integers(0, 5),
    opset=st.sampled_from([11, 13, 18]),
)
def test_random_regions(perm: list[int], other: list[int], steps: list[str], tap: int, opset: int) -> None:
    shape = [4, 5, 6]
    row = [shape[axis] for axis in perm][-1]
    numbers = ", ".join(str(i + 1) for i in range(row))
    body, last = f"a0 = Transpose<perm = {perm}>(x) z0 = Transpose<perm = {perm}>(z) ", "a0"
    for i, step in enumerate(steps, 1):
        body += (
            f"a{i} = "
            + {
                "Relu": f"Relu({last}) ",
                "both": f"Add({last}, z0) ",
                "row": f"Mul({last}, row) ",
                "Concat": f"Concat<axis = 1>({last}, {last}) h{i} = Add({last}, {last}) ",
                "Softmax": f"Softmax<axis = 2>({last}) ",
                "mean": f"Sub({last}, row) ",
            }[step]
        )
        last = f"h{i}" if step == "Concat" else f"a{i}"
    inverse = sorted(range(3), key=lambda i: perm[i])
    out = f"{body} y = Transpose<perm = {inverse}>({last}) w = Transpose<perm = {list(other)}>({last}) "
    out += f"v = Neg(a{min(tap, len(steps))})"
    outputs = "float[p, q, r] y, float[s, t, u] w, float[i, j, k] v"
    before = parse(f"float[{row}] row = {{{numbers}}} | {out}", "float[4, 5, 6] x, float[4, 5, 6] z", outputs, opset)
    rng = np.random.default_rng(0)
    after = run_passes(before, [SinkTransposes()])
    assert_same(before, after, {k: rng.standard_normal((4, 5, 6)).astype(np.float32) for k in "xz"})
    assert after.node_count <= before.node_count
    assert run_passes(after, [SinkTransposes()]).history == after.history


def test_a_keras_network_needs_transposes_only_at_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keras counts channels last, ONNX's convolutions want them first: a Transpose before and behind each of them."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    keras = pytest.importorskip("keras")

    keras.utils.set_random_seed(0)
    layers = keras.layers
    image = keras.Input((16, 16, 3))
    y = layers.Activation("swish")(layers.BatchNormalization()(layers.Conv2D(8, 3, padding="same")(image)))
    z = layers.Conv2D(8, 3, padding="same")(layers.ReLU()(layers.Conv2D(8, 3, padding="same")(y)))
    y = layers.ReLU()(layers.Add()([y, z]))
    y = layers.Concatenate()([layers.Conv2D(4, 1, strides=2)(y), layers.MaxPooling2D()(y)])
    y = layers.GlobalAveragePooling2D()(layers.Conv2D(6, 3)(layers.ZeroPadding2D()(y)))
    before = load(keras.Model(image, layers.Dense(5, activation="softmax")(y)))
    rules = [rule() for rule in LEVELS[2] if rule is not SinkTransposes]
    without, after = run_passes(before, rules), optimize(before)
    assert without.op_counts["Transpose"] > 8
    assert after.op_counts["Transpose"] == 1, "the image's"
    assert_same(before, after, rtol=1e-4)
