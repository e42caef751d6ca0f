"""Exports kept on disk, where TRTKIT_EXPORTS names a folder: tests and notebooks export the same networks many times.

Exporting MobileNetV2 takes PyTorch's exporter 10 seconds, in every process anew. An export is found again by a hash of
all that it depends on: versions, the modules' classes (by their code where they are no package's), their attributes,
every weight, shapes and types of the example inputs. What cannot be hashed (hooks, lambdas, objects that do not tell
what they are) is exported every time.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import inspect
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trtkit.model import write_atomically

if TYPE_CHECKING:
    import torch

SETTING = "TRTKIT_EXPORTS"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def exported(module: torch.nn.Module, facts: str, export: Callable[[], ir.Model]) -> ir.Model:
    """The module's export from the folder, or by `export`, which is then kept there; by `export` where it is not set.

    Args:
        facts: what else the export depends on.
    """
    place = os.environ.get(SETTING)
    key = _key(module, facts) if place else None
    if not place or key is None:
        return export()
    file = Path(place) / f"{key}.onnx"
    file.parent.mkdir(parents=True, exist_ok=True)
    with _alone(file.with_suffix(".lock")):  # two processes that want the same: one exports, the other waits for it
        if not file.is_file():
            graph = export()
            write_atomically(file, ir.to_proto(graph).SerializeToString())
            return graph
    return ir.load(file)


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _Unknown(Exception):
    """Something that may differ from process to process, or from call to call."""


def _key(module: torch.nn.Module, facts: str) -> str | None:
    import onnxscript
    import torch

    digest = hashlib.blake2b(f"{torch.__version__} {onnxscript.__version__} {facts}".encode(), digest_size=16)
    try:
        for name, part in module.named_modules(remove_duplicate=False):
            digest.update(f"{name}: {_class(type(part))}\n".encode())
            if any(getattr(part, hooks) for hooks in _HOOKS):
                raise _Unknown
            own = {k: v for k, v in vars(part).items() if not k.startswith("_") and k != "training"}
            digest.update(_told(own).encode())
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            digest.update(f"{name}: {_told(tensor)}\n".encode())
    except (_Unknown, AttributeError, TypeError, RuntimeError):
        return None
    return digest.hexdigest()


def _told(value: Any) -> str:
    """All there is to know of a value, the same in every process. Raises _Unknown."""
    import torch

    if isinstance(value, torch.Tensor):
        data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.blake2b(data.data, digest_size=16).hexdigest()}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_told(k)}: {_told(v)}" for k, v in value.items()) + "}"
    if isinstance(value, (list, tuple, set, frozenset)):
        return "[" + ", ".join(map(_told, sorted(value) if isinstance(value, (set, frozenset)) else value)) + "]"
    if isinstance(value, functools.partial):
        return f"partial({_told(value.func)}, {_told(value.args)}, {_told(value.keywords)})"
    if isinstance(value, type) or callable(value):
        if not hasattr(value, "__qualname__") or value.__module__ is None or not _installed(value):
            raise _Unknown
        return f"{value.__module__}.{value.__qualname__}"
    text = repr(value)
    if re.search(r"\b0x[0-9a-f]+", text):
        raise _Unknown
    return text


def _code(function: Any, depth: int = 0) -> str:
    """What a function does, so that one that was changed is another: its code, and what it takes from around itself."""
    code = getattr(function, "__code__", None)
    if code is None or depth > 4:
        raise _Unknown
    around = [
        _taken(name, cell.cell_contents, depth)
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True)
        if name != "__class__"
    ]
    known = function.__globals__
    around += [_taken(name, known[name], depth) for name in code.co_names if name in known]
    plain = [constant for constant in code.co_consts if not hasattr(constant, "co_code")]
    inner = [constant.co_code.hex() for constant in code.co_consts if hasattr(constant, "co_code")]
    return f"{code.co_code.hex()} {code.co_names} {plain} {inner} {around}"


def _taken(name: str, value: Any, depth: int) -> str:
    if inspect.ismodule(value):
        return name
    if inspect.isfunction(value) and not _installed(value):
        return _code(value, depth + 1)
    return f"{name}: {_told(value)}"


def _class(kind: type) -> str:
    """A module's class: by its name where it is installed, else by the code of its methods."""
    if _installed(kind):
        return f"{kind.__module__}.{kind.__qualname__}"
    methods = [f for name, f in vars(kind).items() if inspect.isfunction(f) and name != "__init__"]
    return f"{kind.__qualname__} {[_code(method) for method in methods]} {[_class(base) for base in kind.__bases__]}"


def _installed(thing: Any) -> bool:
    """Whether it comes from a package that nobody changes between two exports."""
    return "<" not in thing.__qualname__ and thing.__module__.partition(".")[0] not in ("__main__", "tests", "trtkit")
