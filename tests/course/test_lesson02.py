"""Lesson 02's checks: right answers pass, typical wrong ones and an empty stub fail with a hint; and its tools work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import onnx_ir as ir
import pytest
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

import trtkit
from tests.passes.graphs import parse
from trtkit.bench import optimizers
from trtkit.course import gpu
from trtkit.course.checks import NotSolved
from trtkit.course.checks import lesson02 as checks
from trtkit.course.pictures import lesson02 as pictures
from trtkit.course.random_graphs import caught, difference, nasty, ordinary, random_graph, search
from trtkit.course.rounds import rounds, shuffled
from trtkit.course.wrong_passes import WRONG
from trtkit.model import Model
from trtkit.passes import passes_of, run_passes
from trtkit.passes.common import Rewrite, remove, replace
from trtkit.passes.constant_folding import RANDOM


@pytest.fixture(autouse=True)
def no_display(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trtkit.course.checks.lesson02.show", lambda fig, alt: plt.close(fig))


def hint(check: Any, *answer: Any) -> str:
    with pytest.raises(NotSolved) as caught:
        check(*answer)
    return str(caught.value)


# Exercises 1 and 2


def source(name: str, identities: Mapping[str, str]) -> str:
    while name in identities:
        name = identities[name]
    return name


def test_what_readers_of_an_identity_read(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_source(source)
    assert "Right" in capsys.readouterr().out
    assert "returned nothing yet" in hint(checks.check_source, lambda name, identities: None)
    assert "go on until" in hint(checks.check_source, lambda name, identities: identities.get(name, name))
    assert "it stays" in hint(checks.check_source, lambda name, identities: "a")


def fold(nodes: Any, constants: Any, functions: Any, made: Any = None) -> Any:
    left, known = [], constants if made is None else made
    for out, op, reads in nodes:
        if all(name in constants for name in reads):
            known[out] = functions[op](*(constants[name] for name in reads))
        else:
            left.append((out, op, reads))
    return left


def test_folding(capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_fold(fold)
    assert "Right" in capsys.readouterr().out
    assert "returned nothing yet" in hint(checks.check_fold, lambda nodes, constants, functions: None)
    assert "it has just made" in hint(checks.check_fold, lambda n, c, f: fold(n, c, f, made={}))
    assert "have to stay" in hint(checks.check_fold, lambda n, c, f: [])
    assert "needs its value" in hint(checks.check_fold, lambda n, c, f: fold(n, dict(c), f))
    assert "keep them in order" in hint(checks.check_fold, lambda n, c, f: fold(n, c, f)[::-1])


# Exercises 3 and 4


def share(
    graph: ir.Graph, attributes: bool = True, ordered: bool = True, never: Any = frozenset(RANDOM), ask: bool = True
) -> None:
    seen: dict[Any, ir.Node] = {}
    for node in graph:
        if node.op_type in never:
            continue
        reads = tuple(node.inputs) if ordered else frozenset(node.inputs)
        more = checks.attributes_of(node) if attributes else ()
        twin = seen.setdefault((node.op_type, reads, more), node)
        if twin is not node:
            if ask and replace(node.outputs[0], twin.outputs[0]):
                remove(node)
            elif not ask:
                node.outputs[0].replace_all_uses_with(twin.outputs[0], replace_graph_outputs=True)


def share_by_names(graph: ir.Graph) -> None:
    """Keys from the graph as it was: twins of twins are not seen."""
    keys = {node: (node.op_type, str(node.inputs), str(node.attributes)) for node in graph}
    seen: dict[Any, ir.Node] = {}
    for node, key in keys.items():
        twin = seen.setdefault(key, node)
        if twin is not node and node.op_type not in RANDOM and replace(node.outputs[0], twin.outputs[0]):
            remove(node)


@pytest.fixture(scope="module")
def repeated() -> Model:
    nodes = "a = Relu(x)  b = Relu(x)  c = Neg(a)  d = Neg(b)  e = Add(c, d)  y = Relu(e)"
    return parse(nodes)


def test_sharing(repeated: Model, capsys: pytest.CaptureFixture[str]) -> None:
    checks.check_share(share, repeated)
    assert "goes from 6 nodes to 4; the package's pass leaves 4" in capsys.readouterr().out
    assert "still computed twice" in hint(checks.check_share, lambda graph: None, repeated)
    assert "twins of twins" in hint(checks.check_share, share_by_names, repeated)
    assert "attributes belong" in hint(checks.check_share, lambda g: share(g, attributes=False), repeated)
    assert "order of the inputs" in hint(checks.check_share, lambda g: share(g, ordered=False), repeated)
    assert "two equal outputs" in hint(checks.check_share, lambda g: share(g, ask=False), repeated)
    assert "two draws" in hint(checks.check_share, lambda g: share(g, never=()), repeated)


def merge(
    graph: ir.Graph, backwards: bool = False, in_first: bool = False, cancel: bool = True, ask: bool = True
) -> None:
    for node in graph:
        first = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
        if node.op_type != "Transpose" or first is None or first.op_type != "Transpose":
            continue
        p, q = first.attributes.get_ints("perm", []), node.attributes.get_ints("perm", [])
        perm = [q[i] for i in p] if backwards else [p[i] for i in q]
        if cancel and perm == sorted(perm):
            done = replace(node.outputs[0], first.inputs[0])  # type: ignore[arg-type]
            if done or not ask:
                continue
        if in_first:
            first.attributes["perm"] = ir.AttrInt64s("perm", perm)
            replace(node.outputs[0], first.outputs[0])
            continue
        node.replace_input_with(0, first.inputs[0])
        node.attributes["perm"] = ir.AttrInt64s("perm", perm)


def test_merging(capsys: pytest.CaptureFixture[str]) -> None:
    real = parse("a = Transpose<perm=[1,0]>(x)  b = Transpose<perm=[1,0]>(a)  y = Relu(b)")
    checks.check_merge(merge, real)
    assert "0 Transposes instead of 2" in capsys.readouterr().out
    assert "those two cancel" in hint(checks.check_merge, lambda graph: None, real)
    assert "p[q[i]]" in hint(checks.check_merge, lambda g: merge(g, backwards=True), real)
    assert "another reader" in hint(checks.check_merge, lambda g: merge(g, in_first=True), real)
    assert "inverse ones" in hint(checks.check_merge, lambda g: merge(g, cancel=False), real)
    assert "from input to output" in hint(checks.check_merge, lambda g: merge(g, ask=False), real)
    nothing_to_find = parse("y = Relu(x)")
    assert "at least 1 to find" in hint(checks.check_merge, merge, nothing_to_find)


# Tools of the lesson


@pytest.mark.parametrize("rule", WRONG, ids=lambda rule: rule.__name__)
def test_every_wrong_pass_is_caught(rule: type[Rewrite]) -> None:
    found = search(lambda model: run_passes(model, [rule()]), nasty)
    assert found is not None and found.what


def test_what_ordinary_numbers_never_show() -> None:
    quiet = [r for r in WRONG if not caught(lambda m, r=r: run_passes(m, [r()]), ordinary, 40, bits=False)]
    assert {"ForgetsTheSignOfZero", "ForgetsNotANumber"} <= {rule.__name__ for rule in quiet}


@pytest.mark.parametrize("level", [1, 2])
def test_the_packages_passes_are_right_to_the_bit(level: int) -> None:
    assert search(lambda model: trtkit.optimize(model, level), nasty, 60) is None


def test_differences_are_named() -> None:
    model = parse("y = Neg(x)")
    inputs = ordinary(model, 0)
    assert "has the shape" not in difference(model, lambda m: m, inputs)
    assert "output 'y' was" in difference(model, lambda m: parse("y = Relu(x)"), inputs)
    assert "are called ['z']" in difference(model, lambda m: parse("z = Neg(x)", outputs="float[n, 4] z"), inputs)
    assert "broken" in difference(model, lambda m: parse("y = Neg(a)"), inputs)
    assert random_graph(3).to_bytes() == random_graph(3).to_bytes()


def test_rounds_end_at_the_fixpoint_of_optimize() -> None:
    model = parse("a = Cast<to=11>(x)  b = Cast<to=1>(a)  y = Relu(b)")  # merging makes a Cast to the same type
    counts = rounds(model, passes_of(1))
    assert counts == [3, 2, 1] and counts[-1] == trtkit.optimize(model, 1).node_count
    assert rounds(parse("y = Relu(x)"), passes_of(1)) == [1]
    assert [type(r) for r in shuffled(passes_of(1), 1)] != [type(r) for r in passes_of(1)]


def test_a_race_leaves_out_who_is_not_there_and_names_who_fails() -> None:
    def missing() -> optimizers.Optimizer:
        raise ImportError("no such package")

    def breaks() -> optimizers.Optimizer:
        def run(start: str, target: str) -> None:
            raise ValueError("cannot do that")

        return run

    def wrong() -> optimizers.Optimizer:
        return lambda start, target: trtkit.save(parse("y = Neg(x)"), target) and None

    model = parse("a = Identity(x)  y = Relu(a)")
    found = optimizers.race(model, {"gone": missing, "ours": optimizers.trtkit_at, "breaks": breaks, "wrong": wrong})
    assert list(found) == ["ours", "breaks", "wrong"]
    assert found["ours"].nodes == 1 and found["ours"].equal
    assert "cannot do that" in found["breaks"].why and not found["breaks"].equal
    assert not found["wrong"].equal and found["wrong"].error > 0.1


def test_pictures_draw() -> None:
    levels = gpu.levels()
    swin = levels["swin-t"]["level-1"], levels["swin-t"]["level-2"]
    result = optimizers.Result(5, 0.1, 0.0, None)
    drawn = [
        pictures.operators({"Conv": 2, "Shape": 5}, {"Conv": 2}),
        pictures.folding_limit([10, 10**7], [10, 0], 10**6),
        pictures.rounds({"net": {"ours": [5, 2], "other": [5, 3, 2]}}, "ours"),
        pictures.caught({"rule": (0, 3)}, 10),
        pictures.race({"net": {"trtkit": result, "other": result._replace(why="failed")}}, {"net": 9}),
        pictures.engines({"kernels": {"net": {"before": 3.0, "after": 2.0}}}),
        pictures.effect({"Swin-T": swin}, "recalled"),
        pictures.trials({"trap": True, "other": False}, [True, False]),
    ]
    assert all(isinstance(fig, Figure) for fig in drawn)
