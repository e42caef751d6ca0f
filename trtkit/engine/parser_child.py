"""What TensorRT says of a model's nodes before anybody builds it, asked in processes that it may abort.

Started as `python -m trtkit.engine.parser_child FOLDER`: reads FOLDER/request.json and the ONNX file it names, and
leaves FOLDER/result.json, a list of `Found`. Every question is put in a process split off from this one, which has no
logger and no builder yet: an abort, or a failure that would spoil later answers, stays there.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import onnx
import onnx_ir as ir

from trtkit.engine.child import log
from trtkit.engine.suspects import is_suspect
from trtkit.engine.trt import trt
from trtkit.model import every_node
from trtkit.passes.inference import infer_shapes
from trtkit.passes.repairs.written_out import lone_model

_ROUNDS = 50  # a parser that stops at the first error is asked again without that node, so often at most
_OPEN = 4  # what a changeable dimension measures where a node is built alone
# TensorRT wants these of whoever builds; they say nothing about the node.
_NOT_THE_NODE = ("optimization profile", "shape input", "must be build-time constant", "build-time constant")
_INPUTS = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE", "INT8", "UINT8", "INT32", "INT64", "BOOL")
_NO_TYPE = "Failed to convert ONNX date type"  # sic


class Found(TypedDict):
    """A node that TensorRT refuses."""

    node: str
    reason: str
    found_by: str  # "parser" or "builder"


def ask(onnx_file: str, thorough: bool) -> list[Found]:
    """What the parser refuses of a model; then what the builder refuses of suspect nodes, or of all, each alone."""
    model = ir.load(onnx_file)
    infer_shapes(model)
    found: dict[str, Found] = {}
    for _ in range(_ROUNDS):
        new = [one for one in _parser_on(model) if one["node"] not in found]
        found |= {one["node"]: one for one in new}
        if not new or not _without(model, {one["node"] for one in new}):
            break
    for node, reason in _builder_on(model, thorough):
        found[node] = Found(node=node, reason=reason, found_by="builder")
    return list(found.values())


def _parser_on(model: ir.Model) -> list[Found]:
    """What the parser has against a model; a node inside a body counts as the node itself."""
    data = ir.to_proto(model).SerializeToString()
    names = [node.name or "" for node in model.graph]

    def question() -> list[list[Any]]:
        logger = log()
        builder = trt.Builder(logger)
        network = _network(builder)  # in a variable, for the parser does not keep it alive
        parser = trt.OnnxParser(network, logger)
        if parser.supports_model_v2(data):
            return []
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        return [[e.node(), e.node_name(), e.node_operator(), str(e.code()), e.desc()] for e in errors]

    answer = _in_a_fork(question)
    if isinstance(answer, str):
        return _crash(model, answer)
    found = []
    for place, name, operator, code, words in answer:
        if not operator and _NO_TYPE in words:
            found += [Found(node=reader, reason=words, found_by="parser") for reader in _readers_of_odd_inputs(model)]
        else:
            name = name or (names[place] if 0 <= place < len(names) else "")
            found.append(Found(node=name, reason=_words(code, words), found_by="parser"))
    return found


def _crash(model: ir.Model, how: str) -> list[Found]:
    """The parser took its process with it: ask about every node alone, and blame those that do so again."""
    blamed = []
    for node in every_node(model.graph):
        lone = lone_model(node, model.opset_imports.get(node.domain, 0))
        if lone is not None and isinstance(answer := _in_a_fork(partial(_try, lone)), str):
            blamed.append(Found(node=node.name or "", reason=answer, found_by="parser"))
    return blamed or [Found(node="", reason=how, found_by="parser")]


def _words(code: str, words: str) -> str:
    """TensorRT's reason on one line. For an operator it does not have that is the condition that failed: `false`."""
    said = "\n".join(line for line in words.splitlines() if "cudaError" not in line).strip()
    return f"{code.rpartition('.')[2]}: {said}"


def _readers_of_odd_inputs(model: ir.Model) -> list[str]:
    """Nodes that read an input of a type that TensorRT does not have; it does not say which input it means."""
    return [
        reader.name or ""
        for value in model.graph.inputs
        if value.dtype is None or not isinstance(value.type, ir.TensorType) or value.dtype.name not in _INPUTS
        for reader, _ in value.uses()
    ]


def _without(model: ir.Model, names: Collection[str]) -> bool:
    """Take nodes out of the graph, their results being inputs instead; False when nothing is left to ask about.

    Who reads a result that can be no input (a sequence, a tensor of unknown rank) goes as well, without being blamed.
    """
    todo = [node for node in model.graph if any(inner.name in names for inner in [node, *_inside(node)])]
    while todo:
        node = todo.pop()
        if node.graph is not model.graph:
            continue  # gone already, or in the body of one that is
        for number, old in enumerate(node.outputs):
            outputs = [value for value in model.graph.outputs if value is not old]
            model.graph.outputs.clear()
            model.graph.outputs.extend(outputs)
            if not old.uses():
                continue
            new = ir.Value(name=f"{old.name}/given{number}", type=old.type, shape=old.shape)
            if isinstance(old.type, ir.TensorType) and old.shape is not None:
                model.graph.inputs.append(new)
            else:
                todo += [_top(reader, model.graph) for reader, _ in old.uses()]
            old.replace_all_uses_with(new)
        model.graph.remove(node, safe=True)
    for value in [v for v in model.graph.inputs if not v.uses() and not v.is_graph_output()]:
        model.graph.inputs.remove(value)
    return bool(len(model.graph)) and bool(model.graph.outputs)


def _top(node: ir.Node, graph: ir.Graph) -> ir.Node:
    """The node of the main graph in whose bodies a node is; the node itself where it is in that graph."""
    return next(top for top in graph if top is node or any(inner is node for inner in _inside(top)))


def _inside(node: ir.Node) -> Iterable[ir.Node]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from every_node(attribute.as_graph())


def _builder_on(model: ir.Model, thorough: bool) -> Iterable[tuple[str, str]]:
    """Nodes that the builder refuses when they are all there is, with its words; equal nodes are asked about once."""
    answers: dict[bytes, str] = {}
    for node in model.graph:
        if not (thorough or is_suspect(node)):
            continue
        lone = _with_constants(node, model.opset_imports.get(node.domain, 0))
        if lone is None:
            continue
        key = _nameless(lone)
        if key not in answers:
            answer = _in_a_fork(partial(_try, lone))
            answers[key] = answer if isinstance(answer, str) else "\n".join(answer)
        if answers[key]:
            yield node.name or "", answers[key]


def _with_constants(node: ir.Node, opset: int) -> onnx.ModelProto | None:
    """The node alone, its small constant inputs as they are, since operators want axes and shapes to be known."""
    lone = lone_model(node, opset)
    if lone is None:
        return None
    values = dict.fromkeys(value for value in node.inputs if value is not None)
    for value, info in zip(values, list(lone.graph.input), strict=True):
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None and not value.is_graph_input():
            lone.graph.initializer.append(onnx.numpy_helper.from_array(tensor.numpy(), info.name))
            lone.graph.input.remove(info)
    return lone


def _nameless(lone: onnx.ModelProto) -> bytes:
    same = onnx.ModelProto()
    same.CopyFrom(lone)
    same.graph.node[0].name = ""
    return same.SerializeToString()


def _try(lone: onnx.ModelProto) -> list[str]:
    """Build a model of one node; what TensorRT says against the node, empty when it builds or cannot be judged so."""
    logger = log()
    builder = trt.Builder(logger)
    network = _network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(lone.SerializeToString()):
        return []  # not in the parser's list, so it is fine where it stands: alone it lacks something
    config, profile = builder.create_builder_config(), builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        shape = trt.Dims([d if d > 0 else _OPEN for d in tensor.shape])
        profile.set_shape(tensor.name, shape, shape, shape)
    config.add_optimization_profile(profile)
    logger.clear()
    if builder.build_serialized_network(network, config) is not None:
        return []
    words = [line.strip() for message in logger.errors for line in message.splitlines() if "cudaError" not in line]
    return [] if any(hint in line for line in words for hint in _NOT_THE_NODE) else words[:1] or ["it did not say why"]


def _network(builder: trt.Builder) -> trt.INetworkDefinition:
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def _in_a_fork(question: Callable[[], list[Any]]) -> list[Any] | str:
    """The answer of a process split off for the question; a sentence when it died of it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(read)
            with os.fdopen(write, "w") as pipe:
                json.dump(question(), pipe)
            code = 0
        finally:
            os._exit(code)  # not exit: what TensorRT registered for the end of a process stays undone
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        signal = os.WTERMSIG(status)
        return f"TensorRT ended its process (signal {signal})" if signal else "TensorRT's Python bindings failed"
    answer: list[Any] = json.loads(text)
    return answer


def main(folder: Path) -> int:
    request = json.loads((folder / "request.json").read_text())
    found = ask(request["onnx_file"], request["thorough"])
    (folder / "result.json").write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
