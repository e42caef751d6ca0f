"""Keras 3 models on the torch backend, where every Keras model is a torch module that PyTorch can export."""

from __future__ import annotations

import inspect
import os
import re
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trtkit.errors import MissingError, ModelError, extra
from trtkit.model import Model

if TYPE_CHECKING:
    import keras
    import onnx_ir as ir

SUFFIXES = (".keras", ".h5", ".hdf5")

# Older ones run code out of a file even in safe mode: CVE-2025-1550, CVE-2025-8747, CVE-2025-9905, CVE-2025-12060.
_SAFE_FILES = (3, 12)
_MAX_UNPACKED = 8_000_000_000  # bytes that a .keras archive may grow to


def from_keras(
    model: keras.Model, example_inputs: Any = None, *, name: str | None = None, dynamic_batch: bool = True
) -> Model:
    """Export a Keras 3 model: Sequential, functional or subclassed, as it predicts (training=False).

    Inputs keep the names and the layout they have in Keras: an image network takes (N, H, W, C).

    Args:
        example_inputs: arrays to call the model with, as one, a tuple, or a dict by input name. Needed only when the
            model does not say what it takes: a subclassed one, or one with unknown dimensions other than the batch.

    Raises:
        ModelError: Keras runs on another backend, the model is not built, or PyTorch cannot trace it.
        MissingError: PyTorch or onnxscript is not installed.
    """
    backend = load_keras().backend.backend()
    if backend != "torch":
        raise ModelError(
            f"Keras runs on its {backend} backend here, and trtkit exports through its torch backend. Set the "
            "environment variable KERAS_BACKEND=torch before Keras is first imported, and load the model again."
        )
    from trtkit.importers.torch import from_torch

    specs = input_specs(model)
    examples = _examples(model, specs, example_inputs)
    arguments = [f"{re.sub(r'[^0-9a-zA-Z_]', '_', key)}_{number}" for number, key in enumerate(examples)]
    module = _as_module(model, arguments)
    tensors = dict(zip(arguments, examples.values(), strict=True))
    loaded = from_torch(module, tensors, name=name or model.name, dynamic_batch=dynamic_batch)
    graph = loaded.ir.graph
    _rename(graph.inputs, list(examples), graph)
    _rename(graph.outputs, output_names(model), graph)
    return Model(loaded.ir, loaded.name)


def from_keras_file(
    path: Path, example_inputs: Any = None, *, name: str | None = None, dynamic_batch: bool = True
) -> Model:
    """Load a .keras or .h5 file in Keras's safe mode: a file that needs code of its own (a Lambda layer) is refused.

    Raises:
        ModelError: the file is damaged, too large, or not safe to load; or `from_keras` refuses the model.
        MissingError: Keras is not installed, or is too old to load a file of unknown origin safely.
    """
    keras = load_keras()
    version = tuple(int(part) for part in keras.__version__.split(".")[:2])
    if version < _SAFE_FILES:
        raise MissingError(
            f"Keras {keras.__version__} may run code that is hidden in a model file. Update it to "
            f"{'.'.join(map(str, _SAFE_FILES))} or newer: {extra('keras')}."
        )
    _check_archive(path)
    try:
        model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras, h5py and zipfile raise whatever they meet
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(f"Keras cannot load {path}: {reason}") from error
    return from_keras(model, example_inputs, name=name or path.stem, dynamic_batch=dynamic_batch)


def _check_archive(path: Path) -> None:
    """A .keras file is a zip archive: refuse one that is broken or would grow out of all proportion."""
    if path.suffix != ".keras":
        return
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(entry.file_size for entry in archive.infolist())
    except (zipfile.BadZipFile, OSError) as error:
        raise ModelError(f"{path} is not a Keras file, or is cut off: {error}. Save or download it again.") from error
    if total > _MAX_UNPACKED:
        raise ModelError(f"{path} would unpack to {total:,} bytes; the limit is {_MAX_UNPACKED:,}. It is refused.")


def is_keras(source: Any) -> bool:
    """Whether this is a Keras model; asks only when somebody imported Keras already."""
    keras = sys.modules.get("keras")
    return keras is not None and hasattr(keras, "Model") and isinstance(source, keras.Model)


def load_keras() -> Any:
    """Keras, on the torch backend if it is ours to choose."""
    if "keras" not in sys.modules:
        os.environ.setdefault("KERAS_BACKEND", "torch")
    try:
        import keras
    except ImportError as error:
        if (backend := os.environ.get("KERAS_BACKEND", "torch")) != "torch":
            raise MissingError(f"KERAS_BACKEND is {backend!r}; trtkit loads Keras models with 'torch'.") from error
        raise MissingError(f"Keras models need Keras 3 and PyTorch: {extra('keras')}.") from error
    return keras


def _flat(model: keras.Model, which: str) -> list[Any]:
    """The symbolic inputs or outputs of a functional model in order; empty where it is a subclassed one."""
    try:
        found = getattr(model, which, None)
    except (AttributeError, ValueError):  # what a Sequential says that was never built
        return []
    return list(load_keras().tree.flatten(found)) if found is not None else []


def output_names(model: keras.Model) -> list[str]:
    """What Keras calls the outputs; that of a Sequential is its last layer."""
    if isinstance(model, load_keras().Sequential):
        return [str(model.layers[-1].name)]
    return list(getattr(model, "output_names", []))


def input_specs(model: keras.Model) -> dict[str, tuple[tuple[int | None, ...], str]]:
    """Shape and dtype of every input by name, as far as the model says."""
    return {str(t.name): (tuple(t.shape), str(t.dtype)) for t in _flat(model, "inputs")}


def _examples(model: keras.Model, specs: dict[str, tuple[tuple[int | None, ...], str]], given: Any) -> dict[str, Any]:
    """Tensors to trace with, by input name: those given, else zeros of the shapes that the model states."""
    import torch

    if given is None:
        open_dims = [name for name, (shape, _) in specs.items() if None in shape[1:]]
        if not specs or open_dims:
            why = f"leaves dimensions of {open_dims} open" if open_dims else "does not say what it takes"
            raise ModelError(f"The Keras model {model.name!r} {why}: give example inputs, trtkit.load(model, array).")
        return {
            name: torch.zeros((2, *(int(d or 1) for d in shape[1:])), dtype=getattr(torch, dtype))
            for name, (shape, dtype) in specs.items()
        }
    if not isinstance(given, dict):
        values = given if isinstance(given, (tuple, list)) else (given,)
        names = list(specs) or ["x" if len(values) == 1 else f"x{i}" for i in range(len(values))]
        if len(names) != len(values):
            raise ModelError(f"The Keras model {model.name!r} takes {len(names)} inputs, {names}; got {len(values)}.")
        given = dict(zip(names, values, strict=True))
    if specs and sorted(given) != sorted(specs):
        raise ModelError(
            f"The Keras model {model.name!r} takes {sorted(specs)}, and examples came for {sorted(given)}."
        )
    return {key: torch.as_tensor(given[key]).to("cpu") for key in (specs or given)}


def _as_module(model: keras.Model, names: list[str]) -> Any:
    """A torch module around the model, whose `forward` has one argument an input: PyTorch's exporter names by them."""
    import torch

    structure = getattr(model, "input", None) if _flat(model, "inputs") else None  # a Sequential may have none
    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]

    class Keras(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: torch.Tensor, **named: torch.Tensor) -> Any:
            given = {**dict(zip(names, values, strict=False)), **named}
            ordered = [given[name] for name in names]
            if isinstance(structure, dict):
                return self.model(dict(zip(structure, ordered, strict=True)), training=False)
            return self.model(ordered[0] if len(ordered) == 1 else ordered, training=False)

    Keras.forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return Keras()


def _rename(values: Sequence[ir.Value], names: list[str], graph: ir.Graph) -> None:
    """Call a graph's inputs or outputs what Keras calls them, as far as these names are free."""
    taken = {out.name for node in graph.all_nodes() for out in node.outputs} | {v.name for v in graph.inputs}
    taken |= set(graph.initializers)
    for value, name in zip(values, names, strict=False):
        if name not in taken:
            taken.add(name)
            value.name = name
