"""Engine: what `build` returns and a file keeps: the plan, what it is, and what TensorRT made of the network."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from trtkit.engine.computable import Computable
from trtkit.engine.device import gpu
from trtkit.engine.fusion import FusionMap, fusion_map
from trtkit.engine.layers import Layer, LayerTensor
from trtkit.engine.session import CpuSession, Session
from trtkit.engine.trt import find, has_runtime_packages
from trtkit.errors import EngineError, extra
from trtkit.model import Model, write_atomically

if TYPE_CHECKING:
    import numpy as np

    from trtkit.engine.agreement import Agreement
    from trtkit.engine.pool import Pool
    from trtkit.engine.verify import Verification


class Engine:
    """A built TensorRT engine.

    Attributes:
        plan: the serialised engine, as TensorRT's runtime takes it.
        manifest: which TensorRT built it from what, with which profiles, precision and targets.
        layers: the engine's layers, see `trtkit.engine.layers.Layer`.
        model: the ONNX model or network it was built from; None when it was read from a file and no model was given.
        verification: what was compared before it was handed out; None when that was not asked for.
    """

    def __init__(
        self, plan: bytes, manifest: dict[str, Any], layers: list[Layer], model: Computable | None
    ) -> None:
        self.plan = plan
        self.manifest = manifest
        self.layers = layers
        self.model = model
        self.verification: Verification | None = None

    def __repr__(self) -> str:
        m = self.manifest
        kernels = sum(layer.launches for layer in self.layers if layer.profile == 0)
        return (
            f"Engine({m['model']!r}, {m['precision']}: {kernels} kernels, {self.size_bytes:,} bytes, built by "
            f"{m['tensorrt']} {m['version']} in {m['build_seconds']:.1f} s)"
        )

    @property
    def size_bytes(self) -> int:
        return len(self.plan)

    @property
    def build_seconds(self) -> float:
        return float(self.manifest["build_seconds"])

    @property
    def why_not_here(self) -> str:
        """Why this engine cannot run on this machine; empty when it can."""
        library, device, built = find(), gpu(), f"{self.manifest['tensorrt']} {self.manifest['version']}"
        if device is None:
            return "there is no GPU here"
        if library is None:
            return "no TensorRT is installed here"
        if str(library) != built:
            return f"it was built by {built}, and {library} is installed; a plan runs only on the version that built it"
        if not library.runs_on(device.compute_capability):
            return f"{library} does not run on the {device}"
        targets = [tuple(target) for target in self.manifest["compute_capabilities"]]
        if not library.is_rtx and self.manifest.get("built_on"):
            targets = [tuple(self.manifest["built_on"])]  # the full library tunes for the GPU that it finds
        if targets and device.compute_capability not in targets:
            named = ", ".join(f"{major}.{minor}" for major, minor in targets)
            return f"it was built for compute capability {named} only, and here is the {device}"
        if self.manifest.get("stripped"):
            return "its plan was stripped of its weights; refit(model) puts them back"
        if not has_runtime_packages():
            return f"PyCUDA and cuda-bindings are not installed ({extra('gpu')})"
        return ""

    @property
    def runs_here(self) -> bool:
        return not self.why_not_here

    def fusion_map(self) -> FusionMap:
        """Which ONNX node went into which kernel, and what became of the others.

        Raises:
            EngineError: the engine came from a file and its model was not given.
        """
        return fusion_map(self._onnx_model("draw its fusion map"), self.layers)

    def agreement(self) -> Agreement:
        """How far our fusion groups on its graph are the kernels that TensorRT made, see there.

        Raises:
            EngineError: the engine came from a file and its model was not given.
        """
        from trtkit.engine.agreement import agreement
        from trtkit.passes.groups import fuse_groups

        return agreement(fuse_groups(self._onnx_model("compare fusion groups")), self.layers)

    def open(self, device: str | None = None, **options: Any) -> Session:
        """A session that runs the engine on the GPU, or its graph in ONNX Runtime on the CPU.

        Args:
            device: "cuda", "cpu", or None for the GPU where it can run the engine, else the CPU.
            options: for the GPU, see `trtkit.engine.gpu.GpuSession`.

        Raises:
            EngineError: the engine cannot run there; says why.
        """
        if self.choose_device(device) == "cpu":
            return CpuSession(self._needs_model("run on the CPU"), self.manifest["profiles"])
        from trtkit.engine.gpu import GpuSession

        return GpuSession(self.plan, self.manifest["model"], **options)

    def open_pool(self, workers: int = 4, device: str | None = None, **options: Any) -> Pool:
        """A `trtkit.engine.pool.Pool`: several threads may run the engine at once; takes its arguments."""
        from trtkit.engine.pool import Pool

        return Pool(self, workers, device=device, **options)

    def choose_device(self, device: str | None) -> str:
        """Either "cuda" or "cpu", where `device` may leave it open. Raises EngineError when it cannot run there."""
        if device not in (None, "cuda", "cpu"):
            raise EngineError(f"No device {device!r}: it is 'cuda', 'cpu', or None for whichever can run the engine.")
        if device == "cuda" and not self.runs_here:
            raise EngineError(
                f"The engine of {self.manifest['model']!r} cannot run here: {self.why_not_here}. "
                "open('cpu') runs its graph on the CPU."
            )
        return "cuda" if device != "cpu" and self.runs_here else "cpu"

    def refit(self, weights: Model | Mapping[str, np.ndarray], *, verify: bool = True) -> Engine:
        """The same engine with other weights, or a stripped one with its weights, without building; see
        `trtkit.engine.refit.refit`.

        Raises:
            EngineError: it was not built with `refittable` or `strip`, or the weights do not fit it.
            MissingError: no GPU is here.
        """
        from trtkit.engine.refit import refit

        return refit(self, weights, verify=verify)

    def _onnx_model(self, purpose: str) -> Model:
        model = self._needs_model(purpose)
        if not isinstance(model, Model):
            raise EngineError(
                f"To {purpose}, an engine must come from an ONNX graph; this one was written layer by layer. "
                "Its layers' onnx_nodes name the framework's layers that went into each."
            )
        return model

    def _needs_model(self, purpose: str) -> Computable:
        if self.model is None:
            raise EngineError(
                f"To {purpose}, this engine needs the graph it was built from: "
                "trtkit.open_engine(path, model=trtkit.load('that.onnx'))."
            )
        return self.model

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the plan to `path`, as any TensorRT tool reads it, and its manifest with the layers to `path` +
        ".json".

        Whenever it is interrupted, the files that lie there are an engine: the old one or the new one.

        Raises:
            EngineError: the folder does not exist, or cannot be written; a full disk, for one.
        """
        path = Path(path)
        if path.is_dir():
            raise EngineError(f"Cannot save the engine to {path}: that is a folder. Name a file in it.")
        if not path.parent.is_dir():
            raise EngineError(
                f"Cannot save the engine to {path}: the folder {path.parent} does not exist. Make it first."
            )
        staged = _staged_path(path)
        try:
            write_atomically(staged, _manifest_bytes(self))  # from here on either plan finds its manifest
            try:
                write_atomically(path, self.plan)
            except BaseException:
                staged.unlink(missing_ok=True)
                raise
            os.replace(staged, _manifest_path(path))
        except OSError as error:
            raise EngineError(
                f"Cannot save the engine to {path}: {error.strerror or error}. What lay there before is untouched."
            ) from error
        return path


def open_engine(path: str | os.PathLike[str], model: Computable | None = None) -> Engine:
    """Read an engine that `Engine.save` wrote.

    Args:
        model: the graph it was built from, for `fusion_map` and to run without a GPU.

    Raises:
        EngineError: a file is missing or damaged, another TensorRT built it, a newer trtkit wrote it, or `model` is not
        the one it was built from.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"No such engine: {path}.")
    plan = path.read_bytes()
    facts = _facts_of(path, hashlib.sha256(plan).hexdigest())
    manifest = facts["manifest"]
    library = find()
    built = (manifest["tensorrt"], manifest["version"])
    if library is not None and built != (library.name, library.version):
        raise EngineError(
            f"{path} was built by {built[0]} {built[1]}, and {library} is installed. TensorRT runs only plans of "
            "its own version: build it again from its model, or install that version."
        )
    if model is not None and hashlib.sha256(model.to_bytes()).hexdigest() != manifest["model_sha256"]:
        raise EngineError(
            f"{path} was built from another model than {model.name!r}: their contents differ. Give the model it is "
            f"from (it was called {manifest['model']!r}), after the same steps."
        )
    return Engine(plan, manifest, facts["layers"], model)


FORMAT = 2  # of the manifest: 1 had neither this number nor a checksum
# What an Engine reads from its manifest later on.
_FIELDS = (
    "tensorrt",
    "version",
    "model",
    "model_sha256",
    "precision",
    "profiles",
    "compute_capabilities",
    "build_seconds",
    "plan_sha256",
)


def _manifest_path(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _staged_path(path: Path) -> Path:
    """Where the manifest waits until its plan lies there too."""
    return path.with_name(path.name + ".json.new")


def _manifest_bytes(engine: Engine) -> bytes:
    facts = {"format": FORMAT, "manifest": engine.manifest, "layers": [layer._asdict() for layer in engine.layers]}
    return json.dumps({**facts, "sha256": _checksum(facts)}, indent=1).encode()


def _checksum(facts: Mapping[str, Any]) -> str:
    """Of the manifest and the layers as JSON says them, whatever the order and the white space."""
    said = json.dumps([facts["manifest"], facts["layers"]], sort_keys=True)
    return hashlib.sha256(said.encode()).hexdigest()


def _facts_of(path: Path, plan_sha256: str) -> dict[str, Any]:
    """The manifest of the plan with this checksum: where `save` was killed half-way, it is the one that waits."""
    staged = _staged_path(path)
    for file in (_manifest_path(path), *([staged] if staged.is_file() else [])):
        facts = _read_manifest(file, path)
        if facts["manifest"]["plan_sha256"] == plan_sha256:
            return facts
    raise EngineError(
        f"{path} is not what was saved: its content does not match its manifest. It was cut off, changed, or "
        "another engine was put in its place; build it again."
    )


def _read_manifest(file: Path, path: Path) -> dict[str, Any]:
    if not file.is_file():
        raise EngineError(
            f"{path} has no manifest beside it ({file.name}), so nobody can say which TensorRT built it from "
            "what. Copy both files, or build the engine again."
        )
    try:
        facts = json.loads(file.read_text())
        format_ = facts.get("format", 1)
        if isinstance(format_, int) and format_ > FORMAT:
            raise EngineError(
                f"{file} has format {format_} and this trtkit reads {FORMAT} and older: a newer trtkit wrote it. "
                "Update trtkit, or build the engine again."
            )
        if (format_ != 1 or "sha256" in facts) and facts["sha256"] != _checksum(facts):
            raise ValueError("its checksum does not match")
        facts["layers"] = [_layer(entry) for entry in facts["layers"]]
        missing = [field for field in _FIELDS if field not in facts["manifest"]]
        if missing:
            raise KeyError(*missing)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EngineError(f"{file} is damaged ({error!r}). Build the engine again.") from error
    return cast(dict[str, Any], facts)


def _layer(entry: dict[str, Any]) -> Layer:
    tensors = {
        side: tuple(LayerTensor(n, tuple(s), d, f) for n, s, d, f in entry[side]) for side in ("inputs", "outputs")
    }
    return Layer(**{**entry, **tensors, "onnx_nodes": tuple(entry["onnx_nodes"])})
