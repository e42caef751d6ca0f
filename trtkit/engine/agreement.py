"""Our fusion groups against TensorRT's kernels: agreement as numbers, and every disagreement by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import nan
from typing import TYPE_CHECKING, Any, NamedTuple

from trtkit.engine.fusion import FusionMap, fusion_map
from trtkit.engine.layers import Layer
from trtkit.graph.groups import Group, groups_of
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

EQUAL, CONTAINED, OVERLAPPING, MISSING = "equal", "contained", "overlapping", "not found"
VERDICTS = (EQUAL, CONTAINED, OVERLAPPING, MISSING)


class KernelVerdict(NamedTuple):
    """One of TensorRT's kernels that computes two nodes or more, and what our groups make of these nodes."""

    kernel: str  # TensorRT's name of it
    verdict: str  # one of VERDICTS
    nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    ours: tuple[tuple[str, ...], ...]  # our groups that share nodes with it, as operators

    def __str__(self) -> str:
        ours = " | ".join("+".join(ops) for ops in self.ours) or "no group"
        return f"{self.verdict}: {'+'.join(self.op_types)} [{', '.join(self.nodes)}] in {self.kernel}; ours: {ours}"


class GroupVerdict(NamedTuple):
    """One of our groups, and into how many of TensorRT's kernels it falls. A group in one kernel is not split."""

    group: Group
    kernels: int

    def __str__(self) -> str:
        return f"split into {self.kernels}: {self.group.label} [{', '.join(self.group.nodes)}] ({self.group.rule})"


@dataclass(frozen=True)
class Agreement:
    """How far our groups and TensorRT's kernels are the same.

    Only nodes that TensorRT names in a kernel count; of views, folded and shape arithmetic it does not say.

    - `recall`: the share of TensorRT's kernels of two nodes or more whose nodes are all in one group of ours.
    - `precision`: the share of our groups of two such nodes or more whose nodes are all in one kernel of TensorRT's.
      One group for everything would have recall 1 and precision 0.
    - `pair_jaccard`: of all pairs of nodes that TensorRT or we fuse, the share that both fuse (Jaccard's index).

    Each is NaN where there is nothing to take a share of.
    """

    model_name: str
    kernels: tuple[KernelVerdict, ...]
    groups: tuple[GroupVerdict, ...]
    pair_jaccard: float
    fusion: FusionMap

    @property
    def counts(self) -> dict[str, int]:
        """How many of TensorRT's kernels of two nodes or more got which verdict."""
        found = Counter(kernel.verdict for kernel in self.kernels)
        return {verdict: found[verdict] for verdict in VERDICTS}

    @property
    def recall(self) -> float:
        return _share(kernel.verdict in (EQUAL, CONTAINED) for kernel in self.kernels)

    @property
    def precision(self) -> float:
        return _share(group.kernels == 1 for group in self.groups)

    @property
    def disagreements(self) -> tuple[KernelVerdict | GroupVerdict, ...]:
        """Every kernel that is not inside one of our groups, then every group of ours that TensorRT splits."""
        lost = [kernel for kernel in self.kernels if kernel.verdict not in (EQUAL, CONTAINED)]
        return (*lost, *(group for group in self.groups if group.kernels > 1))

    def plot(self, **options: Any) -> Figure:
        """Our groups above the nodes, TensorRT's kernels below them; options as in `trtkit.plot.agreement`."""
        from trtkit import plot

        return plot.agreement(self, **options)

    def table(self) -> Table:
        """The numbers as a table for `rich.print`."""
        return table([self])

    def __str__(self) -> str:
        within = sum(self.counts[v] for v in (EQUAL, CONTAINED))
        whole = sum(group.kernels == 1 for group in self.groups)
        return (
            f"{self.model_name}: {within} of TensorRT's {len(self.kernels)} multi-node kernels are in a group of ours "
            f"({self.counts[EQUAL]} equal to it), {whole} of our {len(self.groups)} groups in one kernel of its; "
            f"pairs agree to {self.pair_jaccard:.0%}"
        )


def agreement(model: Model, layers: Sequence[Layer]) -> Agreement:
    """Compare the groups marked on `model` with the kernels of an engine built from the same graph.

    Args:
        model: as `fuse_groups` returns it. Its nodes must have the names of those that the engine was built from.
        layers: `Engine.layers`.

    >>> import onnx, trtkit
    >>> from trtkit.passes.groups import fuse_groups
    >>> model = fuse_groups(trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[4] x) => (float[4] y) {[a] s = Exp(x) [b] t = Neg(s) [c] y = Abs(t)}''')))
    >>> print(agreement(model, [Layer("k", "kgen", (), (), "", ("a", "b")), Layer("l", "kgen", (), (), "", ("c",))]))
    g: 1 of TensorRT's 1 multi-node kernels are in a group of ours (0 equal to it), 0 of our 1 groups in one kernel of
    its; pairs agree to 33%
    """
    return compare_groups(groups_of(model), fusion_map(model, list(layers)))


def compare_groups(groups: Sequence[Group], fusion: FusionMap) -> Agreement:
    """The same from groups and a fusion map that are there already."""
    ops = {node.name: node.op_type for node in fusion.nodes}
    kernel_of = {node.name: node.kernel for node in fusion.nodes if node.kernel is not None}
    theirs: dict[int, list[str]] = {}
    for name, kernel in kernel_of.items():
        theirs.setdefault(kernel, []).append(name)
    ours = [[name for name in group.nodes if name in kernel_of] for group in groups]
    group_of = {name: i for i, names in enumerate(ours) for name in names}
    kernels = tuple(
        _judge(fusion.kernels[kernel].name, names, ours, group_of, ops)
        for kernel, names in theirs.items()
        if len(names) > 1
    )
    verdicts = tuple(
        GroupVerdict(group, len({kernel_of[name] for name in names}))
        for group, names in zip(groups, ours, strict=True)
        if len(names) > 1
    )
    return Agreement(fusion.model_name, kernels, verdicts, _jaccard(_pairs(theirs.values()), _pairs(ours)), fusion)


def _judge(
    kernel: str, names: list[str], ours: list[list[str]], group_of: dict[str, int], ops: dict[str, str]
) -> KernelVerdict:
    touched = sorted({group_of[name] for name in names if name in group_of})
    if not touched:
        verdict = MISSING
    elif len(touched) == 1 and set(names) <= set(ours[touched[0]]):
        verdict = EQUAL if len(names) == len(ours[touched[0]]) else CONTAINED
    else:
        verdict = OVERLAPPING
    found = tuple(tuple(ops[name] for name in ours[i]) for i in touched)
    return KernelVerdict(kernel, verdict, tuple(names), tuple(ops[name] for name in names), found)


def _pairs(sets: Iterable[Sequence[str]]) -> set[tuple[str, str]]:
    return {(min(a, b), max(a, b)) for names in sets for a, b in combinations(names, 2)}


def _jaccard(one: set[tuple[str, str]], other: set[tuple[str, str]]) -> float:
    return len(one & other) / len(one | other) if one | other else nan


def _share(answers: Iterable[bool]) -> float:
    found = list(answers)
    return sum(found) / len(found) if found else nan


def table(agreements: Sequence[Agreement]) -> Table:
    """A table of one line a model, for `rich.print`."""
    from rich.table import Table

    grid = Table(title="Our fusion groups against TensorRT's kernels of two nodes or more")
    grid.add_column("model")
    for name in ("kernels", *VERDICTS, "recall", "our groups", "split", "precision", "pairs"):
        grid.add_column(name, justify="right")
    for a in agreements:
        split = sum(group.kernels > 1 for group in a.groups)
        counts = [str(a.counts[verdict]) for verdict in VERDICTS]
        grid.add_row(a.model_name, str(len(a.kernels)), *counts, f"{a.recall:.0%}", str(len(a.groups)), str(split),
                     f"{a.precision:.0%}", f"{a.pair_jaccard:.0%}")  # fmt: skip
    return grid
