"""Instant checks of lesson 12's exercises."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trtkit.course.checks import NotSolved, show
from trtkit.course.pictures import lesson12
from trtkit.engine.network import layers
from trtkit.engine.network.evaluate import Evaluator
from trtkit.engine.network.writer import Writer
from trtkit.errors import TrtkitError

Array = NDArray[np.float32]


def _compared(got: Any, want: Array, what: str) -> None:
    """Draw an array against the one expected; NotSolved for another shape or other numbers."""
    if got is None:
        raise NotSolved(f"{what}: nothing came back yet. Write the body above.")
    array = np.asarray(got, np.float32)
    if array.shape != want.shape:
        raise NotSolved(f"{what} should have the shape {want.shape}, and has {array.shape}.")
    show(lesson12.against(array.ravel(), want.ravel(), what), f"{what}: yours against what is expected.")
    if not np.allclose(array, want, rtol=1e-3, atol=1e-4):
        wrong = np.mean(~np.isclose(array, want, rtol=1e-3, atol=1e-4))
        raise NotSolved(f"{what}: {wrong:.0%} of the numbers are wrong. In which order do they lie?")


def check_depthwise(turned: Callable[[Array], Array]) -> None:
    """Lesson 12, exercise 1: a depthwise kernel of Keras', (height, width, channels, multiplier), for TensorRT."""
    kernel = np.arange(2 * 3 * 4 * 2, dtype=np.float32).reshape(2, 3, 4, 2)
    want = np.empty((8, 1, 2, 3), np.float32)
    for channel in range(4):
        for copy in range(2):
            want[2 * channel + copy, 0] = kernel[:, :, channel, copy]
    _compared(turned(kernel.copy()), want, "the kernel")
    print("Right: output 2c + m of a depthwise convolution is copy m of channel c.")


SAME = ((8, 3, 1), (8, 3, 2), (9, 3, 2), (7, 2, 2), (28, 5, 3), (4, 1, 2))


def check_same(same: Callable[[int, int, int], Any]) -> None:
    """Lesson 12, exercise 2: what Keras' padding "same" adds before and behind."""
    drawn, expected = {}, {}
    for size, kernel, stride in SAME:
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        name = f"size {size}, kernel {kernel}, stride {stride}"
        expected[name] = (total // 2, total - total // 2)
        answer = same(size, kernel, stride)
        if answer is None or len(answer) != 2:
            raise NotSolved(f"same(size, kernel, stride) returns (before, after), and returned {answer!r}.")
        drawn[name] = (int(answer[0]), size, int(answer[1]))
    show(lesson12.pads(drawn, expected), "Padding before and behind six images of one dimension, green where right.")
    for name, (before, _, after) in drawn.items():
        if (before, after) != expected[name]:
            raise NotSolved(f"{name}: not ({before}, {after}). How many outputs, and how far does the last one reach?")
    print("Right: and with a stride it depends on the size of the image, which no constant can.")


def check_dense(turned: Callable[[Array, int, int, int], Array]) -> None:
    """Lesson 12, exercise 3: a Dense matrix that reads an image flattened from (C, H, W)."""
    rng = np.random.default_rng(12)
    height, width, channels, outputs = 3, 4, 5, 6
    image = rng.standard_normal((height, width, channels), np.float32)
    matrix = rng.standard_normal((image.size, outputs), np.float32)
    answer = turned(matrix.copy(), height, width, channels)
    if answer is None or np.shape(answer) != matrix.shape:
        raise NotSolved(f"The matrix keeps its shape {matrix.shape}; only its rows change places.")
    got = image.transpose(2, 0, 1).ravel() @ np.asarray(answer, np.float32)
    _compared(got, image.ravel() @ matrix, "what the Dense layer computes")
    print("Right: the image may stay channels first, and nothing is turned back at run time.")


def check_mish(mish: Callable[[Writer, Any], Any]) -> None:
    """Lesson 12, exercise 4: a rule for an activation that TensorRT has not, evaluated from its definition."""
    w, x = Writer("exercise"), np.linspace(-6, 6, 121, dtype=np.float32)[None]
    with w.layer("mish"):
        y = mish(w, w.input("x", x.shape, np.float32))
        if not hasattr(y, "is_network_input"):
            raise NotSolved(f"mish(w, x) returns a tensor of TensorRT's, as layers.activation does, not {y!r}.")
    w.network.mark_output(y)
    try:
        got = Evaluator(w.network).run({"x": x})[y.name]
    except TrtkitError as error:
        raise NotSolved(f"The evaluator cannot compute it: {error}") from error
    _compared(got, (x * np.tanh(np.log1p(np.exp(x)))).astype(np.float32), "mish(x)")
    print(f"Right: {w.network.num_layers} layers of TensorRT for one activation.")


def softplus(w: Writer, x: Any) -> Any:
    """log(1 + exp(x)), TensorRT's activation with its two numbers set."""
    return layers.activation(w, x, "SOFTPLUS", 1.0, 1.0)
