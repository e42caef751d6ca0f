"""The course's trained networks, each with real data to calibrate on, other data to judge by, and a score.

Their weights and data are in datasets/NAME, with a card that says where they come from; trtkit/course/recipes/NAME.py
trained them. A network is loaded as an ONNX graph as its exporter wrote it: nobody has optimised it yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

import trtkit
from trtkit.course import nets, photos
from trtkit.course.digits import digits
from trtkit.course.paths import dataset
from trtkit.errors import DataError
from trtkit.model import Model

Batch = dict[str, np.ndarray]
BATCH = 32


@dataclass(frozen=True)
class Trained:
    """A trained network with its data.

    Attributes:
        kind: "vision", "text" or "audio".
        model: float32, with a changeable batch size.
        calibration: batches by input name; never used to score.
        test: batches to score on.
        score: from the outputs of each test batch, in their order, to a number from 0 to 1; higher is better.
        metric: what the score is, e.g. "accuracy".
    """

    name: str
    kind: str
    model: Model = field(repr=False)
    calibration: list[Batch] = field(repr=False)
    test: list[Batch] = field(repr=False)
    score: Callable[[list[Batch]], float] = field(repr=False)
    metric: str


def trained(name: str) -> Trained:
    """One of the networks in `TRAINED`; DataError for another name, or where its files are missing.

    >>> trained("digits")
    Trained(name='digits', kind='vision', metric='accuracy')
    >>> trained("digits").test[0]["x"].shape
    (32, 1, 8, 8)
    """
    if name not in _LOAD:
        raise DataError(f"There is no trained network {name!r}; there are {', '.join(TRAINED)}.")
    return _LOAD[name]()


def evaluate(task: Trained, run: Callable[[Batch], Batch]) -> float:
    """The score of `run`, which is anything that computes a batch's outputs: Model.run or a session's run.

    >>> task = trained("digits")
    >>> round(evaluate(task, task.model.run), 2), round(evaluate(task, trtkit.optimize(task.model).run), 2)
    (0.91, 0.91)
    """
    return task.score([run(batch) for batch in task.test])


def batches(inputs: Batch, size: int = BATCH) -> list[Batch]:
    """Arrays of equal length, by input name, cut into batches of `size`; the last may be smaller.

    >>> [batch["x"].tolist() for batch in batches({"x": np.arange(5)}, size=2)]
    [[0, 1], [2, 3], [4]]
    """
    count = len(next(iter(inputs.values())))
    return [{name: array[i : i + size] for name, array in inputs.items()} for i in range(0, count, size)]


def accuracy(answers: np.ndarray) -> Callable[[list[Batch]], float]:
    """A score: in how many rows the largest of a network's first output is at `answers`, (N,) integers.

    >>> accuracy(np.array([0, 1, 1]))([{"y": np.array([[2, 1], [0, 3]])}, {"y": np.array([[5, 4]])}]).__round__(3)
    0.667
    """

    def score(outputs: list[Batch]) -> float:
        return float(np.mean(_top1(outputs, len(answers)) == answers))

    return score


def agreement(model: Model, test: list[Batch]) -> Callable[[list[Batch]], float]:
    """A score where there are no labels: in how many rows the largest output is where `model`, in FP32, has it.

    `model` computes its answers the first time that anything is scored.
    """
    kept: list[np.ndarray] = []

    def score(outputs: list[Batch]) -> float:
        if not kept:
            kept.append(_top1([model.run(batch) for batch in test]))
        return float(np.mean(_top1(outputs, len(kept[0])) == kept[0]))

    return score


def _top1(outputs: Iterable[Batch], count: int | None = None) -> np.ndarray:
    """Where each row's first output is largest; DataError if there are not `count` rows, or a number is NaN."""
    logits = np.concatenate([next(iter(batch.values())) for batch in outputs] or [np.zeros((0, 1))])
    if count not in (None, len(logits)):
        raise DataError(f"The score wants the outputs of all {count} test samples in their order, got {len(logits)}. "
                        "Run every batch of .test, or call evaluate(task, run).")  # fmt: skip
    found: np.ndarray = np.where(np.isnan(logits).any(axis=-1), -1, logits.argmax(axis=-1))  # no answer is wrong
    return found


def _shipped(name: str) -> Model:
    return trtkit.load(dataset(f"{name}/model.onnx"), name=name)


def _mobilenet_v2() -> Trained:
    """torchvision's MobileNetV2 on random views of the photographs; the nine show too few classes for an accuracy."""
    import torch

    model = trtkit.load(nets.mobilenet_v2(), {"x": torch.zeros(2, 3, photos.SIZE, photos.SIZE)}, name="mobilenet_v2")
    calibration, test = (batches({"x": photos.views(count, seed)}, 18) for count, seed in ((108, 1), (180, 2)))
    return Trained(
        model.name, "vision", model, calibration, test, agreement(model, test), "agreement with FP32's top-1"
    )


def _digits() -> Trained:
    """A small CNN on scikit-learn's 8 x 8 digits; calibrated on a part of what it learnt from."""
    learn, judge = digits()
    return Trained(
        "digits", "vision", _shipped("digits"), batches({"x": learn.x[:512]}), batches({"x": judge.x}),
        accuracy(judge.y), "accuracy",
    )  # fmt: skip


_LOAD: dict[str, Callable[[], Trained]] = {"mobilenet_v2": _mobilenet_v2, "digits": _digits}
TRAINED: tuple[str, ...] = tuple(_LOAD)
