"""Damaged ONNX files: flipped bits, cut ends, cycles, missing inputs, absurd numbers, paths that lead outside.

`python3 -m benchmarks.fuzz_files FIRST LAST` runs the cases with these numbers in this process and prints what came of
each; `report` does so in child processes with limits.
"""

from __future__ import annotations

import json
import logging
import resource
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LOT, SECONDS, MEMORY = 50, 240, 8 << 30  # cases in a child process, and what it may take
Mutation = Callable[[onnx.ModelProto, np.random.Generator], "onnx.ModelProto | bytes"]
FUNCTION = """<ir_version: 10, opset_import: ["": 20, "my": 1]> g (float[n, 4] x) => (float[n, 4] y) { y = my.f(x) }
    <domain: "my", opset_import: ["": 20, "my": 1]> f (a) => (c) { b = my.f(a)  c = Relu(b) }"""
BRANCH = """<ir_version: 8, opset_import: ["": 17]> g (float[n, 4] x, bool c) => (float[n, 4] y)
    <float[4] w = {1.0, 2.0, 3.0, 4.0}> { y = If (c) <
        then_branch = a () => (float[n, 4] p) { p = Add(x, w) },
        else_branch = b () => (float[n, 4] q) { q = Neg(x) }> }"""
ABSURD = (-1, 0, 2**31, -(2**63), 2**63 - 1, 10**12)


def seeds() -> list[onnx.ModelProto]:
    """Small valid models to damage: a network, shape arithmetic, a body, a function."""
    from benchmarks import synthetic

    return [synthetic.model("residual", 24), synthetic.model("chain", 12), _conv(), onnx.parser.parse_model(BRANCH)]


def _conv() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 3, 3, 3)), **{k: rng.uniform(0.5, 1, 4) for k in "gbmv"}}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node("BatchNormalization", ["c", *"gbmv"], ["n"], name="norm"),
        helper.make_node("MaxPool", ["n"], ["p"], kernel_shape=[2, 2], strides=[2, 2], name="pool"),
        helper.make_node("Flatten", ["p"], ["f"], axis=1), helper.make_node("Softmax", ["f"], ["y"], axis=-1),
    ]  # fmt: skip
    info = [
        helper.make_tensor_value_info(k, TensorProto.FLOAT, s) for k, s in (("x", ["n", 3, 8, 8]), ("y", ["n", 64]))
    ]
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    graph = helper.make_graph(nodes, "conv", info[:1], info[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def flip_bits(proto: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    data = bytearray(proto.SerializeToString())
    for position in rng.integers(0, len(data), rng.integers(1, 9)):
        data[position] ^= 1 << int(rng.integers(8))
    return bytes(data)


def cut(proto: onnx.ModelProto, rng: np.random.Generator) -> bytes:
    data = proto.SerializeToString()
    return data[: int(rng.integers(len(data)))]


def cycle(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    nodes = [node for node in proto.graph.node if node.input]
    nodes[int(rng.integers(len(nodes)))].input[0] = nodes[int(rng.integers(len(nodes)))].output[0]
    return proto


def missing(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """An input is unknown, empty or gone, or a node gives nothing."""
    node = proto.graph.node[int(rng.integers(len(proto.graph.node)))]
    what = int(rng.integers(4))
    if what == 0:
        del node.output[:]
    elif node.input and what == 1:
        node.input[int(rng.integers(len(node.input)))] = "nowhere"
    elif node.input and what == 2:
        node.input[int(rng.integers(len(node.input)))] = ""
    else:
        del node.input[:]
    return proto


def sizes(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """Absurd numbers as dimensions of an input, of a weight, or in a constant that says a shape."""
    value, what = int(rng.choice(ABSURD)), int(rng.integers(3))
    if what == 0:
        dims = proto.graph.input[0].type.tensor_type.shape.dim
        dims[int(rng.integers(len(dims)))].dim_value = value
        return proto
    weight = proto.graph.initializer[int(rng.integers(len(proto.graph.initializer)))]
    if what == 1 and weight.dims:
        weight.dims[0] = value
        return proto
    huge = rng.choice(ABSURD, 2)
    proto.graph.initializer.append(numpy_helper.from_array(huge, "huge"))
    value_of = numpy_helper.from_array(np.ones(1, np.float32))
    proto.graph.node.insert(0, helper.make_node("ConstantOfShape", ["huge"], ["blown"], value=value_of))
    proto.graph.node.insert(1, helper.make_node("ReduceSum", ["blown"], ["sum"], keepdims=0))
    proto.graph.node.append(helper.make_node("Add", ["y", "sum"], ["y2"]))
    proto.graph.output[0].name = "y2"
    return proto


def attributes(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A number of an attribute is absurd, or the attribute has another type than its operator says."""
    able = [attribute for node in proto.graph.node for attribute in node.attribute]
    if not able:
        proto.graph.node[0].attribute.append(helper.make_attribute("axis", int(rng.choice(ABSURD))))
        return proto
    attribute = able[int(rng.integers(len(able)))]
    value = int(rng.choice(ABSURD))
    if attribute.type == onnx.AttributeProto.INTS and rng.integers(2):
        attribute.ints[int(rng.integers(len(attribute.ints)))] = value
    else:
        attribute.CopyFrom(helper.make_attribute(attribute.name, value))
    return proto


def outside(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    weight = proto.graph.initializer[int(rng.integers(len(proto.graph.initializer)))]
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight), weight.name))  # as raw data
    onnx.external_data_helper.set_external_data(
        weight, str(rng.choice(["../../../etc/passwd", "/etc/passwd", "weights.bin", "", "."])),
        offset=int(rng.choice((0, *ABSURD))), length=int(rng.choice((0, *ABSURD))),
    )  # fmt: skip
    weight.data_location = TensorProto.EXTERNAL
    weight.ClearField("raw_data")
    return proto


def recursion(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    model = onnx.parser.parse_model(FUNCTION)
    if rng.integers(2):
        model.functions[0].node[0].op_type = "g"
    return model


def types(proto: onnx.ModelProto, rng: np.random.Generator) -> onnx.ModelProto:
    """A weight or an input of another type, an operator of another name, an opset that never was."""
    what = int(rng.integers(4))
    if what == 0:
        proto.graph.initializer[int(rng.integers(len(proto.graph.initializer)))].data_type = int(rng.integers(0, 30))
    elif what == 1:
        proto.graph.input[0].type.tensor_type.elem_type = int(rng.integers(0, 30))
    elif what == 2:
        other = str(rng.choice(["Loop", "If", "Concat", "Reshape", "Gather", "Nonsense", ""]))
        proto.graph.node[int(rng.integers(len(proto.graph.node)))].op_type = other
    else:
        proto.opset_import[0].version = int(rng.choice(ABSURD))
    return proto


MUTATIONS: tuple[Mutation, ...] = (
    flip_bits, cut, cycle, missing, sizes, attributes, outside, recursion, types,
)  # fmt: skip


def damaged(number: int) -> tuple[str, bytes]:
    """Case `number`: which damage, and the bytes of the file."""
    mutation, models = MUTATIONS[number % len(MUTATIONS)], seeds()
    rng = np.random.default_rng(number)
    proto = onnx.ModelProto.FromString(models[int(rng.integers(len(models)))].SerializeToString())
    result = mutation(proto, rng)
    return mutation.__name__, result if isinstance(result, bytes) else result.SerializeToString()


def attempt(data: bytes, folder: Path) -> tuple[str, str]:
    """What comes of a file: "refused" by an error of ours, "done", or "crash" with what was raised instead."""
    import trtkit
    from trtkit.errors import TrtkitError
    from trtkit.graph.cost import cost

    file, target = folder / "in.onnx", folder / "out.onnx"
    file.write_bytes(data)
    target.unlink(missing_ok=True)
    try:
        model = trtkit.load(file)
        trtkit.save(trtkit.optimize(model), target)
        trtkit.load(target)
        cost(model)
    except TrtkitError as error:
        return ("refused", "") if str(error).strip() else ("crash", "an error without words")
    except Exception:  # noqa: BLE001 - what must never happen is what is looked for
        return "crash", traceback.format_exc(limit=-3)
    return "done", ""


def lot(first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(first, last):
            kind, data = damaged(number)
            print(json.dumps([number, kind, "started", ""]), flush=True)
            print(json.dumps([number, kind, *attempt(data, Path(folder))]), flush=True)


def report(count: int, start: int = 0) -> int:
    """Run `count` cases in child processes; prints failures and counts, returns how many failed."""
    counts: Counter[tuple[str, str]] = Counter()
    failures, first = 0, start
    while first < start + count:
        last = min(first + LOT, start + count)
        command = [sys.executable, "-W", "ignore", "-m", "benchmarks.fuzz_files", str(first), str(last)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
            text, end = done.stdout, f"exit code {done.returncode}: {done.stderr[-200:]}"
        except subprocess.TimeoutExpired as error:
            text, end = (error.stdout or b"").decode(), f"no end after {SECONDS} s"
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("[") and line.endswith("]")]
        for number, kind, outcome, why in lines:
            counts[kind, outcome] += outcome != "started"
            failures += outcome == "crash"
            if outcome == "crash":
                print(f"CRASH case {number} ({kind}): {why[-500:]}", flush=True)
        if not lines or lines[-1][2] == "started" or lines[-1][0] != last - 1:  # the process ended too early
            failures += 1
            last = (lines[-1][0] if lines else first) + 1
            print(f"LOST case {lines[-1][:2] if lines else first}: {end}", flush=True)
        first = last
    for (kind, outcome), number in sorted(counts.items()):
        if number:
            print(f"  {kind:12s} {outcome:8s} {number}")
    print(f"{sum(counts.values())} damaged files, {failures} crashes or hangs")
    return failures


if __name__ == "__main__":
    lot(int(sys.argv[1]), int(sys.argv[2]))
