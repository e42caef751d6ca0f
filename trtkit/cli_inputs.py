"""What the command line is given as text: shapes, files of data, names of networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trtkit.errors import DataError, MissingError, ModelError

if TYPE_CHECKING:
    import numpy as np

    from trtkit.model import Model

TORCHVISION = "torchvision:"


def parse_shapes(text: str) -> tuple[str, list[tuple[int, ...]]]:
    """`name:least,best,largest` or `name:only`, each shape written as 1x3x224x224.

    >>> parse_shapes("x:1x3x224x224,8x3x224x224,32x3x224x224")
    ('x', [(1, 3, 224, 224), (8, 3, 224, 224), (32, 3, 224, 224)])
    >>> parse_shapes("ids:1x128")
    ('ids', [(1, 128), (1, 128), (1, 128)])
    """
    name, _, rest = text.rpartition(":")
    try:
        shapes = [tuple(int(size) for size in shape.split("x")) for shape in rest.split(",")]
    except ValueError:
        shapes = []
    if not name or len(shapes) not in (1, 3) or any(size < 1 for shape in shapes for size in shape):
        raise ModelError(
            f"--shapes {text!r} cannot be read. Write NAME:LEAST,BEST,LARGEST, for example x:1x3x224x224,8x3x224x224,"
            "32x3x224x224, or one shape for all three."
        )
    return name, shapes * (3 // len(shapes))


def read_data(path: str, model: Model, batch: int = 8) -> list[dict[str, np.ndarray]]:
    """Batches out of a .npy file (one input) or a .npz file (an array for each input, by name); samples go first.

    Raises:
        DataError: the file is missing, is neither, is empty, or has other names or lengths than the model's inputs.
    """
    import numpy as np

    names = [info.name for info in model.inputs]
    try:
        loaded = np.load(path, allow_pickle=False)  # a pickle could run anything
    except FileNotFoundError:
        raise DataError(f"No such file: {path}.") from None
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} is neither a .npy nor a .npz file of plain arrays: {error}") from error
    arrays = {names[0]: loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    if sorted(arrays) != sorted(names):
        raise DataError(f"{path} holds {sorted(arrays)}; the inputs of {model.name!r} are {sorted(names)}.")
    lengths = {array.shape[0] if array.ndim else 0 for array in arrays.values()}
    if len(lengths) != 1 or 0 in lengths:
        raise DataError(f"{path}: every array needs the same number of samples, at least one; found {sorted(lengths)}.")
    first = model.inputs[0].shape[0]
    step = first if isinstance(first, int) else batch
    total = lengths.pop()
    if total < step:
        raise DataError(f"{path} has {total} samples, and {model.name!r} takes batches of {step}.")
    end = total - total % step if isinstance(first, int) else total
    return [{n: array[i : i + step] for n, array in arrays.items()} for i in range(0, end, step)]


def read_source(text: str) -> tuple[Any, ...]:
    """What to give to trtkit.load: an ONNX path, or a torchvision network (random weights) with its example input."""
    if not text.startswith(TORCHVISION):
        return (text,)
    try:
        import torch
        import torchvision
    except ImportError:
        raise MissingError(f"{text} needs PyTorch and torchvision: pip install 'trtkit[course]'.") from None
    name = text.removeprefix(TORCHVISION)
    try:
        module = torchvision.models.get_model(name, weights=None).eval()
    except ValueError:
        raise ModelError(f"torchvision has no model {name!r}; 'resnet50' is one.") from None
    return module, torch.rand(1, 3, 224, 224)
