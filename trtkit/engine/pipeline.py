"""How Triton describes tensors, and models that run one after the other in one request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from trtkit.errors import ModelError
from trtkit.model import TensorInfo

_TYPES = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16", "float64": "TYPE_FP64",
    "int8": "TYPE_INT8", "int16": "TYPE_INT16", "int32": "TYPE_INT32", "int64": "TYPE_INT64",
    "uint8": "TYPE_UINT8", "uint16": "TYPE_UINT16", "uint32": "TYPE_UINT32", "uint64": "TYPE_UINT64",
    "bool": "TYPE_BOOL",
}  # fmt: skip


class Tensor(NamedTuple):
    """An input or output as a server's configuration states it; dims without the batch, -1 for those that change."""

    name: str
    data_type: str
    dims: tuple[int, ...]

    def text(self, label_file: str = "") -> str:
        # a tensor without dimensions is one number: Triton wants to hear of a dimension, and that it is not there
        dims = f"dims: [ {', '.join(map(str, self.dims or (1,)))} ]" + ("" if self.dims else " reshape { shape: [ ] }")
        labels = f" label_filename: {json.dumps(label_file)}" if label_file else ""
        return f"{{ name: {json.dumps(self.name)} data_type: {self.data_type} {dims}{labels} }}"

    def fits(self, other: Tensor) -> bool:
        """Whether one may be handed on as the other."""
        return (
            self.data_type == other.data_type
            and len(self.dims) == len(other.dims)
            and all(-1 in (a, b) or a == b for a, b in zip(self.dims, other.dims, strict=True))
        )

    def __str__(self) -> str:
        return f"{self.name!r} {self.data_type} {list(self.dims)}"


Step = tuple[str, int, tuple[Tensor, ...], tuple[Tensor, ...]]  # a model's name, largest batch, inputs and outputs


def tensors_of(infos: Sequence[TensorInfo], batched: bool) -> tuple[Tensor, ...]:
    """Raises ModelError for a dtype that Triton does not have."""
    tensors = []
    for info in infos:
        if info.dtype.name not in _TYPES:
            raise ModelError(f"{info}: Triton has no such type; it has {', '.join(_TYPES)}.")
        dims = tuple(d if isinstance(d, int) else -1 for d in info.shape[1 if batched else 0 :])
        tensors.append(Tensor(info.name, _TYPES[info.dtype.name], dims))
    return tuple(tensors)


def ensemble_config(name: str, steps: Sequence[Step]) -> str:
    """The configuration of an ensemble: which tensor of which step goes where.

    Raises:
        ModelError: batches that some steps have and others have not; tensors of one name that do not fit together.
    """
    batches = [max_batch for _, max_batch, _, _ in steps]
    if any(batches) != all(batches):
        with_, without = ([n for n, b, _, _ in steps if bool(b) is which] for which in (True, False))
        raise ModelError(
            f"An ensemble has batches throughout or nowhere: {with_} have a batch, and {without} have none."
        )
    taken: dict[str, Tensor] = {}  # what the ensemble takes itself
    made: dict[str, tuple[str, Tensor]] = {}  # by the name of a step's output: the ensemble's name for it
    last: tuple[Tensor, ...] = ()
    lines = []
    for place, (model, _, inputs, outputs) in enumerate(steps):
        feeds = {tensor.name: _source(model, tensor, inputs, made, last, taken) for tensor in inputs}
        final = place == len(steps) - 1
        results = {}
        for tensor in outputs:
            own = tensor.name if final else f"{model}/{tensor.name}"
            if own in taken:
                raise ModelError(f"The ensemble {name!r} would both take and give {own!r}; call one of them otherwise.")
            results[tensor.name] = own
            made[tensor.name] = (own, tensor)
        last = outputs
        lines.append(f"  {{ model_name: {json.dumps(model)} model_version: -1 {_maps(feeds, results)} }}")
    return "\n".join(
        [
            f"name: {json.dumps(name)}",
            'platform: "ensemble"',
            f"max_batch_size: {min(batches)}",
            *(f"input [ {tensor.text()} ]" for tensor in taken.values()),
            *(f"output [ {tensor.text()} ]" for tensor in steps[-1][3]),
            "ensemble_scheduling { step [",
            ",\n".join(lines),
            "] }",
            "",
        ]
    )


def _source(
    model: str,
    wanted: Tensor,
    inputs: tuple[Tensor, ...],
    made: dict[str, tuple[str, Tensor]],
    last: tuple[Tensor, ...],
    taken: dict[str, Tensor],
) -> str:
    """The ensemble's name for what a step reads; adds to `taken` what no step before it makes."""
    if wanted.name in made:
        own, tensor = made[wanted.name]
    else:
        alone = [tensor for tensor in inputs if tensor.name not in made]
        if len(last) != 1 or len(alone) != 1:
            own, tensor = wanted.name, taken.setdefault(wanted.name, wanted)
        else:
            own, tensor = made[last[0].name]
    if not wanted.fits(tensor):
        raise ModelError(f"In the ensemble {model!r} takes {wanted}, and what it would get is {tensor}.")
    return own


def _maps(feeds: dict[str, str], results: dict[str, str]) -> str:
    maps = [("input_map", feeds), ("output_map", results)]
    return " ".join(
        f"{kind} {{ key: {json.dumps(theirs)} value: {json.dumps(own)} }}"
        for kind, entries in maps
        for theirs, own in entries.items()
    )
