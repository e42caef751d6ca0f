"""Why is my INT8 slower than FP16? Questions in the order in which they are worth asking, and answers from engines."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from trtkit.course.blocks import bytes_moved
from trtkit.engine.engine import Engine
from trtkit.engine.lint import ALONE, AT_INPUT, Lint, lint
from trtkit.errors import ModelError
from trtkit.model import Model


class Question(NamedTuple):
    """A question of the flowchart, what is the matter where the answer is no, and what helps."""

    key: str
    asks: str
    cause: str
    cure: str


QUESTIONS = (
    Question("pairs", "Does the graph hold Q/DQ pairs?",
             "An old flag or calibrator: TensorRT 11 goes by the graph", "trtkit.quantize"),
    Question("products", "Is every quantised product\n8-bit in the engine?",
             "A pair at a wrong place: weights are dequantised in each run", "trtkit.lint names the place"),
    Question("channels", "Does each convolution read only\nthe channels that it has?",
             "Groups are filled up to four channels with zeros", "leave depthwise convolutions in float"),
    Question("kernels", "Does every Q find a kernel\nto be fused into?",
             "Rescaling and rounding is a kernel of its own, one more launch",
             "quantise what has 8-bit neighbours"),
    Question("floats", "Are the numbers between\nthe products FP16 or smaller?",
             "Products write FP32: more bytes than FP16 had", 'autocast to "bf16" behind trtkit.quantize'),
    Question("bytes", "Weights and activations together:\nfewer bytes than in FP16?",
             "Activations outweigh the weights", "a smaller batch, or FP16"),
    Question("launches", "Does a call last longer than\nit takes to launch it?",
             "The GPU waits, and waiting has no number format", "a CUDA graph, a larger batch, or FP16"),
    Question("units", "Does the hardware multiply\n8-bit codes faster?",
             "No units for it: codes are widened first", "other hardware, or FP16"),
)  # fmt: skip


class Answer(NamedTuple):
    """The answer to the question of this key: whether it is yes, and what was seen."""

    key: str
    yes: bool
    seen: str


def answers(model: Model, engine: Engine, rival: Engine) -> list[Answer]:
    """What two engines can answer, in order and up to the first no; `launches` and `units` take a clock.

    Args:
        model: the quantised model, or what is taken for one.
        engine: built from it.
        rival: the FP16 engine for the same shapes, with its model.

    Raises:
        ModelError: the rival was read from a file without its model, whose weights count.
    """
    if not isinstance(rival.model, Model):
        raise ModelError("The rival engine has no model, so its weights cannot be counted. Build it with trtkit.build.")
    try:
        found = lint(model, engine)
    except ModelError:
        return [Answer("pairs", False, f"no pair in it, it is in {model.precision}")]
    pairs = Answer("pairs", found.quantized > 0, f"{found.quantized} quantised products")
    ours, theirs = _bytes(model, engine), _bytes(rival.model, rival)
    fewer = Answer("bytes", ours < theirs, f"{ours / 1e6:.1f} MB against {theirs / 1e6:.1f} MB")
    given = [pairs, *(ask(found) for ask in _ASK), fewer]
    last = next((i for i, answer in enumerate(given) if not answer.yes), len(given))
    return given[: last + 1]


def _products(found: Lint) -> Answer:
    return Answer("products", not found.missing, f"{len(found.missing)} of {len(found.products)} products are float")


def _channels(found: Lint) -> Answer:
    filled = [product for product in found.products if product.channels[1] >= 2 * product.channels[0] > 0]
    return Answer("channels", not filled, f"{len(filled)} convolutions read twice their channels or more")


def _kernels(found: Lint) -> Answer:
    alone = [a for a in found.accounts if a.state == ALONE and a.why != AT_INPUT]
    return Answer("kernels", not alone, f"{len(alone)} pairs are kernels of their own")


def _floats(found: Lint) -> Answer:
    wide = [product for product in found.products[:-1] if "Float" in product.writes.split(", ")]
    return Answer("floats", not wide, f"{len(wide)} of {len(found.products)} products write FP32")


_ASK: tuple[Callable[[Lint], Answer], ...] = (_products, _channels, _kernels, _floats)


def _bytes(model: Model, engine: Engine) -> int:
    return model.size_bytes + bytes_moved(engine.layers)
