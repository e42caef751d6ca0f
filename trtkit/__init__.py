"""trtkit: how TensorRT makes deep networks fast, as a toolkit whose every part can be read.

The verbs below are all there is at the top; each is imported when first used, so that `import trtkit` stays quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trtkit.bench.compare import compare
    from trtkit.compose.merge import merge
    from trtkit.compose.multi_head import multi_head
    from trtkit.compose.sklearn import append_sklearn
    from trtkit.compose.split import split
    from trtkit.compose.trunk import share_trunk
    from trtkit.engine.build import build
    from trtkit.engine.engine import open_engine
    from trtkit.engine.lint import lint
    from trtkit.importers import load
    from trtkit.model import save
    from trtkit.passes import optimize
    from trtkit.passes.fix_shapes import fix_shapes
    from trtkit.passes.low_latency import low_latency
    from trtkit.quant.autocast import autocast
    from trtkit.quant.qdq import quantize
    from trtkit.quant.smooth import smooth
    from trtkit.quant.weight_only import quantize_weights

__version__ = "0.1.0"
__all__ = [
    "append_sklearn",
    "autocast",
    "build",
    "compare",
    "fix_shapes",
    "lint",
    "load",
    "low_latency",
    "merge",
    "multi_head",
    "open_engine",
    "optimize",
    "quantize",
    "quantize_weights",
    "save",
    "share_trunk",
    "smooth",
    "split",
]

_HOME = {
    "load": "trtkit.importers",
    "save": "trtkit.model",
    "optimize": "trtkit.passes",
    "fix_shapes": "trtkit.passes.fix_shapes",
    "low_latency": "trtkit.passes.low_latency",
    "autocast": "trtkit.quant.autocast",
    "merge": "trtkit.compose.merge",
    "split": "trtkit.compose.split",
    "share_trunk": "trtkit.compose.trunk",
    "multi_head": "trtkit.compose.multi_head",
    "append_sklearn": "trtkit.compose.sklearn",
    "quantize": "trtkit.quant.qdq",
    "quantize_weights": "trtkit.quant.weight_only",
    "smooth": "trtkit.quant.smooth",
    "build": "trtkit.engine.build",
    "open_engine": "trtkit.engine.engine",
    "lint": "trtkit.engine.lint",
    "compare": "trtkit.bench.compare",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'trtkit' has no attribute {name!r}; its verbs are {', '.join(__all__)}")
    value = globals()[name] = getattr(import_module(_HOME[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
