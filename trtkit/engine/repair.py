"""What TensorRT refuses of a model, asked before building, and rewriting that without changing what is computed."""

from __future__ import annotations

import html
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import onnx_ir as ir

from trtkit.engine.build import child_environment
from trtkit.engine.trt import require
from trtkit.errors import BuildError, ModelError
from trtkit.model import Model, Step, every_node, save
from trtkit.passes import run_passes
from trtkit.passes.common import infer_shapes, working_copy
from trtkit.passes.constant_folding import FoldConstants
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.repairs import REPAIRS, Repair
from trtkit.passes.sequences import SplitSequences
from trtkit.passes.shape_folding import FoldShapes
from trtkit.passes.static_reshape import StaticReshape

if TYPE_CHECKING:
    from rich.table import Table

REPAIR, SPLIT, NOTHING = "repair", "split", "nothing"
_COLUMNS = ("node", "operator", "TensorRT's reason", "said by", "what can be done")
_ROUNDS = 8  # what an operator is written out as may be refused again, a few levels deep
# What depends on no input is computed beforehand; most refused operators of that kind are then gone.
_FOLD = (FoldConstants, FoldShapes, StaticReshape, SplitSequences)


class Refusal(NamedTuple):
    """One node that TensorRT refuses."""

    node: str
    operator: str
    reason: str  # in TensorRT's own words
    said_by: str  # "parser" or "builder"
    remedy: str  # "repair: ..." (by `repair`), "split" (by `trtkit.engine.hybrid`), or "nothing: ..."


class Refusals(Sequence[Refusal]):
    """What TensorRT refuses of a model, in the order of the graph; empty when it takes all of it.

    Prints as a table. `library` says which TensorRT was asked.
    """

    def __init__(self, found: Sequence[Refusal], model: str, library: str) -> None:
        self._found, self.model, self.library = tuple(found), model, library

    @overload
    def __getitem__(self, place: int) -> Refusal: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Refusal]: ...
    def __getitem__(self, place: int | slice) -> Refusal | Sequence[Refusal]:
        return self._found[place]

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Refusal]:
        return iter(self._found)

    @property
    def nodes(self) -> frozenset[str]:
        """Names of the refused nodes."""
        return frozenset(one.node for one in self)

    def __str__(self) -> str:
        if not self:
            return self._title()
        return "\n".join(
            [self._title(), *(f"  {one.node} ({one.operator}), {one.said_by}: {_short(one.reason)}\n"
                              f"    -> {one.remedy}" for one in self)]
        )  # fmt: skip

    __repr__ = __str__

    def table(self) -> Table:
        """As a rich table, for a terminal."""
        from rich import box
        from rich.table import Table

        table = Table(*_COLUMNS, title=self._title(), box=box.SIMPLE_HEAD)
        for one in self:
            table.add_row(one.node, one.operator, _short(one.reason), one.said_by, one.remedy)
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in (a, b, _short(c), d, e)) + "</tr>"
            for a, b, c, d, e in self
        )
        caption = f"<caption>{html.escape(self._title())}</caption>"
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>" if self else caption

    def _title(self) -> str:
        if not self:
            return f"{self.library} takes every node of {self.model!r}"
        return f"{self.library} refuses {len(self)} node{'s' * (len(self) > 1)} of {self.model!r}"


def _short(reason: str, limit: int = 200) -> str:
    line = " ".join(reason.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def refusals(model: Model, *, thorough: bool = False, timeout_s: float = 600) -> Refusals:
    """Ask TensorRT which nodes it refuses, and find out what can be done about each. Nothing is built but nodes alone.

    The parser is asked about the whole graph, again without the nodes that it named, until it takes the rest. Then
    nodes of operators that its builder was seen to refuse (`trtkit.engine.suspects`) are built one by one.

    Args:
        thorough: build every node alone, some 0.1 s for each that is not like one before.
        timeout_s: seconds after which the question is given up.

    Raises:
        BuildError: there was no answer, or the model as a whole is refused without a node being named.
        MissingError: no TensorRT is installed.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[2, 8, 1] x) => (float[2, 8, 2] y) <int64 axis = {1}> {a = Relu(x)  y = DFT(a, , axis)}'''))
    >>> for one in refusals(model):
    ...     print(one.node, one.operator, one.said_by, "|", one.remedy)
    DFT_1 DFT parser | repair: DFT made MatMul
    >>> refusals(repair(model))
    TensorRT-RTX ... takes every node of 'g'
    """
    library = str(require())
    found = _ask(model, thorough, timeout_s)
    operators = {node.name: node.op_type for node in every_node(model.ir.graph)}
    places = {name: place for place, name in enumerate(operators)}
    if any(one["node"] not in operators for one in found):
        words = "\n".join(f"  {one['reason']}" for one in found)
        raise BuildError(f"{library} refuses {model.name!r} and names no node. In its own words:\n{words}", "parse")
    found.sort(key=lambda one: places[one["node"]])
    remedies = _remedies(model, [one["node"] for one in found]) if found else {}
    listed = [
        Refusal(one["node"], operators[one["node"]], one["reason"], one["found_by"], remedies[one["node"]])
        for one in found
    ]
    return Refusals(listed, model.name, library)


def repair(model: Model, *, thorough: bool = False) -> Model:
    """Rewrite what TensorRT refuses into operators that it takes, where that changes nothing of what is computed.

    Rules are `trtkit.passes.repairs`; each is exact, up to rounding where it says so. Nodes that TensorRT takes stay,
    but what depends on no input is computed beforehand. What no rule covers is still refused afterwards: see
    `refusals`, and `trtkit.engine.hybrid` for a split.

    Args:
        thorough: see `refusals`.

    Returns:
        A new model, verified against the same origin when it is built; the history tells of every repair. The model
        itself when TensorRT takes it as it is.

    Raises:
        BuildError, MissingError: as `refusals`.
    """
    for _ in range(_ROUNDS):
        names = {one["node"] for one in _ask(model, thorough, 600)}
        rewritten = _rewritten(model, names) if names else model
        if rewritten is model:
            return model
        model = rewritten
    return model


def _rewritten(model: Model, names: set[str]) -> Model:
    """Fold, one turn of every rule over the refused nodes, fold; the model itself when nothing applies."""
    folded = run_passes(model, [kind() for kind in _FOLD])
    if names - {node.name for node in every_node(folded.ir.graph)}:
        return folded
    graph, steps = working_copy(folded), []
    infer_shapes(graph)
    names = set(names)
    for rule in (kind(names) for kind in REPAIRS):
        step = _apply(graph, rule)
        steps += [step] if step is not None else []
        names -= rule.repaired.keys()  # TensorRT is asked again before another rule has its turn
    if not steps:
        return model
    history = (*folded.history, *steps)
    repaired = Model(graph, model.name, history=history, origin=model.origin, precision=model.precision)
    # once more: TensorRT takes codes as constants before a DequantizeLinear only, and they may have lost theirs
    return run_passes(repaired, [kind() for kind in _FOLD])


def _apply(graph: ir.Model, rule: Repair) -> Step | None:
    before, start = sum(1 for _ in every_node(graph.graph)), time.perf_counter()
    rule(graph)
    if not rule.done:
        return None
    RemoveDeadCode()(graph)
    after = sum(1 for _ in every_node(graph.graph))
    return Step(rule.title, rule.detail, before, after, time.perf_counter() - start)


def _remedies(model: Model, names: list[str]) -> dict[str, str]:
    """What can be done about each refused node: the rules are tried on a copy."""
    folded = run_passes(model, [kind() for kind in _FOLD])
    left = {node.name for node in every_node(folded.ir.graph)}
    remedies = {name: f"{REPAIR}: folded away" for name in names if name not in left}
    graph = working_copy(folded)
    infer_shapes(graph)
    todo = set(names)
    for rule in (kind(todo) for kind in REPAIRS):
        _apply(graph, rule)
        remedies |= {name: f"{REPAIR}: {what}" for name, what in rule.repaired.items() if name in names}
        left = {node.name for node in every_node(graph.graph)}
        remedies |= {n: f"{REPAIR}: {rule.title}" for n in names if n not in left and n not in remedies}
        todo -= remedies.keys()
    rest = [name for name in names if name not in remedies]
    return remedies | dict.fromkeys(rest, _without_repair(model) if rest else "")


def _without_repair(model: Model) -> str:
    try:
        model.open_reference()
    except ModelError:
        return f"{NOTHING}: ONNX Runtime does not run this model either"
    return f"{SPLIT}: ONNX Runtime can run it between two engines"


def _ask(model: Model, thorough: bool, timeout_s: float) -> list[dict[str, str]]:
    """The refused nodes by name, with reasons, from `trtkit.engine.parser_child` in a process of its own."""
    require()
    with tempfile.TemporaryDirectory(prefix="trtkit-parse-") as name:
        folder = Path(name)
        request = {"onnx_file": str(save(model, folder / "model.onnx")), "thorough": thorough}
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", "trtkit.engine.parser_child", str(folder)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, env=child_environment())
        except subprocess.TimeoutExpired as error:
            raise BuildError(f"TensorRT did not say within {timeout_s:g} s what it refuses of this model.") from error
        if not (folder / "result.json").is_file():
            words = "\n".join(f"  {line}" for line in done.stderr.strip().splitlines()[-5:])
            raise BuildError(f"Asking TensorRT about {model.name!r} failed:\n{words}", "crash")
        found: list[dict[str, str]] = json.loads((folder / "result.json").read_text())
        return found
