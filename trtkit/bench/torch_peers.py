"""PyTorch's own ways of running a module, as peers of an engine: eager, eager in a CUDA graph, torch.compile."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.errors import ModelError

if TYPE_CHECKING:
    import torch

Call = Callable[..., Any]  # takes the module's positional inputs, returns its output


def best_footing() -> None:
    """Let PyTorch be as fast as it can: TF32 where FP32 is asked for, cuDNN's search for the fastest algorithm.

    TensorRT uses TF32 in FP32 engines as well, so that this makes the two equal rather than one favoured.
    """
    import torch

    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True


def in_precision(module: torch.nn.Module, precision: str, device: str) -> torch.nn.Module:
    """A copy of the module in evaluation mode on `device` with weights of "fp32", "fp16", "bf16" or "fp64".

    >>> import torch
    >>> in_precision(torch.nn.Linear(2, 2), "fp16", "cpu").weight.dtype
    torch.float16
    """
    import torch

    dtypes = {"fp64": torch.float64, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return copy.deepcopy(module).eval().to(device=device, dtype=dtypes[precision]).requires_grad_(False)


def eager(module: Call) -> Call:
    """The module as it is, without autograd's book-keeping."""
    import torch

    def call(*inputs: torch.Tensor) -> Any:
        with torch.inference_mode():
            return module(*inputs)

    return call


def graphed(module: torch.nn.Module, example: Sequence[torch.Tensor]) -> Call:
    """The module captured once as a CUDA graph and replayed: Python and kernel launches leave the picture.

    Shapes are those of `example`. A call copies its inputs to where the graph reads them; the output is the graph's
    own and is overwritten by the next call.
    """
    import torch

    static = [tensor.clone() for tensor in example]
    graph = torch.cuda.CUDAGraph()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):  # cuDNN's search and lazy initialisation must not be captured
            module(*static)
    torch.cuda.current_stream().wait_stream(side)
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = module(*static)

    def call(*inputs: torch.Tensor) -> Any:
        for mine, given in zip(static, inputs, strict=True):
            mine.copy_(given)
        graph.replay()
        return output

    return call


def compiled(module: torch.nn.Module, mode: str | None = "reduce-overhead") -> Call:
    """`torch.compile` for fixed shapes; "reduce-overhead" puts the compiled kernels into CUDA graphs as well."""
    import torch

    torch._dynamo.reset()  # earlier modules must not count against this one's limit of recompilations
    return eager(torch.compile(module, mode=mode, dynamic=False))


def tensors(feed: Mapping[str, np.ndarray], precision: str, device: str) -> list[torch.Tensor]:
    """A model's inputs as the module's positional ones; floating-point ones in the module's precision."""
    import torch

    low = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision, torch.float32)
    given = [torch.from_numpy(array).to(device) for array in feed.values()]
    return [tensor.to(low) if tensor.is_floating_point() else tensor for tensor in given]


def arrays(output: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """A module's output (a tensor, or a tuple, list or dict of them) as arrays under the graph's names, in order.

    Raises ModelError when the module gives more or fewer outputs than there are names.
    """
    values = list(output.values()) if isinstance(output, Mapping) else output
    values = list(values) if isinstance(values, (list, tuple)) else [values]
    if len(values) != len(names):
        raise ModelError(f"The torch module has {len(values)} outputs and its graph {len(names)} ({', '.join(names)}): "
                         "they are not the same network.")
    return {name: value.float().cpu().numpy().copy() for name, value in zip(names, values, strict=True)}
