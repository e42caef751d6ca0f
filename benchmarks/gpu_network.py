"""Networks written with TensorRT's network API against their frameworks on a GPU: relative errors, and latency.

    python3 -m benchmarks.gpu_network --out out/gpu                         # everything, 3 minutes on one GPU
    python3 -m benchmarks.gpu_network --only torch-resnet18 keras-gru       # some of it
    python3 -m benchmarks.gpu_network --quick --device cpu --out out/q      # the same code on a CPU, small networks
    python3 -m benchmarks.gpu_network --table                               # the table from the records

Each network is held against what its framework computes in FP32 on the CPU: TensorRT's definition by the evaluator,
then engines without and with TF32, the worst of ten runs on batches 1 and 8. Beside it PyTorch eager and the engine of
the same module that came through ONNX, at batch 1. Keras needs the packages keras, absl-py, namex, h5py and optree;
where they are missing its networks are skipped, and the rest is measured.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("KERAS_BACKEND", "torch")
os.environ.setdefault("KERAS_TORCH_DEVICE", "cpu")  # the reference: Keras would go to the GPU by itself

import numpy as np
import torch
from torch import nn

import trtkit
from benchmarks.contenders import session_call
from benchmarks.gpu_step1 import guarded, open_log, say
from benchmarks.ptq import markdown
from trtkit.bench import record
from trtkit.bench.measure import Measurement, measure
from trtkit.bench.torch_peers import best_footing, eager, graphed
from trtkit.engine.engine import Engine
from trtkit.engine.network import Network, from_keras, from_torch
from trtkit.engine.verify import relative_error

log = logging.getLogger("gpu_network")

BATCHES = (1, 8)
RUNS = 10  # an engine on a GPU that TensorRT-RTX does not support may be right once and wrong the next time
TOLERANCE = {"fp32": 1e-4, "tf32": 5e-3}


class Source(NamedTuple):
    """A network and, for torch, the module with an example that it was written from."""

    network: Network
    module: nn.Module | None = None
    example: torch.Tensor | None = None


def randomised(module: nn.Module) -> nn.Module:
    """Statistics as training leaves them, and no head of zeros, which would hide every mistake before it."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean.normal_(0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
                part.weight.uniform_(0.5, 1.5, generator=generator)
            if isinstance(part, nn.Linear) and not part.weight.any():
                part.weight.normal_(0, 0.05, generator=generator)
    return module.eval()


class Words(nn.Module):
    """A classifier of words: embedding, recurrent layer, linear layer on the last step."""

    def __init__(self, kind: Callable[..., nn.Module], units: int, **options: Any) -> None:
        super().__init__()
        self.words = nn.Embedding(1000, units)
        self.read = kind(units, units, batch_first=True, **options)
        self.head = nn.Linear(units * (2 if options.get("bidirectional") else 1), 10)

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.head(self.read(self.words(text))[0][:, -1])


def of_torch(make: Callable[[bool], tuple[nn.Module, torch.Tensor]], quick: bool) -> Source:
    torch.manual_seed(0)
    module, example = make(quick)
    module = randomised(module)
    return Source(from_torch(module, example), module, example)


def vision(name: str, quick: bool) -> tuple[nn.Module, torch.Tensor]:
    import torchvision

    size = 224 if name == "vit_b_16" or not quick else 64
    return getattr(torchvision.models, name)(weights=None), torch.rand(1, 3, size, size)


def words(kind: Callable[..., nn.Module], quick: bool, **options: Any) -> tuple[nn.Module, torch.Tensor]:
    units, steps = (16, 8) if quick else (128, 50)
    return Words(kind, units, **options), torch.randint(0, 1000, (1, steps))


def encoder(quick: bool) -> tuple[nn.Module, torch.Tensor]:
    width, length, depth = (32, 8, 1) if quick else (256, 128, 4)
    layer = nn.TransformerEncoderLayer(width, 4, 4 * width, activation="gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False), torch.randn(1, length, width)


def unet(quick: bool) -> tuple[nn.Module, torch.Tensor]:
    size = 32 if quick else 128
    down = nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.LeakyReLU(), nn.Conv2d(32, 64, 3, 2, 1))
    up = nn.Sequential(nn.SiLU(), nn.ConvTranspose2d(64, 32, 2, 2), nn.Hardswish(), nn.ConvTranspose2d(32, 2, 4, 2, 1))
    return nn.Sequential(down, up), torch.rand(1, 3, size, size)


def of_keras(make: Callable[[bool], Any], quick: bool) -> Source:
    import keras

    keras.utils.set_random_seed(0)
    model = make(quick)
    rng = np.random.default_rng(0)
    for variable in model.weights:
        name = variable.path.rsplit("/", 1)[-1]
        if "variance" in name or "gamma" in name:
            variable.assign(rng.uniform(0.5, 1.5, variable.shape).astype(np.float32))
        elif len(variable.shape) == 1:
            variable.assign(rng.normal(0, 0.2, variable.shape).astype(np.float32))
    return Source(from_keras(model))


def application(name: str, quick: bool) -> Any:
    import keras

    size = 64 if quick else 224
    return getattr(keras.applications, name)(weights=None, input_shape=(size, size, 3))


def keras_words(kind: str, quick: bool) -> Any:
    import keras

    L = keras.layers
    units, steps = (16, 8) if quick else (128, 50)
    read = getattr(L, kind)(units, return_sequences=True)
    last = L.GRU(units, reset_after=False)
    return keras.Sequential([keras.Input((steps,), dtype="int32"), L.Embedding(1000, units), L.Bidirectional(read),
                             last, L.Dense(10, "softmax")])  # fmt: skip


def keras_encoder(quick: bool) -> Any:
    import keras

    L = keras.layers
    width, length, depth = (32, 8, 1) if quick else (256, 128, 4)
    x = y = keras.Input((length, width))
    for _ in range(depth):
        y = L.Add()([y, L.MultiHeadAttention(4, width // 4)(L.LayerNormalization()(y), y)])
        y = L.Add()([y, L.Dense(width)(L.Dense(4 * width, "gelu")(L.LayerNormalization()(y)))])
    return keras.Model(x, L.LayerNormalization()(y))


def keras_broken_loop(quick: bool) -> Any:
    """What the loops of the web are shown on: padding "same", strides, pooling, Flatten and Dense."""
    import keras

    L = keras.layers
    return keras.Sequential([keras.Input((28, 28, 1)), L.Conv2D(16, 3, 2, "same", activation="relu"),
                             L.Conv2D(32, (3, 5), padding="same"), L.ReLU(), L.MaxPooling2D(3, 2, "same"), L.Flatten(),
                             L.Dense(64, "relu"), L.Dense(10, "softmax")])  # fmt: skip


MAKE: dict[str, Callable[[bool], Source]] = {
    "torch-resnet18": partial(of_torch, partial(vision, "resnet18")),
    "keras-resnet50": partial(of_keras, partial(application, "ResNet50")),
    "torch-mobilenet-v2": partial(of_torch, partial(vision, "mobilenet_v2")),
    "keras-mobilenet-v2": partial(of_keras, partial(application, "MobileNetV2")),
    "keras-mobilenet-v3": partial(of_keras, partial(application, "MobileNetV3Small")),
    "keras-small": partial(of_keras, keras_broken_loop),
    "torch-encoder": partial(of_torch, encoder),
    "keras-encoder": partial(of_keras, keras_encoder),
    "torch-gru": partial(of_torch, partial(words, nn.GRU)),
    "torch-lstm": partial(of_torch, partial(words, nn.LSTM, bidirectional=True, num_layers=2)),
    "keras-gru": partial(of_keras, partial(keras_words, "GRU")),
    "keras-lstm": partial(of_keras, partial(keras_words, "LSTM")),
    "torch-unet": partial(of_torch, unet),
    "torch-shufflenet-v2": partial(of_torch, partial(vision, "shufflenet_v2_x1_0")),
    "torch-vit-b16": partial(of_torch, partial(vision, "vit_b_16")),
}


def build(network: Network, tf32: bool) -> Engine:
    """An engine for batches 1 to 8, tuned for 1; held against the framework by `run`, hence not verified here."""
    sizes = {info.name: [tuple(n if isinstance(n, int) else batch for n in info.shape) for batch in (1, 1, 8)]
             for info in network.inputs}  # fmt: skip
    return network.build(sizes, tf32=tf32, verify=False)


def worst_error(engine: Engine, samples: list[dict], expected: list[dict], device: str) -> float:
    """The largest relative error of any output of any run."""
    with engine.open(device) as session:
        return max(
            relative_error(got[name], want[name])
            for sample, want in zip(samples, expected, strict=True)
            for got in (session.run(sample) for _ in range(RUNS if device == "cuda" else 1))
            for name in want
        )


def timed(engine: Engine, samples: list[torch.Tensor], device: str, seconds: float) -> Measurement:
    with engine.open(device) as session:
        return measure(session_call(session, device), inputs=samples, device=device, min_seconds=seconds,
                       stream=getattr(session, "stream", None))  # fmt: skip


def run(key: str, device: str, quick: bool, command: str) -> None:
    """Errors and times of one network, as records that name it."""
    begin = time.perf_counter()
    source = MAKE[key](quick)
    network = source.network
    samples = [network.random_inputs(batch, seed=batch) for batch in BATCHES]
    expected = [network.origin.reference.run(sample) for sample in samples]
    definition = max(check.error for check in network.check(samples).checks)
    engines = {"fp32": build(network, tf32=False), "tf32": build(network, tf32=True)}
    errors = {form: worst_error(engine, samples, expected, device) for form, engine in engines.items()}
    name = network.inputs[0].name
    feeds = [torch.from_numpy(network.random_inputs(1, seed=n)[name]).to(device) for n in range(10)]
    seconds = 0.02 if quick else 0.2
    for form, engine in engines.items():
        extra = {
            "error": errors[form], "error_of_definition": definition, "tolerance": TOLERANCE[form],
            "right": bool(errors[form] <= TOLERANCE[form]), "network_layers": network.definition.num_layers,
            "kernels": sum(layer.launches for layer in engine.layers), "build_seconds": round(engine.build_seconds, 2),
            "engine_ran": device == "cuda",
        }  # fmt: skip
        record.save(f"network-{key}/{form}", timed(engine, feeds, device, seconds), command=command, extra=extra)
    if source.module is not None:
        peers(key, source, feeds, device, seconds, command)
    verdict = "right" if all(errors[form] <= TOLERANCE[form] for form in errors) else "WRONG"
    say(f"{key}: {verdict}; definition {definition:.1e}, FP32 {errors['fp32']:.1e}, TF32 {errors['tf32']:.1e} "
        f"({time.perf_counter() - begin:.0f} s)")  # fmt: skip


def peers(
    key: str, source: Source, feeds: list[torch.Tensor], device: str, seconds: float, command: str
) -> None:
    """PyTorch eager, and in a CUDA graph, and the engine of the same module by way of ONNX; each may fail alone."""
    assert source.module is not None
    module = source.module.to(device)
    calls = {"eager": lambda: eager(module)}
    if device == "cuda":
        calls["graphed"] = lambda: graphed(module, feeds[:1])
    for name, make in calls.items():
        try:
            found = measure(make(), inputs=feeds, device=device, min_seconds=seconds)
            record.save(f"network-{key}/{name}", found, command=command)
        except Exception:
            log.exception("%s/%s", key, name)
    try:
        model = trtkit.optimize(trtkit.load(source.module.cpu(), source.example))
        shapes = {info.name: feeds[0].shape for info in model.inputs}
        engine = trtkit.build(model, shapes, isolate=False, verify=False)
        kernels = sum(layer.launches for layer in engine.layers)
        found = timed(engine, feeds, device, seconds)
        record.save(f"network-{key}/onnx", found, command=command, extra={"kernels": kernels})
    except Exception:
        log.exception("%s/onnx", key)


def table() -> str:
    """Errors, kernels and milliseconds of every network with a record."""
    rows = []
    for key in MAKE:
        if f"network-{key}" not in set(record.keys()):
            continue
        found = record.load(f"network-{key}")
        extra = found["tf32"].extra
        times = [f"{found[one].median_ms:.3f}" if one in found else "–" for one in ("tf32", "onnx", "eager", "graphed")]
        errors = [extra["error_of_definition"], found["fp32"].extra["error"], extra["error"]]
        rows.append([key, *(f"{one:.1e}" for one in errors), f"{extra['network_layers']} → {extra['kernels']}", *times])
    return markdown(["network", "definition", "FP32", "TF32", "layers → kernels", "network API, ms", "through ONNX, ms",
                     "eager, ms", "CUDA graph, ms"], rows)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_network", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, few samples: does the script work?")
    parser.add_argument("--only", nargs="+", choices=list(MAKE), default=list(MAKE), metavar="NETWORK")
    parser.add_argument("--budget", type=float, default=230, help="seconds after which no further network is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_network"), help="folder for the log and the rest")
    parser.add_argument("--table", action="store_true", help="print the table from the records, run nothing")
    options = parser.parse_args(argv)
    if options.table:
        print(table())
        return 0
    open_log(options.out)
    best_footing()
    words_ = ["python3 -m benchmarks.gpu_network", *(["--quick"] if options.quick else [])]
    command = " ".join([*words_, *(["--device cpu"] if options.device == "cpu" else [])])
    begin, failed = time.perf_counter(), []
    missing = {kind for kind, package in (("keras", "keras"), ("torch", "torchvision")) if not find_spec(package)}
    for key in options.only:
        if key.split("-")[0] in missing and (key.startswith("keras") or "net" in key or "vit" in key):
            say(f"SKIPPED {key}: {'Keras' if key.startswith('keras') else 'torchvision'} is not installed")
        elif time.perf_counter() - begin > options.budget:
            say(f"SKIPPED {key}: the budget of {options.budget:.0f} s is spent")
        elif not guarded(key, partial(run, key, options.device, options.quick, command), options.out):
            failed.append(key)
    say(table())
    say(f"done in {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
