"""Tensors that lie on the GPU: PyTorch's own and, through DLPack, those of CuPy, JAX and others, without a copy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.allocator import OutputAllocator
from trtkit.engine.bound import Bound
from trtkit.errors import MissingError, ModelError, extra
from trtkit.model import TensorInfo, check_fit

if TYPE_CHECKING:
    import torch

    from trtkit.engine.gpu import GpuSession

_CUDA = (2, 13)  # kDLCUDA and kDLCUDAManaged of dlpack.h


class TensorBound(Bound):
    """CUDA tensors in, CUDA tensors out, nothing copied."""

    def __init__(self, session: GpuSession, tensors: dict[str, torch.Tensor]) -> None:
        import torch

        self.device = next(iter(tensors.values())).device
        super().__init__(session, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
        self.dtypes = {info.name: torch_dtype(info.dtype) for info in session.outputs}
        self.outputs = {
            name: torch.empty(shape, dtype=self.dtypes[name], device=self.device)
            for name, shape in self.output_shapes.items()
        }
        self.addresses = {name: tensor.data_ptr() for name, tensor in {**tensors, **self.outputs}.items()}

    def _allocator(self) -> OutputAllocator:
        import torch

        return OutputAllocator(
            lambda size: torch.empty(size, dtype=torch.uint8, device=self.device),
            free=lambda tensor: None,  # PyTorch takes it back when nobody holds it
            address=lambda tensor: tensor.data_ptr(),
        )

    def launch(self, stream: int) -> None:
        super().launch(stream)
        for name, allocator in self.growing.items():
            dtype, shape = self.dtypes[name], allocator.shape
            size = int(np.prod(shape)) * dtype.itemsize
            self.outputs[name] = allocator.memory[:size].view(dtype).reshape(shape)


def on_gpu(value: Any) -> bool:
    """Whether an array of any library that knows DLPack lies on a CUDA GPU.

    >>> on_gpu(np.zeros(2)), on_gpu([0, 0])
    (False, False)
    """
    where = getattr(value, "__dlpack_device__", None)
    return where is not None and where()[0] in _CUDA


def as_tensors(inputs: Mapping[str, Any], owner: str) -> dict[str, torch.Tensor]:
    """Inputs on the GPU as PyTorch's tensors of the same memory.

    Raises:
        ModelError: some of them lie on the host.
        MissingError: PyTorch is not installed.
    """
    for name, value in inputs.items():
        if not on_gpu(value):
            raise ModelError(
                f"Input {name!r} of {owner!r} is not on the GPU, and another one is. Give all of them as CUDA tensors, "
                "or all as NumPy arrays."
            )
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"Inputs on the GPU need PyTorch for the outputs ({error}): {extra('torch')}.") from error
    return {n: v if hasattr(v, "data_ptr") else torch.from_dlpack(v) for n, v in inputs.items()}


def check_tensors(expected: tuple[TensorInfo, ...], tensors: Mapping[str, torch.Tensor], owner: str) -> None:
    """Raise ModelError unless these are contiguous tensors on the first GPU of the right names, shapes and dtypes."""
    check_fit(expected, {name: (tuple(t.shape), dtype_of(t.dtype)) for name, t in tensors.items()}, owner)
    for info in expected:
        tensor = tensors[info.name]
        if tensor.device.type == "cuda" and tensor.device.index not in (None, 0):
            raise ModelError(f"Input {info}: got a tensor on {tensor.device}; the engine runs on cuda:0.")
        if tensor.device.type != "cuda" or not tensor.is_contiguous():
            raise ModelError(
                f"Input {info}: got a {'strided' if tensor.device.type == 'cuda' else tensor.device.type} "
                "tensor. Give a contiguous CUDA tensor (.cuda().contiguous()), or NumPy arrays."
            )


def run_apart(session: GpuSession, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Like `session.run`, but what comes out belongs to the caller, and is ready.

    The inputs are copied to where the session's graphs read them, so that tensors at ever new addresses need no new
    graphs; that costs one copy on the GPU each way.
    """
    import torch

    check_tensors(session.inputs, tensors, session.name)
    key = ("apart", *(tuple(tensors[info.name].shape) for info in session.inputs))
    bound = session.recall(key)
    if bound is None:
        mine = {name: torch.empty_like(tensor) for name, tensor in tensors.items()}
        bound = session.remember(key, TensorBound(session, mine))
        bound.mine = mine
    caller, stream = torch.cuda.current_stream(), torch.cuda.ExternalStream(session.stream.handle)
    stream.wait_stream(caller)
    with torch.cuda.stream(stream):
        for name, tensor in tensors.items():
            bound.mine[name].copy_(tensor, non_blocking=True)
        bound.launch(session.stream.handle)
        outputs = {name: tensor.clone() for name, tensor in bound.outputs.items()}
    for tensor in outputs.values():
        tensor.record_stream(caller)  # its memory must not be given to the other stream while this one reads it
    stream.synchronize()
    return outputs


def torch_dtype(dtype: np.dtype) -> torch.dtype:
    """PyTorch's name of a NumPy dtype.

    >>> torch_dtype(np.dtype("float16"))
    torch.float16
    """
    import torch

    found: torch.dtype = getattr(torch, dtype.name)  # float16, bfloat16, int64, bool: both name them alike
    return found


def dtype_of(dtype: torch.dtype) -> np.dtype:
    """NumPy's name of a PyTorch dtype.

    >>> import torch
    >>> dtype_of(torch.int64)
    dtype('int64')
    """
    name = str(dtype).removeprefix("torch.")
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
