"""Calibration data on its way through a model: batch after batch, checked before a range is drawn from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sized

import numpy as np

from trtkit.errors import DataError, ModelError
from trtkit.graph.taps import Batch, Taps

CalibrationProgress = Callable[[int, int | None], None]
"""Called with the batches done and the batches in all (None when the data cannot say)."""


def stream(
    taps: Taps, data: Iterable[Batch], progress: CalibrationProgress | None = None
) -> Iterator[dict[str, np.ndarray]]:
    """The tapped tensors batch after batch, one batch in memory at a time; `progress` is called when one is done with.

    Each dict is emptied before the next batch is computed, or two batches of tensors would be in memory.

    Raises:
        DataError: there is no batch, or one does not fit the model, or a tensor holds NaN or infinity.
    """
    if isinstance(data, np.ndarray | Mapping):
        raise DataError("Calibration data is an iterable of batches, and this is a single one: "
                        "put it into a list, or split it into several batches.")  # fmt: skip
    count, total = 0, len(data) if isinstance(data, Sized) else None
    for batch in data:
        try:
            tensors = taps.run(batch)
        except ModelError as error:
            raise DataError(f"Batch {count} does not fit the model: {error}") from error
        for name, tensor in tensors.items():
            check_finite(name, tensor, count)
        count += 1
        yield tensors
        tensors.clear()
        if progress is not None:
            progress(count, total)
    if not count:
        raise DataError("There is no calibration data: the iterable gave no batch. "
                        "A generator that was used before is empty; make a new one, or pass a list.")  # fmt: skip


def check_finite(name: str, tensor: np.ndarray, batch: int) -> None:
    """Raise DataError if a tensor holds NaN or infinity, naming it."""
    if tensor.dtype.kind == "f" and not np.isfinite(tensor.max(initial=0) - tensor.min(initial=0)):
        wrong = "NaN" if np.isnan(tensor).any() else "infinity"
        raise DataError(
            f"Tensor {name!r} holds {wrong} in batch {batch}: no range can be drawn from it. "
            "Check the input data of this batch, and whether the FP32 model itself is right on it."
        )
