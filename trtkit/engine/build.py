"""build: from a Model to a verified TensorRT engine."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import trtkit
from trtkit.engine import layers as layer_list
from trtkit.engine.computable import Computable
from trtkit.engine.device import gpu
from trtkit.engine.engine import Engine
from trtkit.engine.shapes import Shapes, profiles_for
from trtkit.engine.trt import require
from trtkit.engine.verify import verify_engine
from trtkit.errors import BuildError, MissingError
from trtkit.model import Model, save

if TYPE_CHECKING:
    from trtkit.engine.network import Network

Progress: TypeAlias = Callable[[str, int, int], None]


def build(
    model: Model,
    shapes: Shapes | None = None,
    *,
    data: Iterable[Any] | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    progress: Progress | None = None,
    workspace_bytes: int | None = None,
    tf32: bool = True,
    compute_capabilities: Sequence[tuple[int, int]] | Literal["current"] = (),
    refittable: bool = False,
    strip: bool = False,
    isolate: bool = True,
    timeout_s: float = 1800,
) -> Engine:
    """Build a TensorRT engine and hand it out only when it computes what it should.

    Args:
        model: precision is what its graph says (`autocast`, `quantize`); TensorRT's networks are strongly typed.
        shapes: for inputs whose dimensions may change, by name: one shape, or the least, best and largest. A list of
        such
            dicts makes several optimization profiles. By default a changeable batch runs from 1 to 32, tuned for 8.
        data: real inputs (dicts or arrays) to verify on; by default seeded random ones.
        verify: compare with the reference before handing the engine out. `False` is the way to get it anyway.
        tolerance: largest relative error ‖got - expected‖ / ‖expected‖ to accept; by default what its precision allows.
        progress: called as progress(phase, step, steps) with the phases of TensorRT's builder.
        workspace_bytes: scratch memory that a kernel may use.
        tf32: let FP32 matrix products round their factors to TF32's 10 bits, as tensor cores need.
        compute_capabilities: GPUs to build for, e.g. [(8, 9), (12, 0)], or "current" for the one that is here
            (TensorRT-RTX; by default all that it serves).
        refittable: let `Engine.refit` give it other weights later; its kernels may be a little slower for it.
        strip: leave the weights out of the plan, which is small then; `Engine.refit(model)` puts them back. Without
            `refittable` only these very weights.
        isolate: build in a child process, which an abort inside TensorRT cannot outlive while this one does.
        timeout_s: seconds after which a build in a child process is given up.

    Raises:
        BuildError: TensorRT refused; carries its own words and the ONNX node.
        VerificationError: the outputs are further from the reference than the tolerance.
        MissingError: no TensorRT is installed, or no GPU is here for `refittable` or `strip`.

    >>> import onnx
    >>> text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
    >>> engine = build(trtkit.load(onnx.parser.parse_model(text)))
    >>> [layer.onnx_nodes for layer in engine.layers if layer.onnx_nodes]
    [('Relu_0',)]
    """
    request = _request(model, shapes, workspace_bytes, tf32, compute_capabilities, refittable, strip)
    with tempfile.TemporaryDirectory(prefix="trtkit-build-") as name:
        folder = Path(name)
        onnx_file = save(model, folder / "model.onnx")
        request["onnx_file"] = str(onnx_file)
        digest = _sha256(onnx_file)
        plan, result = (_in_child if isolate else _in_process)(folder, request, progress, timeout_s)
    return _finish(plan, result, request, model, digest, verify, data, tolerance)


def build_from_network(
    network: Network,
    shapes: Shapes | None = None,
    *,
    data: Iterable[Any] | None = None,
    verify: bool = True,
    tolerance: float | None = None,
    progress: Progress | None = None,
    workspace_bytes: int | None = None,
    tf32: bool = True,
    compute_capabilities: Sequence[tuple[int, int]] | Literal["current"] = (),
) -> Engine:
    """`Network.build`: the same for a network that was written layer by layer, in this process."""
    from trtkit.engine.child import build_network, log

    request = _request(network, shapes, workspace_bytes, tf32, compute_capabilities)
    log()  # emptied: what it holds afterwards is about this build
    plan, result = build_network(network.builder, network.definition, request, progress or _tell_nobody)
    digest = hashlib.sha256(network.to_bytes()).hexdigest()
    return _finish(plan, result, request, network, digest, verify, data, tolerance)


def _request(
    model: Computable,
    shapes: Shapes | None,
    workspace_bytes: int | None,
    tf32: bool,
    compute_capabilities: Sequence[tuple[int, int]] | Literal["current"],
    refittable: bool = False,
    strip: bool = False,
) -> dict[str, Any]:
    """What the builder is asked for, as JSON takes it."""
    library, current = require(), compute_capabilities == "current"
    if (refittable or strip or current) and gpu() is None:
        raise MissingError(
            f"{library} builds engines that are refittable, stripped of their weights or for the current GPU only "
            "where a GPU is, and here is none. Leave that out, or build on the machine with the GPU."
        )
    return {
        "profiles": profiles_for(model, shapes),
        "workspace_bytes": workspace_bytes,
        "tf32": tf32,
        "compute_capabilities": "current" if current else [list(c) for c in compute_capabilities],
        "refittable": refittable,
        "stripped": strip,
    }


def _finish(
    plan: bytes | None,
    result: dict[str, Any],
    request: dict[str, Any],
    model: Computable,
    digest: str,
    verify: bool,
    data: Iterable[Any] | None,
    tolerance: float | None,
) -> Engine:
    """An engine of what the builder left, verified; or the error that says why there is none."""
    library, card = require(), gpu()
    here = request["compute_capabilities"] == "current"
    if plan is None:
        raise BuildError(_explain(result, model, str(library)), result["stage"])
    manifest = {
        "tensorrt": library.name,
        "version": library.version,
        "trtkit": trtkit.__version__,
        "model": model.name,
        "model_sha256": digest,
        "precision": model.precision,
        "profiles": request["profiles"],
        "tf32": request["tf32"],
        "compute_capabilities": [list(card.compute_capability)] if here and card else request["compute_capabilities"],
        "built_on": list(card.compute_capability) if card else None,
        "refittable": request["refittable"],
        "stripped": request["stripped"],
        "build_seconds": result["seconds"],
        "network_layers": result["network_layers"],
        "layers_from": result["layers_from"],
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
    }
    engine = Engine(plan, manifest, _read_layers(result), model)
    if verify:
        # what has no weights cannot be run
        whole = engine.refit(model, verify=False) if request["stripped"] and isinstance(model, Model) else engine
        engine.verification = verify_engine(whole, data, tolerance)
    return engine


def _in_process(folder: Path, request: dict[str, Any], progress: Progress | None, timeout_s: float) -> _Result:
    from trtkit.engine.child import build_plan

    return build_plan(request["onnx_file"], request, progress or _tell_nobody)


def _tell_nobody(phase: str, step: int, steps: int) -> None:
    pass


_Result: TypeAlias = tuple[bytes | None, dict[str, Any]]


def _in_child(folder: Path, request: dict[str, Any], progress: Progress | None, timeout_s: float) -> _Result:
    """Run `trtkit.engine.child` and read what it leaves; whatever happens to it, this process goes on."""
    (folder / "request.json").write_text(json.dumps(request))
    command = [sys.executable, "-m", "trtkit.engine.child", str(folder)]
    with (
        (folder / "stderr").open("w+") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True, env=child_environment()) as child,
    ):
        timer = threading.Timer(timeout_s, child.kill)
        timer.start()
        try:
            for line in child.stdout or ():
                if progress is not None and line.startswith("["):
                    progress(*json.loads(line))
            code = child.wait()
        except BaseException:  # Ctrl-C, or the caller's progress function raised: leave no builder behind
            child.kill()
            raise
        finally:
            timer.cancel()
        errors.seek(0)
        last_words = errors.read().strip().splitlines()[-5:]  # of a traceback the last lines say most
    if (folder / "result.json").is_file():
        plan = folder / "plan"
        return (plan.read_bytes() if plan.is_file() else None), json.loads((folder / "result.json").read_text())
    return None, {"errors": [_how_it_ended(code, timeout_s), *last_words], "stage": "crash"}


def child_environment() -> dict[str, str]:
    """The variables for a child process that has to find this trtkit."""
    root = str(Path(trtkit.__file__).resolve().parents[1])  # the child must find this trtkit, installed or not
    path = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{path}" if path else root}


def _how_it_ended(code: int, timeout_s: float) -> str:
    if code == -signal.SIGKILL:
        return f"the builder was killed: it ran into the limit of {timeout_s:g} s (timeout_s), or the memory ran out"
    if code < 0:
        return f"TensorRT ended its process ({signal.Signals(-code).name}) without a word; yours is unharmed"
    return f"the builder's process stopped with exit code {code}"


def _explain(result: Mapping[str, Any], model: Computable, library: str) -> str:
    doing = {
        "parse": "cannot parse",
        "target": "cannot build, for the GPUs asked for,",
        "profile": "refuses a shape of",
        "build": "cannot build",
        "crash": "crashed on",
    }
    # a target, a profile or a crash has no words of TensorRT's alone: what is said about it is ours at least in part
    whose = "In its own words" if result["stage"] in ("parse", "build") else "The reason"
    words = [w for w in dict.fromkeys(str(e).strip() for e in result["errors"]) if w][:6]
    lines = "\n".join(f"  {word}" for word in words) or "  (it said nothing)"
    return f"{library} {doing[result['stage']]} {model.name!r} ({model.precision}). {whose}:\n{lines}"


def _read_layers(result: Mapping[str, Any]) -> list[layer_list.Layer]:
    if result["layers_from"] == "inspector":
        return layer_list.from_inspector(result["layers"])
    return layer_list.from_log(result["layers"])


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
