"""What the command line is given as text: shapes, files to read and to write, names of networks."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trtkit
from trtkit.errors import DataError, MissingError, ModelError, TrtkitError, extra

if TYPE_CHECKING:
    import numpy as np

    from trtkit.model import Model

TORCHVISION = "torchvision:"
ENGINES = (".engine", ".plan", ".trt")


def load_model(path: str, verb: str) -> Model:
    """The ONNX model in a file. Raises ModelError; for an engine with the way to compare one."""
    if path.endswith(ENGINES):
        raise ModelError(
            f"{path} is an engine, and `trtkit {verb}` takes ONNX models. To measure an engine beside its model, in "
            f"Python: trtkit.compare(model, trtkit.open_engine({path!r}, model=model))."
        )
    return trtkit.load(path)


def with_reference(model: Model, path: str) -> Model:
    """The model, to be verified against the one in `path` as if it had been made from that in this process."""
    origin = load_model(path, "build --reference")
    return type(model)(model.ir, model.name, origin=origin, precision=model.precision)


def target(output: str | None, source: str, ending: str) -> Path:
    """What to write to: `output`, or a name in this folder made of the source's. Raises TrtkitError.

    >>> target(None, "networks/resnet50.onnx", "-fp16.onnx")
    PosixPath('resnet50-fp16.onnx')
    """
    path = Path(output or Path(source).stem + ending)
    _check_target(path)
    return path


def _check_target(path: Path) -> None:
    """Refuse, before the work for it begins, a file that cannot be written. Raises TrtkitError."""
    if path.is_dir():
        raise TrtkitError(f"{path} is a folder. Give the name of the file to write.")
    if not path.parent.is_dir():
        raise TrtkitError(f"{path} cannot be written: the folder {path.parent} does not exist. Make it first.")


def check_picture(name: str | None) -> None:
    """The same for a picture, where one is asked for. Raises TrtkitError."""
    if name is None:
        return
    from trtkit.plot import suffixes

    _check_target(Path(name))
    if Path(name).suffix.lower() not in suffixes():
        raise TrtkitError(f"{name} cannot be drawn: a picture's name ends in one of {' '.join(suffixes())}")


def read_shapes(texts: Iterable[str], model: Model) -> dict[str, list[tuple[int, ...]]] | None:
    """All of --shapes by input name, None for none; without a name it means the model's only input.

    Raises:
        ModelError: a text cannot be read, or has no name where the model has several inputs.
    """
    names = [info.name for info in model.inputs]
    found = {}
    for text in texts:
        name, shapes = parse_shapes(text)
        if not name and len(names) != 1:
            raise ModelError(f"--shapes {text} has no name, and {model.name!r} has the inputs {', '.join(names)}. "
                             f"Give one for each, such as --shapes {names[0]}:{text}.")
        found[name or names[0]] = shapes
    return found or None


def parse_shapes(text: str) -> tuple[str, list[tuple[int, ...]]]:
    """`name:least,best,largest` or `name:only`, each shape written as 1x3x224x224; the name is "" where there is none.

    >>> parse_shapes("x:1x3x224x224,8x3x224x224,32x3x224x224")
    ('x', [(1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224)])
    >>> parse_shapes("ids:1x128")
    ('ids', [(1, 128), (1, 128), (1, 128)])
    >>> parse_shapes("1x128")[0]
    ''
    """
    name, colon, rest = text.rpartition(":")
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) for shape in rest.split(",")]
    except ValueError:
        shapes = []
    if (colon and not name) or len(shapes) not in (1, 3) or any(size < 1 for shape in shapes for size in shape):
        raise ModelError(
            f"--shapes {text!r} cannot be read. Write NAME:LEAST,BEST,LARGEST, for example x:1x3x224x224,8x3x224x224,"
            "32x3x224x224, or one shape for all three."
        )
    return name, shapes * (3 // len(shapes))


def read_data(path: str, model: Model, batch: int = 8) -> list[dict[str, np.ndarray]]:
    """Batches out of a .npy file (one input) or a .npz file (an array for each input, by name); samples go first.

    Args:
        batch: for models that take any; others get the batches that they take, and what is left over is not used.

    Raises:
        DataError: the file is missing, is neither, is empty, or has other names or lengths than the model's inputs.
    """
    from trtkit.bench.compare import fixed_batch

    names = [info.name for info in model.inputs]
    arrays = _arrays(path, names[0])
    if sorted(arrays) != sorted(names):
        raise DataError(f"{path} holds {sorted(arrays)}; the inputs of {model.name!r} are {sorted(names)}.")
    single = [name for name, array in arrays.items() if not array.ndim]
    if single:
        raise DataError(f"{path}: {', '.join(single)} is a single number. The first dimension of an array is samples.")
    lengths = {array.shape[0] for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: every array needs the same number of samples, at least one; found {sorted(lengths)}.")
    own, total = fixed_batch(model), lengths.pop()
    if own is not None and total < own:
        raise DataError(f"{path} has too few samples: {total}, and {model.name!r} takes batches of {own}.")
    step = batch if own is None else own
    end = total if own is None else total - total % own
    return [{n: array[i : i + step] for n, array in arrays.items()} for i in range(0, end, step)]


def _arrays(path: str, name: str) -> dict[str, np.ndarray]:
    """The arrays of a .npz file by name; the one of a .npy file is called `name`. Raises DataError."""
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False)  # a pickle could run anything
        if isinstance(loaded, np.ndarray):
            return {name: loaded}
        with loaded:
            return dict(loaded)
    except FileNotFoundError:
        raise DataError(f"No such file: {path}.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is neither a .npy nor a .npz file of plain arrays, or is cut off: {error}") from error


def read_source(text: str) -> tuple[Any, ...]:
    """What to give to trtkit.load: an ONNX path, or a torchvision network (random weights) with its example input."""
    if not text.startswith(TORCHVISION):
        return (text,)
    try:
        import torch
        import torchvision
    except ImportError:
        raise MissingError(f"{text} needs PyTorch and torchvision: {extra('course')}.") from None
    name = text.removeprefix(TORCHVISION)
    try:
        module = torchvision.models.get_model(name, weights=None).eval()
    except ValueError:
        raise ModelError(f"torchvision has no model {name!r}; 'resnet50' is one.") from None
    return module, torch.rand(1, 3, 224, 224)
