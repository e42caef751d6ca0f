"""Instant checks of lesson 02's exercises."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnx_ir as ir

import trtkit
from trtkit.course.checks import NotSolved, show
from trtkit.course.pictures import lesson02 as pictures
from trtkit.course.pictures.lesson04 import renamed
from trtkit.course.random_graphs import difference, nasty, random_graph
from trtkit.model import Model
from trtkit.passes.common import infer_shapes
from trtkit.passes.cse import ShareSubexpressions, comparable
from trtkit.passes.dead_code import RemoveDeadCode

Node = tuple[str, str, Sequence[str]]  # what it computes, the operator, what it reads
GraphPass = Callable[[ir.Graph], Any]

_IDENTITIES = {"b": "a", "d": "c", "e": "d", "f": "e"}
FUNCTIONS: dict[str, Callable[..., float]] = {
    "Add": lambda a, b: a + b, "Mul": lambda a, b: a * b, "Neg": lambda a: -a, "Sub": lambda a, b: a - b,
}  # fmt: skip
NODES: tuple[Node, ...] = (
    ("k", "Mul", ("two", "three")), ("a", "Add", ("x", "k")), ("m", "Neg", ("k",)), ("n", "Add", ("m", "two")),
    ("b", "Mul", ("a", "n")), ("y", "Sub", ("b", "m")),
)  # fmt: skip
CONSTANTS = {"two": 2.0, "three": 3.0}


def check_source(source: Callable[[str, Mapping[str, str]], Any]) -> None:
    """Lesson 02, exercise 1: what the readers of a tensor read once all Identities are gone."""
    right = {"a": "a", "b": "a", "c": "c", "d": "c", "e": "c", "f": "c"}
    yours = {name: source(name, dict(_IDENTITIES)) for name in right}
    rows = [("a reader of", name, str(yours[name]), yours[name] == want) for name, want in right.items()]
    show(renamed(rows), "What a reader of each tensor reads by your code; wrong ones are red.")
    for name, want in right.items():
        if yours[name] == want:
            continue
        if yours[name] is None:
            raise NotSolved(f"source({name!r}, identities) returned nothing yet. It returns the name of a tensor.")
        hint = "it is no Identity's output, so it stays" if name == want else (
            f"{_IDENTITIES[name]!r} is an Identity's output, too: go on until you come to one that is not"
        )  # fmt: skip
        raise NotSolved(f"Whoever read {name!r} reads {yours[name]!r} by your code, and should read {want!r}: {hint}.")
    print("Right: four Identities are gone, in one walk, chains and all.")


def check_fold(fold: Callable[..., Any]) -> None:
    """Lesson 02, exercise 2: constant folding on a list of nodes."""
    constants = dict(CONSTANTS)
    answer = fold([(out, op, list(reads)) for out, op, reads in NODES], constants, FUNCTIONS)
    if answer is None:
        raise NotSolved("fold(nodes, constants, functions) returned nothing yet. It returns the list of nodes left.")
    left, want = [node[0] for node in answer], ["a", "b", "y"]
    values = {"k": 6.0, "m": -6.0, "n": -4.0}
    rows = [(op, out, "stays" if out in left else f"= {constants.get(out, '?')}", (out in left) == (out in want))
            for out, op, _ in NODES]  # fmt: skip
    show(renamed(rows), "Each node and what your code makes of it; wrong ones are red.")
    if gone := [name for name in want if name not in left]:
        raise NotSolved(f"{gone} depend on the input x, whose value nobody knows yet: they have to stay.")
    if kept := [name for name in left if name not in want]:
        raise NotSolved(f"{kept} could be computed now. Does your walk look at constants that it has just made?")
    for name, value in values.items():
        if constants.get(name) != value:
            raise NotSolved(f"{name} is gone, and constants[{name!r}] is {constants.get(name)} instead of {value}: "
                            "who reads it needs its value.")  # fmt: skip
    if left != want:
        raise NotSolved(f"The nodes left are {left}; keep them in order, {want}.")
    print("Right: one walk folds a whole chain, since nodes come after those they read.")


class _Trap(NamedTuple):
    """A graph on which a forgotten condition shows: its nodes, how many a right pass leaves, the hint, its outputs."""

    name: str
    nodes: str
    left: int
    hint: str
    outputs: tuple[str, ...] = ("y",)

    def model(self) -> Model:
        outputs = ", ".join(f"float[2, 2, 2] {name}" for name in self.outputs)
        head = f'<ir_version: 10, opset_import: ["": 20]> g (float[2, 2, 2] x) => ({outputs})'
        nodes = self.nodes.replace("Turn", "Transpose<perm=[1,2,0]>").replace("Swap", "Transpose<perm=[0,2,1]>")
        return trtkit.load(onnx.parser.parse_model(f"{head} {{ {nodes} }}"))


TURNS = ("Transpose", "Transpose", "Transpose", "Neg")  # what random graphs of exercise 4 are made of
SHARE_TRAPS = (
    _Trap("two equal nodes", "a = Relu(x)  b = Relu(x)  y = Add(a, b)", 2,
          "Relu(x) is still computed twice. Remember each node under what it computes, and let later twins go"),
    _Trap("twins of twins", "a = Relu(x)  b = Relu(x)  c = Neg(a)  d = Neg(b)  y = Add(c, d)", 3,
          "c and d are equal once b is a: look at a node's inputs after those before it were shared"),
    _Trap("another attribute", "a = LeakyRelu<alpha=0.1>(x)  b = LeakyRelu<alpha=0.5>(x)  y = Sub(a, b)", 3,
          "two LeakyRelus with another alpha are not equal: attributes belong to the key"),
    _Trap("another order of inputs", "a = Relu(x)  b = Sub(x, a)  c = Sub(a, x)  y = Mul(b, c)", 4,
          "x - a is not a - x: the order of the inputs belongs to the key"),
    _Trap("two equal outputs", "y = Relu(x)  z = Relu(x)", 2,
          "both are outputs, and the world outside asks for both names: where replace() says False, the node stays",
          ("y", "z")),
    _Trap("random numbers", "a = RandomNormalLike(x)  b = RandomNormalLike(x)  y = Sub(a, b)", 3,
          "two draws of random numbers are two: leave out what is in RANDOM"),
)  # fmt: skip
MERGE_TRAPS = (
    _Trap("inverse ones", "a = Turn(x)  b = Transpose<perm=[2,0,1]>(a)  y = Relu(b)", 1,
          "those two cancel: their perm composed is 0, 1, 2. replace() the second's output by the first's input"),
    _Trap("not inverse", "a = Turn(x)  b = Swap(a)  y = Relu(b)", 2,
          "one Transpose is enough, and its perm is p[q[i]]: let the second read what the first one read"),
    _Trap("another reader", "a = Turn(x)  b = Swap(a)  y = Add(a, b)", 3,
          "the first Transpose has another reader, which still needs it as it was: change only the second"),
    _Trap("three in a row", "a = Turn(x)  b = Turn(a)  c = Turn(b)  y = Relu(c)", 1,
          "three turns by one place are none: after the first two were merged, the third meets the merged one"),
    _Trap("from input to output", "a = Turn(x)  y = Transpose<perm=[2,0,1]>(a)", 1,
          "y is an output and x an input, so a node must stay between them: where replace() says False, merge instead"),
)  # fmt: skip


def check_share(share: GraphPass, real: Model) -> None:
    """Lesson 02, exercise 3: common-subexpression elimination, on traps, random graphs and a real network."""
    _check_pass(share, SHARE_TRAPS, [random_graph(seed) for seed in range(45)])
    yours, ours = _rewritten(real, share), real.copy()
    ShareSubexpressions()(ours.ir)
    RemoveDeadCode()(ours.ir)
    _check_real(real, yours, least=0.9 * (real.node_count - ours.node_count))
    print(f"Right: {real.name} goes from {real.node_count} nodes to {yours.node_count}; the package's pass leaves "
          f"{ours.node_count}.")  # fmt: skip


def check_merge(merge: GraphPass, real: Model) -> None:
    """Lesson 02, exercise 4: Transposes in a row, on traps, random graphs and a real network."""
    _check_pass(merge, MERGE_TRAPS, [random_graph(seed, TURNS) for seed in range(45)])
    yours = _rewritten(real, merge)
    _check_real(real, yours, least=1)
    before, after = (model.op_counts.get("Transpose", 0) for model in (real, yours))
    print(f"Right: {real.name} has {after} Transposes instead of {before}, and the same answers.")


def _check_pass(function: GraphPass, traps: Sequence[_Trap], graphs: Sequence[Model]) -> None:
    outcomes = {trap.name: _fails(function, trap) for trap in traps}
    wrong = [difference(model, lambda m: _rewritten(m, function), nasty(model, i)) for i, model in enumerate(graphs)]
    bad = sum(map(bool, wrong))
    show(pictures.trials({name: not why for name, why in outcomes.items()}, [not why for why in wrong]),
         f"Your pass on {len(traps)} traps and {len(graphs)} random graphs; wrong on {bad} of these.")  # fmt: skip
    for trap in traps:
        if outcomes[trap.name]:
            raise NotSolved(f"Trap '{trap.name}': {outcomes[trap.name]}. Hint: {trap.hint}.")
    if bad:
        number = next(i for i, why in enumerate(wrong) if why)
        more = "" if traps is SHARE_TRAPS else ", checks.TURNS"
        raise NotSolved(f"All traps are passed, and random graph {number} is not: {wrong[number]}. Draw it: "
                        f"graph.draw(checks.random_graph({number}{more})).")  # fmt: skip


def _fails(function: GraphPass, trap: _Trap) -> str:
    """What is wrong on a trap, in a few words; "" where nothing is."""
    model = trap.model()
    after = _rewritten(model, function)
    if "Random" not in trap.nodes and (what := difference(model, lambda _: after, nasty(model, 1))):
        return what
    if after.node_count != trap.left:
        return f"it has {model.node_count} nodes, {trap.left} should be left, and your pass leaves {after.node_count}"
    return ""


def _rewritten(model: Model, function: GraphPass) -> Model:
    """A copy that the reader's pass went over, with what became dead taken out; shapes and types are known in it."""
    copy = model.copy()
    infer_shapes(copy.ir)
    function(copy.ir.graph)
    RemoveDeadCode()(copy.ir)
    return Model(copy.ir, model.name, origin=model)


def _check_real(before: Model, after: Model, least: float) -> None:
    gone = before.node_count - after.node_count
    if gone < least:
        raise NotSolved(f"On {before.name} your pass removes {gone} nodes, and there are at least {least:.0f} to find.")
    inputs = before.random_inputs(batch=2)
    for name, want in before.run(inputs).items():
        if not np.allclose(after.run(inputs)[name], want, rtol=1e-4, atol=1e-4):
            raise NotSolved(f"On {before.name} the output {name!r} changes. Which of your conditions is not enough?")


def attributes_of(node: ir.Node) -> tuple[Hashable, ...]:
    """A node's attributes in a form that can be compared and hashed; one that cannot is equal to itself alone."""
    values = ((a, comparable(a)) for a in node.attributes.values())
    found = [(a.name, a.type.value, id(a) if value is None else value) for a, value in values]
    return tuple(sorted(found, key=lambda part: part[0]))


def perm_of(node: ir.Node) -> list[int] | None:
    """The `perm` of a Transpose; None for any other node."""
    return list(node.attributes.get_ints("perm", [])) if node.op_type == "Transpose" else None
