"""One way to quantise a network, in a process of its own: seconds, memory, and the file it leaves.

`python3 -m benchmarks.ptq_child CONTENDER IN CALIBRATION OUT [TIMES]`, for `benchmarks.ptq`: when it is ready, for each
line that it is given, and at the end of its input it prints one JSON object. CALIBRATION is a folder with a file for
each batch, which is read when its turn comes, so that the data itself takes no memory; TIMES goes through it so often.

Imports nothing of trtkit but for its own contenders: NVIDIA ModelOpt may have to run in a Python without it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.metadata
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.resident import forget_peak, memory

Batches = Iterable[dict[str, np.ndarray]]


class Quantizer(NamedTuple):
    """What a contender does: `prepare` reads one ONNX file and writes another, `quantize` that and the data to a third.

    Attributes:
        packages: whose versions matter.
    """

    prepare: Callable[[str, str], None]
    quantize: Callable[[str, Batches, str], None]
    packages: tuple[str, ...]


def ours(how: Callable[..., Any]) -> Quantizer:
    import trtkit

    def prepare(source: str, target: str) -> None:
        trtkit.save(trtkit.optimize(trtkit.load(source)), target)

    def quantize(source: str, batches: Batches, target: str) -> None:
        trtkit.save(how(trtkit, trtkit.load(source), batches), target)

    return Quantizer(prepare, quantize, ("onnxruntime",))


def quantized(method: str | None, dtype: str = "int8") -> Quantizer:
    return ours(lambda trtkit, model, batches: trtkit.quantize(model, batches, method, dtype=dtype))


def low(precision: str) -> Quantizer:
    return ours(lambda trtkit, model, _: trtkit.autocast(model, precision))


def int4() -> Quantizer:
    """Weights of matrix products in 4 bits, blocks of 128, activation-aware."""
    return ours(lambda trtkit, model, batches: trtkit.quantize_weights(model, batches))


def onnxruntime(method: str) -> Quantizer:
    """`quantize_static` as its documentation has it, preprocessing first, with the options that TensorRT needs: zero
    points of 0, biases left in float."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    def prepare(source: str, target: str) -> None:
        try:
            quant_pre_process(source, target)
        except Exception:  # noqa: BLE001 - its symbolic shape inference fails on some graphs; it offers to skip it
            quant_pre_process(source, target, skip_symbolic_shape=True)

    def quantize(source: str, batches: Batches, target: str) -> None:
        quantize_static(
            source, target, _reader(batches), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod[method],
            extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
        )  # fmt: skip

    return Quantizer(prepare, quantize, ("onnxruntime",))


def modelopt(method: str, mode: str = "int8") -> Quantizer:
    """NVIDIA ModelOpt's ONNX PTQ, calibrated on the CPU; what is not quantised stays float32, as with the others.

    It has a mode for INT4, too, which without a GPU took 25 s for a product of 4,096 x 10: left out.
    """
    from modelopt.onnx.quantization import quantize as theirs

    def prepare(source: str, target: str) -> None:
        Path(target).write_bytes(Path(source).read_bytes())  # it prepares the graph inside of quantize

    def quantize(source: str, batches: Batches, target: str) -> None:
        theirs(
            source, mode, calibration_data_reader=_reader(batches), calibration_method=method,
            calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=target, log_level="ERROR", simplify=True,
        )  # fmt: skip

    return Quantizer(prepare, quantize, ("nvidia-modelopt", "onnxruntime-gpu", "onnxruntime", "onnx", "torch"))


CONTENDERS: dict[str, Callable[[], Quantizer]] = {
    "trtkit-fp16": lambda: low("fp16"),
    "trtkit-bf16": lambda: low("bf16"),
    **{f"trtkit-{method}": partial(quantized, method) for method in ("max", "percentile", "mse", "entropy")},
    "trtkit-fp8": lambda: quantized(None, "fp8"),
    "trtkit-int4": int4,
    **{f"onnxruntime-{method.lower()}": partial(onnxruntime, method) for method in ("MinMax", "Percentile", "Entropy")},
    "modelopt-max": lambda: modelopt("max"),
    "modelopt-entropy": lambda: modelopt("entropy"),
    "modelopt-fp8": lambda: modelopt("max", "fp8"),
}


def _reader(batches: Batches) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._batches, None)

        def rewind(self) -> None:
            self._batches = iter(batches)

        def get_first(self) -> dict[str, np.ndarray]:  # ModelOpt looks at shapes
            return next(iter(batches))

    return Reader()


class Files:
    """Batches from the files of a folder, in the order of their names, all of them `times` times."""

    def __init__(self, folder: str | Path, times: int = 1) -> None:
        self.files = sorted(Path(folder).glob("*.npz")) * times

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        for file in self.files:
            with np.load(file, allow_pickle=False) as arrays:
                yield dict(arrays)

    def __len__(self) -> int:
        return len(self.files)


def ready(contender: str) -> Quantizer:
    """The contender, its imports done, those of its first use too: a network of two products went through."""
    import onnx

    quantizer = CONTENDERS[contender]()
    with tempfile.TemporaryDirectory() as folder:
        tiny, middle, out = (str(Path(folder) / f"{name}.onnx") for name in ("tiny", "middle", "out"))
        onnx.save(tiny_network(), tiny)
        quantizer.prepare(tiny, middle)
        quantizer.quantize(middle, [{"x": np.ones((2, 4, 4, 4), np.float32)}] * 2, out)
    gc.collect()
    return quantizer


def tiny_network() -> Any:
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    shapes = {"w": (4, 4, 3, 3), "b": (4,), "v": (256, 4)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], "relu"),
        helper.make_node("Concat", ["r", "r", "r", "r"], ["t"], "concat", axis=1),
        helper.make_node("Flatten", ["t"], ["f"], "flatten"),
        helper.make_node("MatMul", ["f", "v"], ["y"], "product"),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4, 4, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])
    graph = helper.make_graph(nodes, "tiny", [x], [y], weights)
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])


def turn(quantizer: Quantizer, source: str, batches: Batches, target: str) -> dict[str, Any]:
    """File to new file, once: seconds and seconds of the processor, without those of preparing, which stand beside
    them, and bytes resident at most above those before."""
    prepared = target.replace(".onnx", ".prepared.onnx")
    for file in (prepared, target):
        Path(file).unlink(missing_ok=True)
    gc.collect()
    begin = time.perf_counter()
    quantizer.prepare(source, prepared)
    between = time.perf_counter()
    _release()
    forget_peak()
    before = memory("VmRSS")
    start, busy = time.perf_counter(), time.process_time()
    quantizer.quantize(prepared, batches, target)
    seconds, cpu = time.perf_counter() - start, time.process_time() - busy
    found = {"prepare": between - begin, "seconds": seconds, "cpu": cpu, "peak_bytes": memory("VmHWM") - before}
    _release()
    return found


def _release() -> None:
    """Give free memory back: what an earlier turn left lying about would hide how much this one takes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Of those that are installed."""
    found = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def main(contender: str, source: str, calibration: str, target: str, times: str = "1") -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # ONNX Runtime's tool recommends the preprocessing that it had
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # what libraries print, from C++ too, shall not come between the answers
        quantizer = ready(contender)
        batches = Files(calibration, int(times))
        print("{}", file=answers, flush=True)
        for _ in sys.stdin:
            print(json.dumps(turn(quantizer, source, batches, target)), file=answers, flush=True)
        print(json.dumps({"versions": versions(quantizer.packages)}), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
