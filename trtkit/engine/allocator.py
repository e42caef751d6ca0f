"""Memory for outputs whose shape depends on the data: TensorRT asks for it while it runs, and then tells the shape."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from trtkit.engine.trt import trt


class OutputAllocator(trt.IOutputAllocator):
    """Grows one output's memory to what TensorRT asks for, and keeps it for the next run.

    Args:
        allocate: `allocate(size_bytes)` gives memory.
        free: gives it back.
        address: the address of such memory.

    Attributes:
        memory: what `allocate` gave last; None before the first run.
        shape: of the output of the last run.
        failure: what `allocate` raised; an exception must not travel through TensorRT's C++.
    """

    def __init__(
        self, allocate: Callable[[int], Any], free: Callable[[Any], Any], address: Callable[[Any], int] = int
    ) -> None:
        trt.IOutputAllocator.__init__(self)
        self.allocate, self.free, self.address = allocate, free, address
        self.memory: Any = None
        self.capacity = 0
        self.shape: tuple[int, ...] = ()
        self.failure: BaseException | None = None

    def reallocate_output(self, tensor_name: str, memory: int, size: int, alignment: int) -> int:
        """Called by TensorRT for memory of at least `size` bytes; CUDA's is always aligned to 256 bytes."""
        try:
            if self.memory is None or size > self.capacity:
                self.release()  # first: there may not be room for both
                self.memory = self.allocate(max(1, size))
                self.capacity = size
            return self.address(self.memory)
        except BaseException as error:  # noqa: BLE001  (raised again by whoever ran the engine)
            self.failure = error
            return 0

    def reallocate_output_async(self, tensor_name: str, memory: int, size: int, alignment: int, stream: int) -> int:
        return self.reallocate_output(tensor_name, memory, size, alignment)

    def notify_shape(self, tensor_name: str, shape: Any) -> None:
        """Called by TensorRT before `execute_async_v3` returns."""
        self.shape = tuple(shape)

    def release(self) -> None:
        """Give the memory back; the next run asks for new one."""
        memory, self.memory, self.capacity = self.memory, None, 0
        if memory is not None:
            self.free(memory)

    def check(self) -> None:
        """Raise what `allocate` raised."""
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
