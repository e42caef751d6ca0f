"""Several calibrators side by side on one run of a network, and data that has gone wrong: what lesson 07 measures."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from trtkit.course import photos
from trtkit.graph.taps import Batch, Taps
from trtkit.model import Model
from trtkit.quant.calibrate import INT8_MAX, METHODS, Calibration, Calibrator
from trtkit.quant.data import stream

Floats = NDArray[np.floating]


def race(
    model: Model,
    data: Iterable[Batch],
    tensors: Sequence[str],
    methods: Mapping[str, Callable[[], Calibrator]] = METHODS,
) -> dict[str, Calibration]:
    """What `calibrate` would find by each method, from a single run over the data: all watch the same activations.

    Raises:
        DataError: as `calibrate`.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) {y = Relu(x)}'''))
    >>> found = race(model, [np.float32([[1, -2]]), np.float32([[3, 0]])], ["x", "y"])
    >>> found["max"].ranges, found["max"].batches
    ({'x': 3.0, 'y': 3.0}, 2)
    """
    watchers = {method: {name: make() for name in tensors} for method, make in methods.items()}
    count = 0
    for arrays in stream(Taps(model, tensors), data):
        count += 1
        for each in watchers.values():
            for name, calibrator in each.items():
                calibrator.observe(arrays[name])
    return {
        method: Calibration({name: float(c.amax()) for name, c in each.items()}, method, count)
        for method, each in watchers.items()
    }


def through_int8(x: Floats, amax: float, most: int = INT8_MAX) -> Floats:
    """x rounded to `most` steps on each side of zero, the last at amax; what lies beyond becomes amax.

    >>> through_int8(np.array([0.2, 0.9, 7.0]), amax=3, most=3).tolist()
    [0.0, 1.0, 3.0]
    """
    step = amax / most
    rounded: Floats = np.clip(np.rint(x / step), -most, most) * step
    return rounded


def two_errors(x: Floats, amax: float, most: int = INT8_MAX) -> tuple[float, float]:
    """Sums of squared errors: of what was rounded, and of what was clipped.

    >>> two_errors(np.array([0.25, 5.0]), amax=3, most=3)
    (0.0625, 4.0)
    """
    error = (x.astype(np.float64) - through_int8(x, amax, most)) ** 2
    beyond = np.abs(x) > amax
    return float(error[~beyond].sum()), float(error[beyond].sum())


def as_pixels(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """What a file holds: normalised images (N, 3, H, W) as whole numbers from 0 to 255, float32 and never normalised.

    >>> as_pixels(photos.normalise(np.full((1, 1, 3), 255, np.uint8))[None]).ravel().tolist()
    [255.0, 255.0, 255.0]
    """
    return np.stack([photos.to_pixels(image).transpose(2, 0, 1) for image in images]).astype(np.float32)


def hot_pixels(images: Floats, count: int, value: float, seed: int = 0) -> Floats:
    """A copy of images (N, C, H, W) in which `count` pixels of the first one have a value that no pixel should have.

    >>> hot_pixels(np.zeros((2, 1, 4, 4), np.float32), 3, 9.0).sum(axis=(1, 2, 3)).tolist()
    [27.0, 0.0]
    """
    spoilt = images.copy()
    height, width = images.shape[2:]
    places = np.random.default_rng(seed).choice(height * width, count, replace=False)
    spoilt[0].reshape(images.shape[1], -1)[:, places] = value
    return spoilt


def our_ends(tensors: Mapping[str, Floats], make: Callable[[], Calibrator]) -> tuple[dict[str, float], float]:
    """The end of each tensor's range by a calibrator of its own, and the seconds of the processor that all took.

    >>> our_ends({"x": np.array([0.5, -2.0])}, METHODS["max"])[0]
    {'x': 2.0}
    """
    started = time.process_time()
    ends = {}
    for name, tensor in tensors.items():
        calibrator = make()
        calibrator.observe(tensor)
        ends[name] = float(calibrator.amax())
    return ends, time.process_time() - started


def onnxruntime_ends(
    tensors: Mapping[str, Floats], method: str, bins: int, levels: int = 128
) -> tuple[dict[str, float], float]:
    """As `our_ends`, by the collector that ONNX Runtime calibrates with.

    Args:
        method: "entropy" or "percentile" (of 99.99).
        bins: of its histogram, on both sides of zero; ONNX Runtime takes 128 for entropy, 2048 for percentile.
        levels: codes that entropy compares with, on both sides of zero; ONNX Runtime takes 128.

    >>> ends, _ = onnxruntime_ends({"x": np.linspace(-1, 1, 20001, dtype=np.float32)}, "percentile", 2048)
    >>> round(ends["x"], 2)
    1.0
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(method, True, bins, levels, 99.99, "same")
    started = time.process_time()
    with contextlib.redirect_stdout(io.StringIO()):  # it tells how many tensors it has done
        collector.collect({name: [tensor] for name, tensor in tensors.items()})
        found = collector.compute_collection_result()
    seconds = time.process_time() - started
    return {name: max(abs(float(low)), abs(float(high))) for name, (low, high, *_) in found.items()}, seconds
