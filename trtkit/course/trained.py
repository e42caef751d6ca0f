"""The course's trained networks, each with real data to calibrate on, other data to judge by, and a score.

Their weights and data are in datasets/NAME, with a card that says where they come from; trtkit/course/recipes/NAME.py
trained them. A network is loaded as an ONNX graph as its exporter wrote it: nobody has optimised it yet.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

import trtkit
from trtkit.course import nets, photos
from trtkit.course.dates import shifted
from trtkit.course.digits import digits
from trtkit.course.nuclei import crops, lower_tiles
from trtkit.course.paths import dataset
from trtkit.course.signs import SIZE as SIGN_SIZE
from trtkit.course.signs import signs
from trtkit.errors import DataError
from trtkit.model import Model

if TYPE_CHECKING:
    import torch

Batch = dict[str, np.ndarray]
Examples = tuple[Batch, np.ndarray]  # inputs by name, and answers
BATCH = 32
CALIBRATION = 512


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


def network(name: str) -> torch.nn.Module:
    """One of the networks in `TRAINED` as a torch module with the same weights, in eval mode: to train it further.

    >>> import torch
    >>> network("digits")(torch.zeros(1, 1, 8, 8)).shape
    torch.Size([1, 10])
    """
    import torch

    task = trained(name)
    if name == "mobilenet_v2":
        return nets.mobilenet_v2()
    if name == "mobilenet_signs":
        return _mobilenet_signs_network()
    module: torch.nn.Module = import_module(f"trtkit.course.recipes.{name}").network()
    state = module.state_dict()  # batch norm's counters of batches are not in the graph, and not needed
    for key, value in task.model.ir.graph.initializers.items():
        if key in state and value.const_value is not None:
            state[key] = torch.from_numpy(value.const_value.numpy().copy())
    module.load_state_dict(state)
    return module.eval()


def learnt_from(name: str) -> Examples:
    """What a network learnt from: its inputs by name, N of each, and N answers; DataError if we do not have that.

    >>> inputs, answers = learnt_from("mnist")
    >>> inputs["x"].shape, answers.shape
    ((4000, 1, 28, 28), (4000,))
    """
    if name not in _LEARNT_FROM:
        raise DataError(f"We do not have what {name!r} learnt from, only that of {', '.join(_LEARNT_FROM)}.")
    return _LEARNT_FROM[name]()


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
    """A score: in how many rows the largest of a network's first output is at `answers`, (N,) or (N, K) integers.

    Of K answers in a row all have to be right.

    >>> accuracy(np.array([0, 1, 1]))([{"y": np.array([[2, 1], [0, 3]])}, {"y": np.array([[5, 4]])}]).__round__(3)
    0.667
    """

    def score(outputs: list[Batch]) -> float:
        right = _top1(outputs, len(answers)) == answers
        return float(np.mean(right.reshape(len(right), -1).all(axis=1)))

    return score


def intersection_over_union(masks: np.ndarray) -> Callable[[list[Batch]], float]:
    """A score of a mask: pixels that are in both, over pixels that are in either; logits above zero are inside.

    >>> score = intersection_over_union(np.array([[True, True, False]]))
    >>> score([{"y": np.array([[3.0, -1.0, 2.0]])}]).__round__(3)
    0.333
    """

    def score(outputs: list[Batch]) -> float:
        found = _first(outputs, len(masks)) > 0
        return float((found & masks).sum() / (found | masks).sum())

    return score


def agreement(model: Model, test: list[Batch]) -> Callable[[list[Batch]], float]:
    """A score where there are no labels: in how many rows the largest output is where `model`, in FP32, has it.

    `model` computes its answers the first time that anything is scored.
    """
    kept: list[np.ndarray] = []
    count = sum(len(next(iter(batch.values()))) for batch in test)

    def score(outputs: list[Batch]) -> float:
        if not kept:
            kept.append(_top1([model.run(batch) for batch in test], count))
        return float(np.mean(_top1(outputs, count) == kept[0]))

    return score


def _top1(outputs: list[Batch], count: int) -> np.ndarray:
    """Where each row's first output is largest, (N, ...); -1 if a number is NaN: no answer is a wrong one."""
    logits = _first(outputs, count)
    found: np.ndarray = np.where(np.isnan(logits).any(axis=-1), -1, logits.argmax(axis=-1))
    return found


def _first(outputs: list[Batch], count: int) -> np.ndarray:
    """The first output of all batches as one array; DataError if it has not `count` rows."""
    rows = sum(len(next(iter(batch.values()))) for batch in outputs)
    if rows != count:
        raise DataError(f"The score wants the outputs of all {count} test samples in their order, got {rows}. "
                        "Run every batch of .test, or call evaluate(task, run).")  # fmt: skip
    return np.concatenate([next(iter(batch.values())) for batch in outputs])


def _shipped(name: str) -> Model:
    return trtkit.load(dataset(f"{name}/model.onnx"), name=name)


def _arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(dataset(f"{name}/data.npz"), allow_pickle=False) as data:
        return dict(data)


def _mobilenet_v2() -> Trained:
    """torchvision's MobileNetV2 on random views of the photographs; the nine show too few classes for an accuracy."""
    import torch

    model = trtkit.load(nets.mobilenet_v2(), {"x": torch.zeros(2, 3, photos.SIZE, photos.SIZE)}, name="mobilenet_v2")
    calibration, test = (batches({"x": photos.views(count, seed)}, 18) for count, seed in ((108, 1), (180, 2)))
    return Trained(
        model.name, "vision", model, calibration, test, agreement(model, test), "agreement with FP32's top-1"
    )


def _digits() -> Trained:
    """A small CNN on scikit-learn's 8 x 8 digits."""
    return _classifier("digits", "vision", _small_digits(0), _small_digits(1))


def _mnist() -> Trained:
    """A small MobileNetV2 on MNIST."""
    return _classifier("mnist", "vision", _pictures("mnist", 255), _pictures("mnist", 255, "test"))


def _nuclei() -> Trained:
    """A U-Net that finds the nuclei of cells, judged on a part of the photograph that it has not seen."""
    data = _arrays("nuclei")
    calibration, (x, mask) = crops(data, 128, seed=0)[0], lower_tiles(data)
    return Trained(
        "nuclei", "vision", _shipped("nuclei"), batches({"x": calibration}, 16), batches({"x": x}, 8),
        intersection_over_union(mask > 0), "IoU",
    )  # fmt: skip


def _signs() -> Trained:
    """A small EfficientNet, with swish and squeeze-and-excitation, that tells 34 traffic signs apart."""
    return _classifier("signs", "vision", _street(510, seed=2), _street(1020, seed=3))


def _mobilenet_signs() -> Trained:
    """ImageNet's MobileNetV2 with a last layer that learnt the traffic signs; INT8 hurts its depthwise convolutions."""
    import torch

    size = 2 * SIGN_SIZE
    model = trtkit.load(_mobilenet_signs_network(), {"x": torch.zeros(2, 3, size, size)}, name="mobilenet_signs")
    (calibration, _), (x, y) = large_signs(204, seed=1), large_signs(510, seed=3)
    return Trained(model.name, "vision", model, batches(calibration, 17), batches(x, 17), accuracy(y), "accuracy")


def _mobilenet_signs_network() -> torch.nn.Module:
    from safetensors.torch import load_file

    net: torch.nn.Module = import_module("trtkit.course.recipes.mobilenet_signs").network()
    net.load_state_dict(load_file(dataset("mobilenet_signs/head.safetensors")), strict=False)
    return net.eval()


def large_signs(count: int, seed: int) -> Examples:
    """Traffic signs as MobileNetV2 wants its input: twice as large, (count, 3, 96, 96), and normalised.

    >>> large_signs(2, seed=0)[0]["x"].shape
    (2, 3, 96, 96)
    """
    pictures, answers = signs(count, seed)
    large = pictures.repeat(2, axis=2).repeat(2, axis=3)
    return {"x": np.stack([photos.normalise(picture.transpose(1, 2, 0)) for picture in large])}, answers


def _sentiment() -> Trained:
    """A small transformer that says whether a sentence about a film praises it."""
    return _classifier("sentiment", "text", _sentences(), _sentences("test"))


def _dates() -> Trained:
    """A transformer that reads a date in one of seven languages and writes it as ISO 8601 does.

    The decoder is given the right characters so far. A date that is all right in this way is also what it writes on its
    own: its first character is right, so the second is written behind the right one, and so on.
    """
    return _classifier("dates", "text", _written(), _written("test"), "exact match")


def _spoken_digits() -> Trained:
    """A DS-CNN that hears which digit was spoken, judged with voices that it never heard."""
    return _classifier(
        "spoken_digits", "audio", _pictures("spoken_digits", 100), _pictures("spoken_digits", 100, "test")
    )


def _classifier(name: str, kind: str, learnt: Examples, judged: Examples, metric: str = "accuracy") -> Trained:
    """A shipped network whose answers are labels, calibrated on the first 512 samples that it learnt from."""
    calibration = batches({key: array[:CALIBRATION] for key, array in learnt[0].items()})
    inputs, answers = judged
    return Trained(name, kind, _shipped(name), calibration, batches(inputs), accuracy(answers), metric)


def _small_digits(part: int = 0) -> Examples:
    return {"x": digits()[part].x}, digits()[part].y


def _pictures(name: str, unit: float, split: str = "train") -> Examples:
    """The stored pictures of one part of the data as floats, `unit` is one, and their answers."""
    data = _arrays(name)
    return {"x": data[f"{split}_x"] / np.float32(unit)}, data[f"{split}_y"]


def _sentences(split: str = "train") -> Examples:
    data = _arrays("sentiment")
    return {"ids": data[f"{split}_x"].astype(np.int64)}, data[f"{split}_y"]


def _written(split: str = "train") -> Examples:
    data = _arrays("dates")
    answers = data[f"{split}_y"].astype(np.int64)
    return {"read": data[f"{split}_x"].astype(np.int64), "written": shifted(answers)}, answers


def _tiles() -> Examples:
    x, mask = crops(_arrays("nuclei"), 480, seed=0)
    return {"x": x}, mask


def _street(count: int = 6000, seed: int = 1) -> Examples:
    pictures, answers = signs(count, seed)
    return {"x": pictures / np.float32(255)}, answers


_LOAD: dict[str, Callable[[], Trained]] = {
    "mobilenet_v2": _mobilenet_v2, "digits": _digits, "mnist": _mnist, "nuclei": _nuclei, "signs": _signs,
    "mobilenet_signs": _mobilenet_signs, "sentiment": _sentiment, "dates": _dates, "spoken_digits": _spoken_digits,
}  # fmt: skip
_LEARNT_FROM: dict[str, Callable[[], Examples]] = {
    "digits": _small_digits, "mnist": lambda: _pictures("mnist", 255), "nuclei": _tiles, "signs": _street,
    "mobilenet_signs": lambda: large_signs(3400, seed=1), "sentiment": _sentences, "dates": _written,
    "spoken_digits": lambda: _pictures("spoken_digits", 100),
}  # fmt: skip
TRAINED: tuple[str, ...] = tuple(_LOAD)
