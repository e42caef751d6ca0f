"""A module with fake quantisers as an ONNX graph without: what it computes in float, and where they stood."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import onnx_ir as ir

from trtkit.errors import ModelError
from trtkit.importers.torch import from_torch
from trtkit.model import Model
from trtkit.passes import optimize
from trtkit.passes.common import array, remove, replace, working_copy
from trtkit.passes.constant_folding import FoldConstants
from trtkit.passes.dead_code import RemoveDeadCode
from trtkit.passes.dedup import ShareInitializers
from trtkit.quant.calibrate import Calibration
from trtkit.quant.fake_quant import DOMAIN, FakeQuant, Left, nn
from trtkit.quant.qdq import INT8_CODES, QUANTIZABLE, channel_axis, quantize, quantize_report


class Places(NamedTuple):
    """Where fake quantisers, by their names in the module, stand in the exported graph."""

    tensors: dict[str, list[str]]  # activations
    weights: dict[str, str]  # by the node that reads them
    left: list[str]  # nodes whose weights stay in float


def float_model(module: nn.Module, example: Any, name: str | None = None) -> tuple[Model, Places]:
    """The module without its rounding, and where that was.

    Each fake quantiser leaves a mark in the graph. Marks are taken out after `optimize`, so that they stay where they
    belong while nodes around them go or get other names.
    """
    copied = copy.deepcopy(module).cpu().eval()
    for path, part in copied.named_modules():
        if isinstance(part, (FakeQuant, Left)):
            part.mark = path
    optimized = optimize(from_torch(copied, example, name=name or module._get_name()))
    graph, places = working_copy(optimized), Places({}, {}, [])
    for node in [node for node in graph.graph if node.domain == DOMAIN]:
        mark, value = node.attributes["mark"].as_string(), node.inputs[0]
        assert value is not None
        part = copied.get_submodule(mark)
        if isinstance(part, FakeQuant) and not part.weight:
            places.tensors.setdefault(value.name or "", []).append(mark)
        else:
            for reader in _readers(node):
                if isinstance(part, FakeQuant):
                    places.weights[reader] = mark
                else:
                    places.left.append(reader)
        replace(node.outputs[0], value)
        remove(node)
    graph.opset_imports.pop(DOMAIN, None)
    for step in (FoldConstants(), ShareInitializers(), RemoveDeadCode()):
        step(graph)  # a linear layer's weight is transposed behind its mark, for each layer that it is tied to
    return Model(graph, optimized.name, history=optimized.history), places


def _readers(node: ir.Node) -> list[str]:
    """Names of the nodes that read a weight, transposed or not."""
    found = []
    for reader in node.outputs[0].consumers():
        found += _readers(reader) if reader.op_type == "Transpose" else [reader.name or ""]
    return found


def check_places(model: Model, places: Places) -> None:
    """Raise ModelError unless `quantize` would write Q/DQ just where the module rounds."""
    every = [*model.ir.graph.inputs, *(value for node in model.ir.graph for value in node.outputs)]
    any_range = Calibration({value.name or "": 1.0 for value in every}, "none", batches=0)
    plan = quantize(model, None, ops=QUANTIZABLE, skip=places.left, depthwise=True, calibration=any_range)
    nodes = {choice.node for choice in quantize_report(plan) if choice.quantized and choice.op_type != "Add"}
    if forgotten := sorted(nodes - set(places.weights)):
        raise ModelError(f"The weights of {forgotten} are in no nn.Conv*, nn.ConvTranspose* or nn.Linear that the "
                         f"network calls, so that they cannot be trained in low precision. Write F.conv2d, F.linear, "
                         "products with a parameter and nn.MultiheadAttention with such modules.")  # fmt: skip
    rounded = {node.inputs[0].name for node in plan.ir.graph if node.op_type == "QuantizeLinear"}  # type: ignore[union-attr]
    if differ := sorted(map(str, (nodes ^ set(places.weights)) | (rounded ^ set(places.tensors)))):
        raise ModelError(f"trtkit.quantize would treat {differ} in another way than this module does, so that what is "
                         "trained would not be what runs. Name the layers next to it in `skip`.")  # fmt: skip


def write_weight(node: ir.Node, quantized: ir.Node, fake: FakeQuant) -> None:
    """Put learned codes and scales in the place of those that `quantize` found by the largest weight."""
    weight, step = array(node.inputs[1]), fake.step.cpu().numpy()
    dequantize = quantized.inputs[1].producer() if quantized.inputs[1] is not None else None
    assert weight is not None and dequantize is not None
    axis = channel_axis(node, weight.ndim)
    shape = [-1 if place == axis else 1 for place in range(weight.ndim)]
    codes = INT8_CODES._replace(largest=fake.highest).encode(weight / (step.reshape(shape) if step.ndim else step))
    for value, data in zip(dequantize.inputs, (codes, step), strict=False):
        assert value is not None
        value.const_value = ir.Tensor(data, name=value.name)
