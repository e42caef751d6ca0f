"""Real architectures as ONNX files: exported once, with random weights from a seed, into a folder under `out/`.

    python3 -m benchmarks.zoo                  # exports all that are missing, a line each (20 minutes on two cores)
    python3 -m benchmarks.zoo resnet18 vit_b_16

Two exporters write the same network differently, and both kinds of files are met in practice, so the zoo has both:
the dynamo exporter with its own optimiser off, as `trtkit.load` uses it, and (names that end in `-ts`) the older
TorchScript exporter, whose graphs compute shapes at run time. Every file has a changeable batch.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trtkit
from benchmarks import zoo_networks as nets
from trtkit.model import Model

FOLDER = Path(os.environ.get("TRTKIT_ZOO") or Path(__file__).resolve().parents[1] / "out" / "zoo")
TORCHSCRIPT_OPSET = 17


@dataclass(frozen=True)
class Entry:
    """One file of the zoo. `make(small)` gives the network and its inputs; small ones are for tests."""

    name: str
    kind: str  # "cnn", "transformer" or "recurrent"
    make: Callable[[bool], nets.Made]
    exporter: str = "dynamo"


def path(name: str, small: bool = False, *, dynamic_batch: bool = True, folder: Path = FOLDER) -> Path:
    """The ONNX file of an entry of ZOO; exports it if it is not there yet (seconds to a minute)."""
    file = folder / f"{name}{'-small' if small else ''}{'' if dynamic_batch else '-static'}.onnx"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        export(ZOO[name], file, small, dynamic_batch)
    return file


def model(name: str, *, small: bool = True, dynamic_batch: bool = False, folder: Path = FOLDER) -> Model:
    """An entry of ZOO as a Model, no optimiser run; by default the small one, for a batch of 1."""
    return trtkit.load(path(name, small, dynamic_batch=dynamic_batch, folder=folder), name=name)


def export(entry: Entry, file: Path, small: bool = False, dynamic_batch: bool = True) -> None:
    """Write the ONNX file of an entry, whole or not at all."""
    import torch

    torch.manual_seed(0)
    module, inputs = entry.make(small)
    module.eval()
    nets.fill_zero_biases(module)
    part = file.with_suffix(f".{os.getpid()}.part")
    if entry.exporter == "dynamo":
        trtkit.save(trtkit.load(module, inputs, name=entry.name, dynamic_batch=dynamic_batch), part)
    else:
        torch.backends.mha.set_fastpath_enabled(False)  # one operator for a whole attention, which ONNX does not have
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                module, tuple(inputs.values()), str(part), dynamo=False, opset_version=TORCHSCRIPT_OPSET,
                input_names=list(inputs), dynamic_axes={name: {0: "batch"} for name in inputs} if dynamic_batch else {},
            )  # fmt: skip
    part.replace(file)


def _both(name: str, kind: str, make: Callable[[bool], nets.Made]) -> tuple[Entry, Entry]:
    return Entry(name, kind, make), Entry(f"{name}-ts", kind, make, "torchscript")


def _cnn(name: str, **options: Any) -> Entry:
    return Entry(name, "cnn", nets.vision(name, **options))


_ENTRIES = (
    *_both("resnet18", "cnn", nets.vision("resnet18")),
    _cnn("resnet50"),
    *_both("mobilenet_v2", "cnn", nets.vision("mobilenet_v2")),
    _cnn("mobilenet_v3_small"),
    _cnn("efficientnet_b0"),
    _cnn("vgg11_bn"),
    _cnn("densenet121"),
    _cnn("googlenet", aux_logits=False, init_weights=False),
    _cnn("squeezenet1_1"),
    *_both("shufflenet_v2_x1_0", "cnn", nets.vision("shufflenet_v2_x1_0")),
    _cnn("regnet_y_400mf"),
    _cnn("mnasnet1_0"),
    _cnn("convnext_tiny"),
    Entry("retinanet", "cnn", nets.detector),
    Entry("ssdlite-ts", "cnn", nets.ssdlite, "torchscript"),
    Entry("deeplab_mobilenet_v3", "cnn", nets.segmenter("deeplabv3_mobilenet_v3_large")),
    *_both("lraspp_mobilenet_v3", "cnn", nets.segmenter("lraspp_mobilenet_v3_large")),
    *_both("unet", "cnn", nets.unet),
    *_both("vit", "transformer", nets.vit),
    *_both("swin_t", "transformer", nets.vision("swin_t")),
    *_both("bert", "transformer", nets.bert("eager")),
    Entry("bert_sdpa", "transformer", nets.bert("sdpa")),
    Entry("gpt2", "transformer", nets.gpt),
    Entry("llama", "transformer", nets.llama),
    *_both("whisper_encoder", "transformer", nets.whisper),
    *_both("lstm", "recurrent", nets.lstm),
)
ZOO: dict[str, Entry] = {entry.name: entry for entry in _ENTRIES}
NETWORKS: dict[str, Entry] = {name: entry for name, entry in ZOO.items() if entry.exporter == "dynamo"}


def main(names: list[str]) -> int:
    failed = 0
    small = "--small" in names
    for name in [name for name in names if name != "--small"] or ZOO:
        begin = time.perf_counter()
        try:
            model = trtkit.load(path(name, small))
            print(f"{name:20s} {model.node_count:6d} nodes {time.perf_counter() - begin:6.1f} s", flush=True)
        except Exception as error:  # noqa: BLE001 - the other networks are wanted all the same
            failed += 1
            print(f"{name:20s} FAILED {type(error).__name__}: {str(error)[:200]}", flush=True)
    return failed


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
