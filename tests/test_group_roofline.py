"""The roofline of groups: bytes and launches saved, and bounds that are bounds."""

from __future__ import annotations

import pytest

from tests.passes.graphs import parse
from trtkit.bench.group_roofline import H100_TF32, group_roofline, measure_call
from trtkit.bench.roofline import Machine
from trtkit.passes.groups import fuse_groups

TOY = Machine("toy", 1e9, 1e9)
CONV = parse(
    "a = Conv(x, w) b = Add(a, x) y = Relu(b)",
    inputs="float[1, 4, 8, 8] x, float[4, 4, 1, 1] w",
    outputs="float[1, 4, 8, 8] y",
)


def test_a_residual_block_reads_and_writes_once() -> None:
    (kernel,) = group_roofline(fuse_groups(CONV), TOY).kernels
    image, weight = 4 * 4 * 64, 4 * 16
    assert kernel.bytes_moved == 2 * image + weight  # x is read once for the convolution and for the sum
    assert kernel.bytes_apart == (2 * image + weight) + 3 * image + 2 * image
    assert kernel.flops == 2 * 4 * 256 + 2 * 256
    assert kernel.kernels_apart == 3


def test_without_groups_nothing_is_saved() -> None:
    found = group_roofline(CONV, TOY)
    assert len(found.kernels) == 3 and found.bytes_saved == found.kernels_saved == 0
    assert found.seconds == found.seconds_apart


def test_fusing_never_costs_time() -> None:
    found = group_roofline(fuse_groups(CONV), H100_TF32)
    assert found.kernels_saved == 2 and found.seconds < found.seconds_apart


def test_what_computes_much_gains_only_launches() -> None:
    """Far above the ridge the arithmetic is the limit, fused or not."""
    slow = Machine("slow", 1e3, 1e12)
    found = group_roofline(fuse_groups(CONV), slow)
    assert found.bytes_saved > 0 and found.seconds == pytest.approx(found.seconds_apart)


def test_launches_are_counted_when_their_price_is_given() -> None:
    free, dear = (group_roofline(fuse_groups(CONV), TOY, launch_s=price) for price in (0.0, 1e-3))
    assert dear.seconds - free.seconds == pytest.approx(1e-3)
    assert dear.seconds_apart - free.seconds_apart == pytest.approx(3e-3)


def test_a_call_is_measured() -> None:
    assert 1e-9 < measure_call(200) < 1e-3


def test_the_picture_says_what_it_shows() -> None:
    figure = group_roofline(fuse_groups(CONV), H100_TF32).plot()
    (axis,) = figure.axes
    assert "H100" in axis.get_title(loc="left") and "byte" in axis.get_xlabel()
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["node by node", "as one kernel"]
