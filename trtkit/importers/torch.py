"""PyTorch modules, through torch.export and the dynamo ONNX exporter."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from trtkit.errors import MissingError, ModelError, extra
from trtkit.model import Model

if TYPE_CHECKING:
    import torch


def from_torch(
    module: torch.nn.Module, example_inputs: Any, *, name: str | None = None, dynamic_batch: bool = True
) -> Model:
    """Export a torch module. The exporter's own optimiser stays off: simplifying the graph is what this course teaches.

    Args:
        example_inputs: a tensor, a tuple of tensors, or a dict by argument name of `forward`. Shapes are taken from
            them; with `dynamic_batch` the first dimension of each becomes "batch".

    Raises:
        ModelError: no example inputs, or the exporter cannot trace the module (with its own reason).
        MissingError: onnxscript, which PyTorch's exporter needs, is not installed.
    """
    if example_inputs is None:
        raise ModelError(
            f"To load a {type(module).__name__}, give example inputs as well: "
            "trtkit.load(module, torch.rand(1, 3, 224, 224))."
        )
    try:
        import onnxscript  # noqa: F401  (the exporter's backend; asked for here to say how to get it)
        import torch
    except ImportError as error:
        raise MissingError(f"Exporting from PyTorch needs onnxscript: {extra('torch')}.") from error
    inputs = _by_name(module, example_inputs)
    dims = {key: {0: "batch"} for key in inputs} if dynamic_batch else None
    modes = {part: part.training for part in module.modules()}
    module.eval()  # a graph for inference: dropout off, batch norm with its stored statistics
    try:
        with torch.no_grad(), _quiet():
            program = torch.onnx.export(
                module,
                (),
                kwargs=_widened(inputs) if dynamic_batch else inputs,
                dynamic_shapes=dims,
                dynamo=True,
                input_names=list(inputs),
                optimize=False,
                verbose=False,
            )
    except Exception as error:
        reason = str(error.__cause__ or error).strip().splitlines()
        raise ModelError(
            f"PyTorch could not export {type(module).__name__}: {reason[0] if reason else error!r}"
        ) from error
    finally:
        for part, training in modes.items():
            part.training = training  # not .train(), which would set a whole branch
    assert program is not None  # None only where a file to write to was named
    graph = program.model
    _name_batch(graph)
    return Model(graph, name or type(module).__name__)


def _by_name(module: torch.nn.Module, example_inputs: Any) -> dict[str, torch.Tensor]:
    if isinstance(example_inputs, Mapping):
        return dict(example_inputs)
    values = example_inputs if isinstance(example_inputs, (tuple, list)) else (example_inputs,)
    signature = inspect.signature(module.forward)
    try:
        return dict(signature.bind(*values).arguments)
    except TypeError as error:
        raise ModelError(
            f"{type(module).__name__}.forward{signature} cannot be called with {len(values)} example inputs: {error}."
        ) from error


def _widened(inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Examples with a batch of at least 2: torch.export takes a dimension of 1 for a constant."""
    import torch

    return {k: v if v.shape[0] > 1 else torch.cat([v, v]) for k, v in inputs.items()}


def _name_batch(graph: Any) -> None:
    """Call the changeable first dimension "batch" everywhere; the exporter may have made a name like s77 of it."""
    import onnx_ir as ir

    first = next((v.shape[0] for v in graph.graph.inputs if v.shape), None)
    old = getattr(first, "value", None)
    if old in (None, "batch"):
        return
    values = [*graph.graph.inputs, *(out for node in graph.graph.all_nodes() for out in node.outputs)]
    for value in values:
        for axis, dim in enumerate(value.shape or ()):
            if getattr(dim, "value", None) == old:
                value.shape[axis] = ir.SymbolicDim("batch")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter narrates its steps and warns about its own internals; a reader's screen needs neither."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
