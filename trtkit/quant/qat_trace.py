"""A torch module as a graph of calls, with fake quantisers where `quant.qdq` would put Q/DQ in the ONNX graph."""

from __future__ import annotations

import copy
import operator
from collections.abc import Collection, Mapping
from typing import Any

from trtkit.errors import ModelError
from trtkit.quant.fake_quant import FakeQuant, fx, nn, torch  # asked for there: it says how to get PyTorch
from trtkit.quant.qdq import INT8_CODES, quantize_weight

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)
LAYERS = (*CONVOLUTIONS, nn.Linear)
_ADDITIONS = (operator.add, operator.iadd, torch.add, "add", "add_")
_NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
_CLOSE = 1e-3  # of the largest output: what folding batch norm in float32 may change


def trace(module: nn.Module) -> fx.GraphModule:
    """A copy as a graph of calls, in eval mode, batch norm folded and no-ops left out."""
    _check_module(module)
    copied = copy.deepcopy(module).eval()
    try:
        graph = fx.Tracer().trace(copied)
    except Exception as error:  # whatever the module's own code makes of torch.fx's stand-ins for tensors
        reason = (str(error).strip().splitlines() or [repr(error)])[0]
        raise ModelError(
            f"torch.fx cannot trace {type(module).__name__}: {reason}. Python code that looks at values or sizes of "
            "tensors stops it: move that out of `forward`, or prepare the part without it."
        ) from error
    traced = fx.GraphModule(copied, graph, type(module).__name__)
    for node in list(graph.nodes):
        if is_a(traced, node, _NO_OPS) or (is_a(traced, node, nn.modules.batchnorm._BatchNorm) and _fold(traced, node)):
            node.replace_all_uses_with(node.all_input_nodes[0])
            graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def _check_module(module: nn.Module) -> None:
    name = type(module).__name__
    parts = dict(module.named_modules())
    for path, part in parts.items():
        if isinstance(part, FakeQuant) or type(part).__module__.startswith(("torch.ao.", "torchao.")):
            raise ModelError(
                f"{name} is quantised already: {path or 'it'} is a {type(part).__name__}. "
                "Start from the float32 module."
            )
    for path, part in parts.items():
        if torch.nn.utils.parametrize.is_parametrized(part):
            raise ModelError(
                f"{path!r} of {name} computes its weight (weight_norm or the like), and what is trained here is the "
                "weight itself: call torch.nn.utils.parametrize.remove_parametrizations on it first."
            )
    for path, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if tensor.device.type != "cpu":
            raise ModelError(f"{path!r} of {name} is on {tensor.device}: prepare module.cpu(), then train it anywhere.")
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise ModelError(f"{path!r} of {name} is {tensor.dtype}; train the float32 module: module.float().")
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{path!r} of {name} holds NaN or infinity. Load weights that are sound.")


def is_a(traced: fx.GraphModule, node: fx.Node, kinds: Any) -> bool:
    return node.op == "call_module" and isinstance(traced.get_submodule(str(node.target)), kinds)


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, CONVOLUTIONS) and 1 < layer.groups == layer.in_channels


def _fold(traced: fx.GraphModule, norm: fx.Node) -> bool:
    """Work a batch norm into the layer before it, as `passes.batch_norm` does in a graph; whether that was possible."""
    before = norm.all_input_nodes[0]
    calls = [node.target for node in traced.graph.nodes]
    alone = len(before.users) == 1 and calls.count(before.target) == 1
    if not alone or not is_a(traced, before, LAYERS):
        return False
    layer, part = traced.get_submodule(str(before.target)), traced.get_submodule(str(norm.target))
    assert isinstance(layer, LAYERS) and isinstance(part, nn.modules.batchnorm._BatchNorm)
    if part.running_mean is None or (isinstance(layer, TRANSPOSED) and layer.groups > 1):
        return False
    folded: nn.Module
    if isinstance(layer, nn.Linear):
        if layer.out_features != part.num_features:  # it normalises over another axis
            return False
        folded = torch.nn.utils.fusion.fuse_linear_bn_eval(layer, part)
    else:
        folded = torch.nn.utils.fusion.fuse_conv_bn_eval(layer, part, isinstance(layer, TRANSPOSED))
    traced.set_submodule(str(before.target), folded)
    return True


def weight_quantizer(layer: nn.Module, bits: int, per_channel: bool, learn: bool) -> FakeQuant:
    """With the steps that `quantize` gives this weight."""
    assert isinstance(layer.weight, torch.Tensor)
    axis = int(isinstance(layer, TRANSPOSED)) if per_channel else None
    codes = INT8_CODES._replace(largest=2 ** (bits - 1) - 1)
    _, scale = quantize_weight(layer.weight.detach().numpy(), axis, codes)
    return FakeQuant(scale, bits=bits, axis=axis, weight=True, learn=learn)


def round_activations(traced: fx.GraphModule, chosen: Collection[str], learn: bool) -> None:
    """Put one FakeQuant behind each tensor that a chosen layer or an addition fused into one reads."""
    calls = [node for node in traced.graph.nodes if node.op == "call_module" and node.target in chosen]
    readers = [(node, node.all_input_nodes[0]) for node in calls] + _residual_branches(traced, calls)
    body = next(node for node in traced.graph.nodes if node.op != "placeholder")
    pairs: dict[fx.Node, fx.Node] = {}
    for reader, value in readers:
        if value not in pairs:
            name = f"fake_quant_{value.name.strip('_')}"
            traced.add_submodule(name, FakeQuant(1.0, learn=learn))
            with traced.graph.inserting_before(body if value.op == "placeholder" else value.next):
                pairs[value] = traced.graph.call_module(name, (value,))
        reader.replace_input_with(value, pairs[value])
    traced.recompile()


def _residual_branches(traced: fx.GraphModule, chosen: list[fx.Node]) -> list[tuple[fx.Node, fx.Node]]:
    """Additions and the branch to be rounded: the rule of the same name in `quant.qdq`, on torch's graph."""
    places = []
    order = {node: i for i, node in enumerate(chosen) if is_a(traced, node, CONVOLUTIONS) and len(node.users) == 1}
    for node in traced.graph.nodes:
        if node.op not in ("call_function", "call_method") or node.target not in _ADDITIONS or node.kwargs:
            continue
        branches = [value for value in node.args if isinstance(value, fx.Node) and value.op != "get_attr"]
        if len(set(branches)) != 2:
            continue
        makers = [(order[value], i) for i, value in enumerate(branches) if value in order]
        if makers:
            places.append((node, branches[1 - max(makers)[1]]))
    return places


def check_same(module: nn.Module, traced: fx.GraphModule, example: Any) -> None:
    """Raise ModelError if rewriting has changed what the module computes, as it does where it works in place."""
    fakes = [part for part in traced.modules() if isinstance(part, FakeQuant)]
    for fake in fakes:
        fake.enabled = False
    results = [call(part, example) for part in (copy.deepcopy(module).eval(), traced)]
    for fake in fakes:
        fake.enabled = True
    for want, got in zip(*results, strict=True):
        if not torch.allclose(want, got, rtol=0, atol=_CLOSE * float(want.abs().max())):
            raise ModelError(
                f"Traced and folded, {type(module).__name__} computes something else. Does it change a tensor in place "
                "(inplace=True, +=) that is read again, or normalise what a linear layer gives over another axis than "
                "the last? Write that in another way."
            )


def call(module: nn.Module, example: Any) -> list[torch.Tensor]:
    """All outputs for the example inputs, which stay as they are."""
    given = copy.deepcopy(example)
    try:
        with torch.no_grad():
            if isinstance(given, Mapping):
                found = module(**given)
            else:
                found = module(*given) if isinstance(given, (tuple, list)) else module(given)
    except Exception as error:  # shapes, types, names of arguments: the module's own words
        raise ModelError(f"{type(module).__name__} cannot be called with the example inputs: {error}") from error
    leaves = torch.utils._pytree.tree_leaves(found)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
