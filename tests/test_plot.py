"""Pictures: everything that should be on them is, nothing overlaps, and nothing is drawn twice."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import trtkit
from trtkit import plot
from trtkit.bench.measure import Measurement
from trtkit.engine.agreement import Agreement, compare_groups
from trtkit.engine.fusion import FusionMap, NodeAccount
from trtkit.engine.layers import Layer
from trtkit.graph.groups import Group
from trtkit.plot.repeats import collapsed


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for axis in figure.axes for text in axis.texts] + [text.get_text() for text in figure.texts]


def overlapping(figure: Figure) -> list[tuple[str, str]]:
    """Pairs of texts on the figure whose boxes intersect."""
    figure.canvas.draw()
    shown = [t for axis in figure.axes for t in axis.texts if t.get_text()] + [t for t in figure.texts if t.get_text()]
    boxes = [(t.get_text(), t.get_window_extent()) for t in shown]
    return [(a, b) for i, (a, box) in enumerate(boxes) for b, other in boxes[i + 1 :] if box.overlaps(other)]


def layer(kind: str, *nodes: str, tactic: str = "") -> Layer:
    return Layer("k", kind, (), (), tactic, nodes)


def chain(blocks: int) -> FusionMap:
    """A stem, equal blocks of Conv+Relu and Conv+Add+Relu, a view and a folded node."""
    nodes, kernels = [NodeAccount("c", "Constant", "folded", None, "computed while building")], []
    for ops in [("MaxPool",), *[("Conv", "Relu"), ("Conv", "Add", "Relu")] * blocks]:
        nodes += [NodeAccount(f"n{len(nodes) + i}", op, "kernel", len(kernels), "") for i, op in enumerate(ops)]
        kernels.append(layer("correlation", *ops))
    nodes.append(NodeAccount("r", "Reshape", "view", None, "only says how the same bytes are read"))
    kernels.append(layer("kgen", tactic="__myl_TranMean_0x12ab"))
    return FusionMap("net", tuple(nodes), tuple(kernels))


def test_fusion_map_draws_blocks_once_and_says_how_often() -> None:
    figure = plot.fusion_map(chain(5))
    shown = texts(figure)
    assert "5×" in shown
    assert shown.count("Conv") == 2
    assert "kgen: TranMean" in shown
    assert "(TensorRT's own)" in shown
    assert any(text.startswith("view: only says") for text in shown)
    assert any(text.startswith("folded: computed") for text in shown)
    assert "ONNX: 28 nodes" in shown
    assert not overlapping(figure)


def test_fusion_map_whole_and_in_part() -> None:
    assert texts(plot.fusion_map(chain(5), collapse=False)).count("Conv") == 10
    assert texts(plot.fusion_map(chain(5), collapse=False, first=3)).count("Conv") == 1


def test_a_long_chain_of_nodes_breaks_into_lines() -> None:
    nodes = tuple(NodeAccount(f"n{i}", "LayerNormalization", "kernel", 0, "") for i in range(19))
    figure = plot.fusion_map(FusionMap("net", nodes, (layer("kgen", *"ab"),)))
    assert texts(figure).count("LayerNorm") == 19
    assert not overlapping(figure)


def test_collapsing_loses_nothing() -> None:
    rows = list("abcbcbcdefefx")
    blocks = collapsed(rows)
    assert [row for block, times in blocks for row in block * times] == rows
    assert (["b", "c"], 3) in blocks
    assert sum(len(block) for block, _ in blocks) < len(rows)
    assert collapsed([]) == []


def test_the_map_of_a_real_engine() -> None:
    pytest.importorskip("tensorrt_rtx")
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 2, 2] y) ' \
           "<int64[3] s = {0, 2, 2}> {a = Exp(x) b = Relu(a) y = Reshape(b, s)}"  # fmt: skip
    fusion = trtkit.build(trtkit.load(onnx.parser.parse_model(text))).fusion_map()
    shown = texts(fusion.plot())
    assert {"Exp", "Relu", "Reshape"} <= set(shown)


def test_bars_carry_their_numbers_and_their_source() -> None:
    times = {"eager": Measurement.from_samples([3.0, 3.2, 3.9]), "ours": Measurement.from_samples([0.30, 0.31, 0.33])}
    figure = plot.latency_bars(times, title="one call", highlight=["ours"])
    assert {"3.2", "0.31", "measured here"} <= set(texts(figure))
    assert "p10 to p90" in figure.axes[0].get_xlabel()
    assert not overlapping(figure)
    assert "p10" not in plot.latency_bars({"a": 1.0}).axes[0].get_xlabel()


def test_comparison_leaves_out_what_was_not_measured() -> None:
    rows = [
        {"name": "a", "batch": None, "median_ms": None, "size_bytes": 4e6, "error": 0.0, "measured": None},
        {"name": "b", "batch": 8, "median_ms": None, "size_bytes": 2e6, "error": 3e-4, "measured": None},
    ]
    figure = plot.comparison(rows, peer="a")
    assert [axis.get_title(loc="left") or axis.get_title() for axis in figure.axes] == ["size, MB", "relative error"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["a", "b, batch 8"]
    timed = plot.comparison([row | {"median_ms": 1.0, "measured": "this CPU"} for row in rows], peer="a")
    assert len(timed.axes) == 3
    assert "latency measured on: this CPU" in texts(timed)
    assert not overlapping(timed)


def test_nothing_to_draw_is_said() -> None:
    for draw in (lambda: plot.latency_bars({}), lambda: plot.comparison([])):
        with pytest.raises(ValueError, match="draw"):
            draw()


def test_figures_are_closed_and_can_be_saved(tmp_path: Path) -> None:
    plt.close("all")
    plot.style()
    for figure in (plot.fusion_map(chain(1)), plot.latency_bars({"a": 1.0}), plt.figure()):
        assert plot.save(figure, tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert plt.get_fignums() == []
    assert plot.save(plot.latency_bars({"a": 1.0}), tmp_path / "x.SVG").read_text().startswith("<?xml")


def test_what_stands_outside_the_axes_is_saved_too(tmp_path: Path) -> None:
    figure = plot.latency_bars({"a": 1.0}, source="measured here")
    height = figure.get_size_inches()[1]
    saved = plt.imread(plot.save(figure, tmp_path / "x.png"))
    figure.text(0, -0.5, "far below")
    assert plt.imread(plot.save(figure, tmp_path / "x.png")).shape[0] > saved.shape[0] + 0.4 * height * 120


def test_a_picture_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(b"old")
    figure = plot.latency_bars({"a": 1.0})
    figure.text(0, 0, "$\\nonsense$")  # fails while it is drawn
    with pytest.raises(ValueError, match="nonsense"):
        plot.save(figure, tmp_path / "x.png")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def judged(*rows: tuple[str, list[int], list[int | None]]) -> Agreement:
    """An Agreement of rows: operators, our group of each, and TensorRT's kernel of each (None: it names none)."""
    nodes, members = [], dict[int, list[NodeAccount]]()
    for ops, ours, theirs in rows:
        for op, group, kernel in zip(ops.split(), ours, theirs, strict=True):
            node = NodeAccount(f"n{len(nodes)}", op, "view" if kernel is None else "kernel", kernel, "")
            nodes.append(node)
            members.setdefault(group, []).append(node)
    kernels = tuple(layer("kgen") for _ in nodes)
    groups = [
        Group(number, "r", tuple(n.name for n in each), tuple(n.op_type for n in each), (), ())
        for number, each in members.items()
        if len(each) > 1
    ]
    return compare_groups(groups, FusionMap("net", tuple(nodes), kernels))


def test_agreement_marks_and_lists_what_differs() -> None:
    found = judged(
        ("Conv Relu", [0, 0], [0, 0]),
        ("Conv Relu Add", [1, 1, 1], [1, 1, 2]),
        ("MaxPool", [2], [3]),
        ("MatMul Reshape Softmax", [3, 3, 3], [4, None, 4]),
        ("Mul Mul", [4, 5], [5, 5]),
    )
    figure = found.plot()
    shown = texts(figure)
    assert shown.count("the same kernel") == 2 and shown.count("alone in both") == 1
    assert {"1: ours 1, TensorRT 2 kernels", "2: ours 2, TensorRT 1 kernel"} <= set(shown)
    assert "1: 1× ours Conv+Relu+Add  |  TensorRT Conv+Relu, Add" in shown
    assert "2: 1× ours Mul, Mul  |  TensorRT Mul+Mul" in shown
    assert "2 of 4 fusions the same" in figure.axes[0].get_title(loc="left")
    assert not overlapping(figure)
    assert "alone in both" not in texts(found.plot(alone=False))
    assert len(found.disagreements) == 2


def test_agreement_says_how_often_a_difference_comes_and_draws_blocks_once() -> None:
    blocks = []
    for i in range(0, 8, 2):
        blocks += [("Conv Relu", [i, i], [i, i]), ("Exp Neg", [8 + i] * 2, [i + 9, i + 1])]
    figure = judged(*blocks).plot()
    assert "4×" in texts(figure)
    assert "1: 4× ours Exp+Neg  |  TensorRT Exp, Neg" in texts(figure)
    assert texts(figure).count("Conv") == 1 and texts(judged(*blocks).plot(collapse=False)).count("Conv") == 4


def test_a_chain_of_many_nodes_breaks_into_lines_and_says_where_it_is_interrupted() -> None:
    figure = judged((" ".join(["Add"] * 19), [0] * 19, [0, 1, 0] + [0] * 16)).plot()
    assert texts(figure).count("Add") == 19 and not overlapping(figure)
    assert sum(line.get_linestyle() == ":" for line in figure.axes[0].lines) == 1
