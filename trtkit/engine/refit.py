"""Refit: other weights for an engine that is built already, in milliseconds instead of a build.

A fine-tuned network has the layers of the one before and other numbers in them. An engine built with `refittable` takes
them; one built with `strip` holds no weights at all and is some kilobytes of file beside the ONNX model that has them.
"""

from __future__ import annotations

import difflib
import hashlib
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trtkit.engine.device import gpu
from trtkit.engine.engine import Engine
from trtkit.errors import EngineError, MissingError
from trtkit.model import Model, every_node, save


def refit(engine: Engine, weights: Model | Mapping[str, np.ndarray], *, verify: bool = True) -> Engine:
    """An engine with the same layers and other weights; `engine` stays as it is.

    Args:
        weights: a model with the same nodes, or some of the weights by the names of the ONNX initializers, each of the
            shape and dtype that it has in `engine.model`.
        verify: compare the outputs with the new model's, as `build` does.

    Raises:
        EngineError: the engine is not refittable, the weights do not fit it, or TensorRT refuses them.
        VerificationError: the refitted engine does not compute what the new model computes.
        MissingError: no GPU is here: TensorRT refits only engines that it can open.

    >>> import onnx, trtkit
    >>> text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
    >>> refit(trtkit.build(trtkit.load(onnx.parser.parse_model(text))), {})
    Traceback (most recent call last):
    trtkit.errors.EngineError: The engine of 'g' was built without `refittable` and `strip`, ...
    """
    name, manifest = engine.manifest["model"], engine.manifest
    if not (manifest.get("refittable") or manifest.get("stripped")):
        raise EngineError(
            f"The engine of {name!r} was built without `refittable` and `strip`, so its weights cannot be changed: "
            "trtkit.build(model, refittable=True)."
        )
    model = _checked(engine, weights)
    if gpu() is None:
        raise MissingError(
            f"To refit the engine of {name!r}, TensorRT must open it, and there is no GPU here. Refit it where it runs."
        )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trtkit-refit-") as folder:
        file = save(model, Path(folder) / "model.onnx")
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        plan = _refit(engine.plan, str(file), name, bool(manifest.get("refittable")))
    facts = {
        **manifest,
        "stripped": False,
        "model": model.name,
        "model_sha256": digest,
        "plan_sha256": hashlib.sha256(plan).hexdigest(),
        "refit_seconds": time.perf_counter() - start,
    }
    refitted = Engine(plan, facts, engine.layers, model)
    if verify:
        from trtkit.engine.verify import verify_engine

        refitted.verification = verify_engine(refitted)
    return refitted


def _refit(plan: bytes, onnx_file: str, name: str, refittable: bool) -> bytes:
    """The plan with the weights of an ONNX file; raises EngineError with TensorRT's own words."""
    from trtkit.engine.child import log
    from trtkit.engine.trt import trt

    logger = log()

    def refuse(what: str, more: list[str] | None = None) -> EngineError:
        words = "; ".join([*(more or []), *logger.errors][:4]) or "it gave no reason"
        return EngineError(f"TensorRT cannot refit the engine of {name!r}: {what}: {words}.")

    runtime = trt.Runtime(logger)
    opened = runtime.deserialize_cuda_engine(plan)
    if opened is None:
        raise refuse("it cannot open it")
    refitter = trt.Refitter(opened, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(onnx_file):
        raise refuse("the model does not fit", [parser.get_error(i).desc() for i in range(parser.num_errors)])
    if missing := list(refitter.get_missing_weights()):
        raise refuse(f"{len(missing)} weights are missing, such as {missing[0]!r}")
    if not refitter.refit_cuda_engine():
        raise refuse("it does not take the weights")
    config = opened.create_serialization_config()
    config.clear_flag(trt.SerializationFlag.EXCLUDE_WEIGHTS)  # set by itself where the plan was stripped
    if refittable and hasattr(trt.SerializationFlag, "INCLUDE_REFIT"):
        config.set_flag(trt.SerializationFlag.INCLUDE_REFIT)  # or it could not be refitted once more
    written = opened.serialize_with_config(config)
    if written is None:
        raise refuse("it cannot write the engine")
    return bytes(written)


def _checked(engine: Engine, weights: Model | Mapping[str, np.ndarray]) -> Model:
    """The model to refit with. Raises EngineError for a model of other layers, or a weight that does not fit."""
    if isinstance(weights, Model):
        if isinstance(engine.model, Model):
            _same_layers(engine.model, weights)
        model = weights
    else:
        if not isinstance(engine.model, Model):
            raise EngineError(
                f"The engine of {engine.manifest['model']!r} came without its model, so single weights have nothing "
                "to go with. Give the whole model, or open it with trtkit.open_engine(path, model=...)."
            )
        model = _with_weights(engine.model, weights)
    if not engine.manifest.get("refittable") and _digest(model) != engine.manifest["model_sha256"]:
        raise EngineError(
            f"The engine of {engine.manifest['model']!r} was stripped to be filled with the weights it was built with, "
            "and these are others. Build with refittable=True to change them."
        )
    return model


def _digest(model: Model) -> str:
    return hashlib.sha256(model.to_bytes()).hexdigest()


def _with_weights(model: Model, weights: Mapping[str, np.ndarray]) -> Model:
    """A copy of the model with some of its initializers replaced."""
    there = _initializers(model)
    for name, array in weights.items():
        if name not in there:
            near = difflib.get_close_matches(name, there, n=3)
            hint = f" Nearest: {', '.join(near)}." if near else ""
            raise EngineError(f"{model.name!r} has no weight {name!r}.{hint}")
        _check_weight(name, _kind(np.asarray(array)), _kind(there[name]))
    changed = model.copy()
    for name, array in weights.items():
        value = changed.ir.graph.initializers[name]
        value.const_value = ir.tensor(np.ascontiguousarray(array), name=name)
    return changed


def _same_layers(old: Model, new: Model) -> None:
    """Make sure that both have the same nodes and weights of the same shapes and dtypes."""
    nodes = [[(n.domain, n.op_type, *(v and v.name for v in n.inputs)) for n in every_node(m.ir.graph)]
             for m in (old, new)]  # fmt: skip
    if len(nodes[0]) != len(nodes[1]):
        raise EngineError(
            f"{new.name!r} has {len(nodes[1])} nodes and the engine's model {len(nodes[0])}: refitting changes "
            "weights, not layers. Build an engine from it."
        )
    for a, b in zip(*nodes, strict=True):
        if a != b:
            raise EngineError(f"{new.name!r} is another network than the engine's: where that has {a[1]} of "
                              f"{list(a[2:])}, it has {b[1]} of {list(b[2:])}. Build an engine from it.")  # fmt: skip
    one, other = _initializers(old), _initializers(new)
    for name in one:
        if name not in other:
            raise EngineError(f"{new.name!r} lacks the weight {name!r} of the engine's model.")
        _check_weight(name, _kind(other[name]), _kind(one[name]))


def _initializers(model: Model) -> dict[str, Any]:
    return {name: value.const_value for name, value in model.ir.graph.initializers.items()}


def _kind(tensor: Any) -> tuple[str, tuple[int, ...]]:
    dtype = tensor.dtype.numpy() if isinstance(tensor.dtype, ir.DataType) else tensor.dtype
    return np.dtype(dtype).name, tuple(int(d) for d in tensor.shape)


def _check_weight(name: str, got: tuple[str, tuple[int, ...]], wanted: tuple[str, tuple[int, ...]]) -> None:
    if got != wanted:
        raise EngineError(
            f"Weight {name!r}: the engine has {wanted[0]} {wanted[1]}, got {got[0]} {got[1]}. Refitting keeps shapes "
            "and dtypes."
        )
