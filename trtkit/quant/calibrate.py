"""Calibration: which range of a tensor the 255 codes of INT8 shall cover, found by watching real data pass.

All calibrators stream: what they keep of a tensor is one number, or one histogram, however many batches there are.
They work on |x|, since TensorRT's INT8 is symmetric: zero point 0 and codes -127 .. 127, so that scale = amax / 127.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from trtkit.errors import DataError
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model, write_atomically
from trtkit.quant.data import CalibrationProgress, stream
from trtkit.quant.moments import Moments, MomentsObserver, Place

INT8_MAX = 127
DEFAULT_METHOD = "percentile"
_ALL_ZERO = 1e-30  # a tensor whose largest |x| is less counts as zeros: its bins would be too narrow for float32


class Calibrator(Protocol):
    """Watches one tensor."""

    def observe(self, tensor: np.ndarray) -> None:
        """Take in the tensor of one batch, any shape, float."""

    def amax(self) -> float:
        """The |value| that the largest code shall stand for."""


class MaxCalibrator:
    """The largest |x| seen: nothing is ever clipped, and one outlier widens every step.

    >>> calibrator = MaxCalibrator()
    >>> calibrator.observe(np.array([0.5, -2.0]))
    >>> calibrator.amax()
    2.0
    """

    def __init__(self) -> None:
        self._amax = 0.0

    def observe(self, tensor: np.ndarray) -> None:
        self._amax = max(self._amax, float(tensor.max(initial=0)), -float(tensor.min(initial=0)))

    def amax(self) -> float:
        return self._amax


class Histogram:
    """Counts of |x| in equal bins over [0, top], in one pass.

    The first batch sets `top`. When a later one goes beyond it, neighbouring bins are merged until it fits, so `top`
    doubles: counts stay exact, and the widest bin is at most 2 * amax / bins.
    """

    def __init__(self, bins: int = 2048) -> None:
        self.counts = np.zeros(bins, np.int64)
        self.top = 0.0

    def observe(self, tensor: np.ndarray) -> None:
        size = np.abs(tensor, dtype=np.float32).ravel()
        largest = float(size.max(initial=0))
        bins = len(self.counts)
        if self.top == 0.0 and largest >= _ALL_ZERO:
            self.top = largest  # what came before was all zeros, which lie in the first bin for any top
        while largest > self.top > 0.0:
            self.counts = np.concatenate([self.counts.reshape(-1, 2).sum(axis=1), np.zeros(bins // 2, np.int64)])
            self.top *= 2
        width = self.top / bins or 1.0
        size *= np.float32(1 / width)
        index = size.astype(np.intp)  # what bincount would make of it otherwise
        self.counts += np.bincount(np.minimum(index, bins - 1, out=index), minlength=bins)

    @property
    def bin_width(self) -> float:
        return self.top / len(self.counts)


class PercentileCalibrator(Histogram):
    """The |x| below which `percent` percent of all values lie: a few outliers are clipped for finer steps.

    Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 5.

    >>> calibrator = PercentileCalibrator(99.0)
    >>> calibrator.observe(np.append(np.linspace(0, 1, 9999), 50.0))
    >>> round(calibrator.amax(), 1)
    1.0
    """

    def __init__(self, percent: float = 99.99, bins: int = 8192) -> None:
        super().__init__(bins)
        if not 0 < percent <= 100:
            raise ValueError(f"percent must lie in (0, 100], got {percent}")
        self.percent = percent

    def amax(self) -> float:
        below = np.cumsum(self.counts)
        return self.bin_width * (1 + int(np.searchsorted(below, below[-1] * self.percent / 100)))


class EntropyCalibrator(Histogram):
    """The threshold at which the quantised distribution tells us most of the original one (least KL divergence).

    Migacz 2017, 8-bit Inference with TensorRT (GTC): for every i from 128 to 2048 compare

        P = the first i bins, everything beyond added to the last of them (it would be clipped to it)
        Q = the first i bins merged into 128 levels, each level spread evenly over its bins that are not empty

    and keep the i with the smallest sum of P log(P / Q). As in NVIDIA's own implementation the first bin, which holds
    the exact zeros of a ReLU, counts like its neighbour. Among equals the i that clips least wins, then the narrowest:
    of 16 shades of grey both all values and one alone have a divergence of 0, since Q merges no two of them.

    Levels are i // 128 bins wide, but for the last, which takes what remains. So all levels but the last are the same
    for 128 neighbouring i, and the sum over a level's bins needs only its total and its number of bins not empty.

    >>> calibrator = EntropyCalibrator()
    >>> calibrator.observe(np.append(np.linspace(0, 1, 99999) ** 2, 50.0))
    >>> calibrator.amax() < 5
    True
    """

    levels = 128

    def divergence(self) -> np.ndarray:
        """KL divergence for i = levels .. number of bins that are in use, (candidates,) float64."""
        used = max(int(np.flatnonzero(self.counts).max(initial=0)) + 1, self.levels)
        counts = self.counts[:used].astype(np.float64)
        counts[0] = counts[1]
        below, filled_below = _running(counts), _running(counts > 0)
        total = below[-1]
        i = np.arange(self.levels, used + 1)
        start = (self.levels - 1) * (i // self.levels)  # of the last level
        kept, filled = below[i] - below[start], filled_below[i] - filled_below[start]
        beyond, last = total - below[i], counts[i - 1]
        only_clipped = (last == 0) & (beyond > 0)  # P is not zero in the last bin and Q is: smooth Q, or KL is infinite
        smoothed = kept + _SMOOTHING * only_clipped
        p_log_p = _running(_xlogx(counts))[i] - _xlogx(last) + _xlogx(last + beyond)
        full = np.array([_full_levels(below, filled_below, w, self.levels) for w in range(1, used // self.levels + 1)])
        p_log_q = full[i // self.levels - 1] + _times_log(kept + beyond, smoothed, filled + only_clipped)
        with np.errstate(divide="ignore", invalid="ignore"):
            p_log_q -= total * np.log(below[i] + _SMOOTHING * only_clipped)
            divergence = (p_log_p - p_log_q) / total - np.log(total)
        return np.where(np.isnan(divergence), np.inf, divergence)

    def amax(self) -> float:
        divergence = self.divergence()
        least = self.levels + np.flatnonzero(divergence <= divergence.min() + _EQUAL)
        kept = np.cumsum(self.counts)[least - 1]
        return self.bin_width * int(least[np.argmax(kept)])


class MseCalibrator(Histogram):
    """The |value| with the smallest mean squared error of rounding and clipping together.

    A finer step rounds less and clips more. The error of a candidate is summed over the histogram, each bin taken to
    lie in its middle, the first, which holds the zeros of a ReLU, at zero. Candidates lie 1 % of the largest |x| apart:
    the error is flat around its minimum. (Banner et al. 2019, Post Training 4-bit Quantization of Convolutional
    Networks, section 3, derive the minimum for bell-shaped distributions.)

    Args:
        levels: codes on each side of zero: 127 for INT8, 7 for INT4.

    >>> calibrator = MseCalibrator(levels=7)
    >>> calibrator.observe(np.append(np.linspace(-1, 1, 9999), 1.5))
    >>> round(calibrator.amax(), 2)  # with half a step more, 1.0
    0.93
    """

    candidates = 100

    def __init__(self, levels: int = INT8_MAX, bins: int = 4096) -> None:
        super().__init__(bins)
        self.levels = levels

    def errors(self) -> np.ndarray:
        """Sum of squared errors for an amax of 1 %, 2 % ... 100 % of the histogram's top, (candidates,) float64."""
        used = np.flatnonzero(self.counts)
        middle = (used + 0.5) * self.bin_width * (used > 0)
        steps = np.arange(1, self.candidates + 1)[:, None] * (self.top / self.candidates / self.levels)
        rounded = np.minimum(np.rint(middle / steps), self.levels) * steps
        errors: np.ndarray = (self.counts[used] * (middle - rounded) ** 2).sum(axis=1)
        return errors

    def amax(self) -> float:
        return 0.0 if self.top == 0.0 else self.top * (1 + int(np.argmin(self.errors()))) / self.candidates


_SMOOTHING = 1e-4  # of one value
_EQUAL = 1e-9  # divergences that differ by less differ by rounding


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2 ... values."""
    return np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])


def _xlogx(x: np.ndarray) -> np.ndarray:
    return x * np.log(np.where(x > 0, x, 1.0))


def _times_log(p: np.ndarray, total: np.ndarray, count: np.ndarray) -> np.ndarray:
    """p log(total / count), 0 where p is 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * np.log(total / count), 0.0)


def _full_levels(below: np.ndarray, filled_below: np.ndarray, width: int, levels: int) -> float:
    """The sum of P log(Q) over all levels but the last, Q not divided by its total yet."""
    edges = np.arange(levels) * width
    sums = np.diff(below[edges])
    return float(_times_log(sums, sums, np.diff(filled_below[edges])).sum())


METHODS: dict[str, Callable[[], Calibrator]] = {
    "max": MaxCalibrator,
    "percentile": PercentileCalibrator,
    "mse": MseCalibrator,
    "entropy": EntropyCalibrator,
}


@dataclass(frozen=True)
class Calibration(Mapping[str, float]):
    """Range of each tensor: a mapping from tensor name to amax.

    Attributes:
        moments: of some tensors, channel by channel, by name and axis of the channels; see `trtkit.quant.moments`.

    >>> calibration = Calibration({"x": 2.54}, "max", batches=3)
    >>> calibration.scale("x")
    0.02
    """

    ranges: dict[str, float]
    method: str
    batches: int
    moments: dict[Place, Moments] = field(default_factory=dict, repr=False)

    def __getitem__(self, name: str) -> float:
        return self.ranges[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.ranges)

    def __len__(self) -> int:
        return len(self.ranges)

    def scale(self, name: str, largest: float = INT8_MAX) -> float:
        """What the range is divided by so that its end is the `largest` code; 1.0 for a tensor of nothing but zeros."""
        return self.ranges[name] / largest if self.ranges[name] >= _ALL_ZERO else 1.0

    def save(self, path: str | Path) -> None:
        """Write as JSON, to be read by people and by `Calibration.load`."""
        moments = [{"tensor": name, "axis": axis, **each._asdict()} for (name, axis), each in self.moments.items()]
        content = {"ranges": self.ranges, "method": self.method, "batches": self.batches, "moments": moments}
        write_atomically(Path(path), (json.dumps(content, indent=2) + "\n").encode())

    @staticmethod
    def load(path: str | Path) -> Calibration:
        """Read what `save` wrote. Raises DataError if the file is something else."""
        try:
            content: Any = json.loads(Path(path).read_text())
            ranges = {str(name): float(amax) for name, amax in content["ranges"].items()}
            moments = {
                (str(each["tensor"]), int(each["axis"])): Moments(
                    tuple(map(float, each["mean"])), tuple(map(float, each["mean_square"]))
                )
                for each in content.get("moments", ())  # files from before there were any hold none
            }
            return Calibration(ranges, str(content["method"]), int(content["batches"]), moments)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is no calibration saved by trtkit: {error!r}") from error


def calibrate(
    model: Model,
    data: Iterable[Batch],
    tensors: Iterable[str],
    method: str | Callable[[], Calibrator] = DEFAULT_METHOD,
    progress: CalibrationProgress | None = None,
    *,
    moments: Iterable[Place] = (),
) -> Calibration:
    """Run the model over the data and find a range for each named tensor.

    Args:
        data: batches (arrays, or dicts by input name); read once, one batch in memory at a time.
        method: "max", "percentile", "mse", "entropy", or something that makes a `Calibrator`.
        progress: called after every batch with the number done and the number in all, if known.
        moments: tensors, with the axis of their channels, to gather moments of in the same pass.

    Raises:
        DataError: no data, a batch that does not fit, NaN or infinity in a tensor, or an unknown method.
    """
    if isinstance(method, str) and method not in METHODS:
        raise DataError(f"Unknown calibration method {method!r}; choose one of {', '.join(METHODS)}.")
    make = METHODS[method] if isinstance(method, str) else method
    watchers = {name: make() for name in tensors}
    observers = {place: MomentsObserver(place[1]) for place in moments}
    batches = 0
    for arrays in stream(Taps(model, dict.fromkeys([*watchers, *(name for name, _ in observers)])), data, progress):
        for name, watcher in watchers.items():
            watcher.observe(arrays[name])
        for (name, _), observer in observers.items():
            observer.observe(arrays[name])
        batches += 1
    ranges = {name: float(watcher.amax()) for name, watcher in watchers.items()}
    found = {place: observer.moments() for place, observer in observers.items()}
    return Calibration(ranges, method if isinstance(method, str) else make.__name__, batches, found)
