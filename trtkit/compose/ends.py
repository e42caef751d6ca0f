"""The inputs and outputs of models that are put together: finding them, and telling whether two may become one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Literal, NamedTuple

import onnx_ir as ir

from trtkit.compose.align import dim_names, rename_dims
from trtkit.errors import ModelError
from trtkit.passes.common import dims


class End(NamedTuple):
    """An input or output of one of the models."""

    model: str
    value: ir.Value

    def __str__(self) -> str:
        dtype = self.value.dtype.name.lower() if self.value.dtype is not None else "of unknown type"
        shape = ", ".join(map(str, dims(self.value) or ("unknown",)))
        return f"{self.value.name!r} of {self.model!r}, {dtype} ({shape})"


def find(graphs: Mapping[str, ir.Model], which: tuple[str, str], kind: Literal["input", "output"]) -> End:
    """The end that (model, name) means. Raises ModelError and lists what there is."""
    model, name = which
    if model not in graphs:
        raise ModelError(f"There is no model {model!r} among those to merge: {list(graphs)}.")
    values = {v.name: v for v in ends_of(graphs[model].graph, kind)}
    if name not in values:
        raise ModelError(f"{model!r} has no {kind} {name!r}; its {kind}s are {list(values)}.")
    return End(model, values[name])


def ends_of(graph: ir.Graph, kind: Literal["input", "output"]) -> list[ir.Value]:
    """A graph's inputs (without those that are only defaults of weights) or outputs."""
    return [v for v in graph.inputs if not v.is_initializer()] if kind == "input" else list(graph.outputs)


def fits(a: ir.Value, b: ir.Value) -> bool:
    """Whether two tensors can be one: same type, same rank, and no two different numbers on one axis."""
    first, second = dims(a), dims(b)
    if a.dtype != b.dtype or first is None or second is None or len(first) != len(second):
        return False
    pairs = zip(first, second, strict=True)
    return all(x == y or not (isinstance(x, int) and isinstance(y, int)) for x, y in pairs)


class Ties:
    """Changeable dimensions that became one because their tensors did: `batch` of one model and `n` of another.

    `held[dim]` names the models in which `dim` means the same size.
    """

    def __init__(self, graphs: Mapping[str, ir.Model]) -> None:
        self.graphs = graphs
        self.held: defaultdict[str, set[str]] = defaultdict(set)

    def tie(self, first: End, other: End) -> None:
        """Let the dimensions of `other` be called what they are called in `first`, all over the other's graph."""
        if first.model == other.model:
            return
        names: dict[str, str] = {}
        present = dim_names(self.graphs[other.model].graph)
        for keep, dim in zip(dims(first.value) or (), dims(other.value) or (), strict=True):
            if isinstance(keep, str) and isinstance(dim, str):
                names[dim] = keep
                self.held[keep] |= {first.model, other.model}
        for keep in set(names.values()) & present - set(names):  # means another size there
            names[keep] = f"{other.model}/{keep}"
        rename_dims(self.graphs[other.model].graph, names)
