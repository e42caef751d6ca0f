"""A model repository for NVIDIA's Triton Inference Server: models and engines, batches, pipelines."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from trtkit.engine.engine import Engine
from trtkit.engine.pipeline import Tensor, ensemble_config, tensors_of
from trtkit.errors import EngineError, ModelError
from trtkit.model import Model, save

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU")
Labels = Mapping[str | tuple[str, str], Sequence[str]]


class Batching(NamedTuple):
    """How Triton puts single requests together."""

    preferred: tuple[int, ...] = ()  # batch sizes it tries to reach; the one an engine was tuned for, for instance
    max_queue_delay_us: int = 100  # how long a request may wait for others, in microseconds


class Instances(NamedTuple):
    """How many copies of each model run side by side, and where."""

    copies: int = 1
    kind: str = "KIND_AUTO"  # or "KIND_GPU", "KIND_CPU"
    gpus: tuple[int, ...] = ()


class _Entry(NamedTuple):
    """One model of the repository, in the making."""

    name: str
    what: Engine | Model
    max_batch: int
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    @property
    def as_plan(self) -> bool:
        """Triton's tensorrt backend runs plans of the full library; those of TensorRT-RTX nobody there can open."""
        return isinstance(self.what, Engine) and self.what.manifest["tensorrt"] == "TensorRT"


def write_repository(
    folder: str | os.PathLike[str],
    models: Mapping[str, Engine | Model] | Iterable[tuple[str, Engine | Model]],
    *,
    max_batch: int | None = None,
    batching: Batching | None = None,
    instances: Instances | None = None,
    labels: Labels | None = None,
    ensemble: Sequence[str] = (),
    ensemble_name: str = "ensemble",
) -> Path:
    """Write models as folders that `tritonserver --model-repository=FOLDER` serves: `NAME/config.pbtxt`, `NAME/1/...`.

    An engine of the full TensorRT is written as plan, for the server's tensorrt backend of the same version. A Model is
    written as ONNX for its onnxruntime backend, and so is **an engine of TensorRT-RTX**, by the graph it was built
    from: Triton has no backend for RTX's plans. All of it is there in the end, or nothing.

    Args:
        folder: the repository; made where it is missing. Models in it stay.
        models: by the names they are served under.
        max_batch: the largest batch Triton may form; 0 for none. By default an engine's own, 32 for a Model, and 0
            where a tensor has no changeable first dimension. Where it is not 0, dims leave the batch out.
        batching: single requests are put together; for models with a batch.
        instances: copies of each model.
        labels: {model: words} for its one output, or {(model, output): words}: requests may ask for the largest
            classes by name.
        ensemble: names of models that run one after the other in one request, say ["pre", "net", "post"]. What a
            model takes is what one before it gives under the same name; a model with one such input left takes the one
            output of the model before it; anything else, the ensemble takes itself.
        ensemble_name: what that is called.

    Raises:
        ModelError: two models of one name, a name that is no file name, a dtype that Triton does not have, batching
            without a batch, tensors of an ensemble that do not fit together.
        EngineError: a model of that name is there already, an engine of TensorRT-RTX without its graph, or the folder
            cannot be written.

    >>> import onnx, tempfile, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model(
    ...     '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'))
    >>> with tempfile.TemporaryDirectory() as place:
    ...     written = write_repository(place + "/models", {"relu": model}, max_batch=8, batching=Batching((4, 8)))
    ...     print((written / "relu" / "config.pbtxt").read_text())
    name: "relu"
    platform: "onnxruntime_onnx"
    backend: "onnxruntime"
    default_model_filename: "model.onnx"
    max_batch_size: 8
    input [ { name: "x" data_type: TYPE_FP32 dims: [ 4 ] } ]
    output [ { name: "y" data_type: TYPE_FP32 dims: [ 4 ] } ]
    dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }
    """
    folder = Path(folder)
    pairs = list(models.items() if isinstance(models, Mapping) else models)
    names = [name for name, _ in pairs] + ([ensemble_name] if ensemble else [])
    _check_names(folder, names)
    entries = {name: _entry(name, what, max_batch) for name, what in pairs}
    configs = {name: _config(entry, batching, instances, labels or {}) for name, entry in entries.items()}
    if ensemble:
        unknown = [name for name in ensemble if name not in entries]
        if unknown:
            raise ModelError(f"The ensemble names {unknown}, which is not among the models {list(entries)}.")
        steps = [(name, entries[name].max_batch, entries[name].inputs, entries[name].outputs) for name in ensemble]
        configs[ensemble_name] = ensemble_config(ensemble_name, steps)
    try:
        return _write(folder, entries, configs, labels or {})
    except OSError as error:
        raise EngineError(
            f"Cannot write the repository {folder}: {error.strerror or error}. It is as it was."
        ) from error


def _check_names(folder: Path, names: Sequence[str]) -> None:
    for name in names:
        if not _NAME.fullmatch(name):
            raise ModelError(f"{name!r} cannot be a folder of the repository: use letters, digits, '_', '-' and '.'.")
        if names.count(name) > 1:
            raise ModelError(f"Two models are called {name!r}; a repository has one of each name.")
        if (folder / name).exists():
            raise EngineError(f"{folder / name} is there already. Remove it, or choose another name.")


def _entry(name: str, what: Engine | Model, max_batch: int | None) -> _Entry:
    model = what.model if isinstance(what, Engine) else what
    if model is None:
        raise EngineError(
            f"The engine {name!r} came without the graph it was built from, where its tensors are described: "
            "trtkit.open_engine(path, model=trtkit.load('that.onnx'))."
        )
    infos = (*model.inputs, *model.outputs)
    lone = [str(info) for info in infos if not info.shape or not isinstance(info.shape[0], str)]
    if max_batch is None:
        largest = 32 if isinstance(what, Model) else _largest(what)
        max_batch = 0 if lone else largest
    elif max_batch < 0:
        raise ModelError(f"max_batch={max_batch}: it is a number of samples, or 0 for models without a batch.")
    elif max_batch and lone:
        raise ModelError(
            f"{name!r} cannot be batched: {lone[0]} has no changeable first dimension. Use max_batch=0, or export it "
            "with a changeable batch."
        )
    elif isinstance(what, Engine) and max_batch > (largest := _largest(what)):
        raise ModelError(f"The engine {name!r} takes batches of up to {largest}, so max_batch={max_batch} is too much.")
    batched = max_batch > 0
    return _Entry(name, what, max_batch, tensors_of(model.inputs, batched), tensors_of(model.outputs, batched))


def _largest(engine: Engine) -> int:
    """The largest batch that all inputs may have in one of the engine's profiles."""
    return max(min((three[2][0] for three in profile.values()), default=0) for profile in engine.manifest["profiles"])


def _config(entry: _Entry, batching: Batching | None, instances: Instances | None, labels: Labels) -> str:
    kind = ("tensorrt_plan", "tensorrt") if entry.as_plan else ("onnxruntime_onnx", "onnxruntime")
    named = {output: file for output, file, _ in _label_files(entry, labels)}
    lines = [
        f"name: {json.dumps(entry.name)}",
        f'platform: "{kind[0]}"',
        f'backend: "{kind[1]}"',
        f'default_model_filename: "{_file_of(entry)}"',
        f"max_batch_size: {entry.max_batch}",
        *(f"input [ {tensor.text()} ]" for tensor in entry.inputs),
        *(f"output [ {tensor.text(named.get(tensor.name, ''))} ]" for tensor in entry.outputs),
    ]
    if batching is not None:
        lines.append(_batching(entry, batching))
    if instances is not None or _profiles(entry) > 1:
        lines.append(_instances(entry, instances or Instances()))
    return "\n".join(lines) + "\n"


def _file_of(entry: _Entry) -> str:
    return "model.plan" if entry.as_plan else "model.onnx"


def _profiles(entry: _Entry) -> int:
    return len(entry.what.manifest["profiles"]) if isinstance(entry.what, Engine) and entry.as_plan else 1


def _batching(entry: _Entry, batching: Batching) -> str:
    if not entry.max_batch:
        raise ModelError(f"{entry.name!r} has no batch (max_batch is 0), so its requests cannot be put together.")
    odd = [size for size in batching.preferred if not 0 < size <= entry.max_batch]
    if odd or batching.max_queue_delay_us < 0:
        raise ModelError(f"{entry.name!r}: {batching} does not fit batches of 1 to {entry.max_batch}.")
    sizes = f"preferred_batch_size: [ {', '.join(map(str, batching.preferred))} ] " if batching.preferred else ""
    return f"dynamic_batching {{ {sizes}max_queue_delay_microseconds: {batching.max_queue_delay_us} }}"


def _instances(entry: _Entry, instances: Instances) -> str:
    if instances.copies < 1 or instances.kind not in _KINDS or (instances.gpus and instances.kind == "KIND_CPU"):
        raise ModelError(f"{instances} is no instance group: 1 copy or more, and a kind of {', '.join(_KINDS)}.")
    if entry.as_plan and instances.kind == "KIND_CPU":
        raise ModelError(f"{entry.name!r} is a TensorRT engine, which no CPU runs; give its Model instead.")
    gpus = f" gpus: [ {', '.join(map(str, instances.gpus))} ]" if instances.gpus else ""
    many = _profiles(entry)
    profiles = f" profile: [ {', '.join(json.dumps(str(number)) for number in range(many))} ]" if many > 1 else ""
    return f"instance_group [ {{ count: {instances.copies} kind: {instances.kind}{gpus}{profiles} }} ]"


def _label_files(entry: _Entry, labels: Labels) -> list[tuple[str, str, Sequence[str]]]:
    """Output, file name and words of the labels of one model."""
    found = []
    for key, words in labels.items():
        name, output = (key, None) if isinstance(key, str) else key
        if name != entry.name:
            continue
        outputs = [tensor.name for tensor in entry.outputs]
        if output is None and len(outputs) != 1:
            raise ModelError(f"{name!r} has {len(outputs)} outputs; say which the labels are of: ({name!r}, OUTPUT).")
        if output is not None and output not in outputs:
            raise ModelError(f"Labels are given for {output!r} of {name!r}, whose outputs are {outputs}.")
        if any("\n" in word for word in words):
            raise ModelError(f"A label of {name!r} has a line break in it; the file of labels has one a line.")
        found.append((output or outputs[0], f"labels_{outputs.index(output or outputs[0])}.txt", words))
    return found


def _write(folder: Path, entries: Mapping[str, _Entry], configs: Mapping[str, str], labels: Labels) -> Path:
    """Everything into a folder beside, then each model to its place; should that fail, those before it go again."""
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    stage = Path(tempfile.mkdtemp(dir=folder, prefix=".writing-"))
    placed: list[Path] = []
    try:
        for name, config in configs.items():
            _write_one(stage / name, config, entries.get(name), labels)
        for name in configs:
            os.rename(stage / name, folder / name)
            placed.append(folder / name)
    except BaseException:
        for place in placed:
            shutil.rmtree(place, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made and not any(folder.iterdir()):
            folder.rmdir()
    return folder


def _write_one(place: Path, config: str, entry: _Entry | None, labels: Labels) -> None:
    (place / "1").mkdir(parents=True)  # an ensemble has an empty version, too
    (place / "config.pbtxt").write_text(config)
    if entry is None:
        return
    for _, file, words in _label_files(entry, labels):
        (place / file).write_text("".join(f"{word}\n" for word in words))
    what: Any = entry.what
    if entry.as_plan:
        (place / "1" / "model.plan").write_bytes(what.plan)
    else:
        save(getattr(what, "model", what), place / "1" / "model.onnx")
