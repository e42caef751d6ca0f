"""One engine's layers told twice: by the build log, which needs no GPU, and by the inspector, which does."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trtkit
from trtkit.engine import layers
from trtkit.engine.shapes import profiles_for

if TYPE_CHECKING:
    from benchmarks.contenders import Runner, Setting


def run(runner: Runner, setting: Setting, path: Path, say: Callable[[str], None]) -> None:
    """Write both lists, raw and parsed, and say in how many layers they differ."""
    from trtkit.engine import child

    model = runner.graph(setting.network, "half" if setting.precision == "fp16" else "fp32")
    shape = tuple(setting.network.inputs(setting.batch, 1, "fp32", "", "cpu")[0].shape)
    profiles = profiles_for(model, {model.inputs[0].name: shape})
    with tempfile.TemporaryDirectory() as folder:
        file = trtkit.save(model, Path(folder) / "model.onnx")
        plan, result = child.build_plan(str(file), {"profiles": profiles}, lambda phase, step, steps: None)
    if plan is None:
        raise RuntimeError(f"the build failed: {result['errors']}")
    messages = list(child._log.messages) if child._log else []  # the log of the build just done
    told: dict[str, Any] = {"log": layers.from_log(messages)}
    if result["layers_from"] == "inspector":
        told["inspector"] = layers.from_inspector(result["layers"])
    raw = {"log": [m for m in messages if m.startswith("Layers:")], "inspector": result["layers"]}
    parsed = {source: [layer._asdict() for layer in found] for source, found in told.items()}
    path.write_text(json.dumps({"key": setting.key, "raw": raw, "parsed": parsed}, indent=1))
    counts = ", ".join(f"{len(found)} layers from the {source}" for source, found in told.items())
    say(f"inspector: {counts}{_difference(told)}")


def _difference(told: dict[str, Any]) -> str:
    if len(told) < 2:
        return ""
    pairs = list(zip(told["log"], told["inspector"], strict=False))
    fields = {f: sum(getattr(a, f) != getattr(b, f) for a, b in pairs) for f in layers.Layer._fields}
    unequal = {field: count for field, count in fields.items() if count}
    return f"; differing fields: {unequal}" if unequal else "; all alike"
