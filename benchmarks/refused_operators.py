"""Which of ONNX's own node tests TensorRT's parser refuses, and which its builder refuses though the parser does not.

    python3 -m benchmarks.refused_operators                  # all of them (about 2 minutes, no GPU needed)
    python3 -m benchmarks.refused_operators --match pool     # by name
    python3 -m benchmarks.refused_operators --out refused.jsonl

Every model is parsed and built in a process of its own, as it is, and where that fails once more with all inputs but
the first as weights, since operators want shapes and axes to be known. `trtkit.engine.suspects` keeps what came out.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.backend_models import cases
from trtkit.engine import parser_child
from trtkit.engine.child import log
from trtkit.engine.trt import require, trt


def attempt(proto: onnx.ModelProto) -> list[Any]:
    """Where it stopped ("parse", "build" or "ok"), whether `supports_model_v2` said yes, and TensorRT's words."""
    logger = log()
    builder = trt.Builder(logger)
    network = parser_child._network(builder)
    parser, data = trt.OnnxParser(network, logger), proto.SerializeToString()
    supported = parser.supports_model_v2(data)
    network = parser_child._network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(data):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return ["parse", supported, [f"{e.node_operator()}: {e.desc()}" for e in errors]]
    config = builder.create_builder_config()
    logger.clear()
    if builder.build_serialized_network(network, config) is None:
        return ["build", supported, logger.errors]
    return ["ok", supported, []]


def frozen(proto: onnx.ModelProto, inputs: dict[str, Any]) -> onnx.ModelProto:
    """The model with its inputs, all but the first, as weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    for value in list(copy.graph.input)[1:]:
        if isinstance(inputs.get(value.name), np.ndarray):
            copy.graph.initializer.append(numpy_helper.from_array(inputs[value.name], value.name))
            copy.graph.input.remove(value)
    return copy


def probe(proto: onnx.ModelProto, inputs: dict[str, Any]) -> tuple[str, bool | None, str]:
    """The better of the two attempts, with the first words."""
    found = [parser_child._in_a_fork(lambda: attempt(proto))]
    if found[0][0] != "ok" and len(inputs) > 1:
        other = frozen(proto, inputs)
        found.append(parser_child._in_a_fork(lambda: attempt(other)))
    outcomes = [("crash", None, one) if isinstance(one, str) else (one[0], one[1], _first(one[2])) for one in found]
    return next((one for one in outcomes if one[0] == "ok"), outcomes[-1])


def _first(words: list[str]) -> str:
    return " ".join(words[0].split())[:300] if words else ""


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.refused_operators", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--match", default="")
    parser.add_argument("--out", type=Path, help="a line of JSON for every model")
    options = parser.parse_args(argv)
    begin, rows = time.perf_counter(), []
    for case in cases(options.match):
        if case.name.startswith("node/"):
            operators = "+".join(sorted({node.op_type for node in case.model.graph.node}))
            outcome, supported, words = probe(case.model, case.inputs)
            row = {"name": case.name, "operators": operators, "stage": outcome}
            rows.append(row | {"supports": supported, "words": words})
    if options.out:
        options.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(rows)
    print(f"{len(rows)} models, onnx {onnx.__version__}, {require()}, {time.perf_counter() - begin:.0f} s")
    return 0


def report(rows: list[dict[str, Any]]) -> None:
    by_operator = defaultdict(list)
    for row in rows:
        by_operator[row["operators"] if "_expanded" not in row["name"] else "(functions written out)"].append(row)
    for operators, of_it in sorted(by_operator.items()):
        bad = [row for row in of_it if row["stage"] != "ok"]
        if bad:
            stages = dict(Counter(row["stage"] for row in of_it))
            print(f"{operators}: {stages}; {bad[0]['stage']}: {bad[0]['words'][:160]}")
    print("all together:", dict(Counter(row["stage"] for row in rows)))
    odd = [row["name"] for row in rows if row["supports"] is not None and row["supports"] == (row["stage"] == "parse")]
    print("supports_model_v2 of another opinion than parsing:", odd or "never")


if __name__ == "__main__":
    raise SystemExit(main())
