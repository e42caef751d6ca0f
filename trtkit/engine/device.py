"""Which GPU this machine has, asked of the driver itself: no package is needed and nothing is ever raised."""

from __future__ import annotations

import ctypes
from functools import cache
from typing import NamedTuple

# The driver API's attribute numbers (cuda.h, CUdevice_attribute).
_COMPUTE_CAPABILITY_MAJOR = 75
_COMPUTE_CAPABILITY_MINOR = 76
_DRIVER_VERSION_FILE = "/proc/driver/nvidia/version"


class Gpu(NamedTuple):
    """The first GPU that CUDA offers.

    `driver` is the version of the installed driver ("580.65.06", or "" where the system does not tell), `cuda` the
    newest CUDA version which that driver runs ("13.0").
    """

    name: str
    compute_capability: tuple[int, int]
    memory_bytes: int
    driver: str
    cuda: str

    def __str__(self) -> str:
        major, minor = self.compute_capability
        return f"{self.name} (compute capability {major}.{minor}, {self.memory_bytes / 2**30:.0f} GiB)"


@cache
def gpu() -> Gpu | None:
    """The first GPU, or None when there is no driver or no GPU; asked once a process.

    CUDA is initialised, no context is made: asking costs no GPU memory.

    >>> found = gpu()
    >>> found is None or found.compute_capability >= (3, 0)
    True
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None  # no driver
    return _ask(cuda)


def _ask(cuda: ctypes.CDLL) -> Gpu | None:
    device, count, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    major, minor, memory = ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    name = ctypes.create_string_buffer(256)
    calls = (
        lambda: cuda.cuInit(0),
        lambda: cuda.cuDeviceGetCount(ctypes.byref(count)),
        lambda: cuda.cuDeviceGet(ctypes.byref(device), 0),
        lambda: cuda.cuDeviceGetName(name, len(name), device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device),
        lambda: cuda.cuDeviceGetAttribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device),
        lambda: cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device),
        lambda: cuda.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(call() != 0 for call in calls):  # any other status than CUDA_SUCCESS ends the questions
        return None
    return Gpu(
        name=name.value.decode(errors="replace"),
        compute_capability=(major.value, minor.value),
        memory_bytes=memory.value,
        driver=_driver_version(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def _driver_version(path: str = _DRIVER_VERSION_FILE) -> str:
    """The driver's version, from the kernel module's own words: the first item made of numbers and dots."""
    try:
        with open(path) as file:
            words = file.readline().split()
    except OSError:  # not told inside some containers
        return ""
    return next((word for word in words if "." in word and word.replace(".", "").isdigit()), "")
