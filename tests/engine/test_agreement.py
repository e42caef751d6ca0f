"""Our groups against TensorRT's kernels: the numbers on hand-made cases, and on real engines built here."""

from __future__ import annotations

import math

import pytest

import trtkit
from benchmarks import agreement as benchmark
from tests.passes.graphs import parse
from trtkit.engine.agreement import CONTAINED, EQUAL, MISSING, OVERLAPPING, Agreement, agreement
from trtkit.engine.layers import Layer
from trtkit.graph.groups import mark
from trtkit.model import Model

CHAIN = "[a] p = Exp(x)  [b] q = Neg(p)  [c] r = Abs(q)  [d] y = Relu(r)"


def grouped(*groups: str) -> Model:
    model = parse(CHAIN, "float[2, 4] x", "float[2, 4] y")
    for number, names in enumerate(groups):
        mark([node for node in model.ir.graph if (node.name or "") in names], number, "by hand")
    return model


def against(model: Model, *kernels: str) -> Agreement:
    return agreement(model, [Layer(f"kernel {names}", "kgen", (), (), "", tuple(names)) for names in kernels])


@pytest.mark.parametrize(
    ("groups", "kernels", "verdicts", "recall", "precision", "pairs"),
    [
        (("ab", "cd"), ("ab", "cd"), [EQUAL, EQUAL], 1, 1, 1),
        (("abcd",), ("ab", "cd"), [CONTAINED, CONTAINED], 1, 0, 2 / 6),  # one group for everything
        (("abc",), ("ab", "cd"), [CONTAINED, OVERLAPPING], 1 / 2, 0, 1 / 4),
        (("ab",), ("ab", "cd"), [EQUAL, MISSING], 1 / 2, 1, 1 / 2),
        ((), ("abcd",), [MISSING], 0, math.nan, 0),
        (("ab",), ("a", "b", "c", "d"), [], math.nan, 0, 0),
    ],
)
def test_numbers(
    groups: tuple[str, ...],
    kernels: tuple[str, ...],
    verdicts: list[str],
    recall: float,
    precision: float,
    pairs: float,
) -> None:
    found = against(grouped(*groups), *kernels)
    assert [kernel.verdict for kernel in found.kernels] == verdicts
    assert found.recall == pytest.approx(recall, nan_ok=True)
    assert found.precision == pytest.approx(precision, nan_ok=True)
    assert found.pair_jaccard == pytest.approx(pairs, nan_ok=True)


def test_every_disagreement_is_named() -> None:
    found = against(grouped("abc"), "ab", "cd")
    lost, split = map(str, found.disagreements)
    assert lost.startswith("overlapping: Abs+Relu [c, d] in kernel cd; ours: Exp+Neg+Abs")
    assert split.startswith("split into 2: Exp+Neg+Abs [a, b, c]")


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_real_networks_agree(name: str) -> None:
    found = benchmark.compare(name, small=True)
    assert found.recall >= benchmark.TARGET and found.precision >= benchmark.TARGET
    assert len(found.kernels) > 10


def test_the_report_has_a_line_a_network_and_names_what_is_below(capsys: pytest.CaptureFixture[str], tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert benchmark.main(["unet-ts", "--small", "--list", "--out", str(tmp_path / "a.json")]) == 0
    printed = capsys.readouterr().out
    assert "1 of 1 convolutional networks at 90% or more" in printed
    assert trtkit.__version__ in (tmp_path / "a.json").read_text()
