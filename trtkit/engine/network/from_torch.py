"""A torch module, layer by layer: torch.fx writes down what its `forward` calls, and each call has a rule.

Modules with a rule in `torch_modules` are taken whole; the others are looked into, down to the functions in
`torch_functions`.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.network.network import Framework, Network
from trtkit.engine.network.writer import Writer
from trtkit.errors import MissingError, ModelError, extra

if TYPE_CHECKING:
    import torch
    from torch import fx

_WAY_OUT = "Take the way through ONNX instead, trtkit.build(trtkit.load(module, example))."


def from_torch(
    module: torch.nn.Module, example: Any, *, name: str | None = None, dynamic_batch: bool = True
) -> Network:
    """Write a torch module as a TensorRT network, each of its layers by a call of the network API.

    Args:
        example: a tensor, a tuple of tensors, or a dict by argument name of `forward`: it says shapes and types.
        dynamic_batch: let the first dimension of each input change.

    Raises:
        ModelError: a layer or function without a rule, named; or torch.fx cannot follow `forward`.
        BuildError: TensorRT refuses a layer, in its own words.
        MissingError: PyTorch is not installed.

    >>> import torch
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU())
    >>> network = from_torch(net, torch.rand(1, 3, 16, 16))
    >>> network
    Network('Sequential', from torch: 2 layers of TensorRT; input float32 (batch, 3, 16, 16) -> output float32
    (batch, 8, 14, 14))
    >>> network.check().passed
    True
    """
    try:
        import torch
    except ImportError as error:
        raise MissingError(f"Writing a network from torch needs PyTorch: {extra('torch')}.") from error
    examples = _by_name(module, example)
    training = {part: part.training for part in module.modules()}
    module.eval()
    try:
        graph = _trace(module, list(examples))
        w = Writer("torch")
        with torch.no_grad():
            results = _write(w, module, graph, examples, dynamic_batch)
    finally:
        for part, mode in training.items():
            part.training = mode

    def run(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        return _run(module, {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in examples})

    names = ["output"] if len(results) == 1 else [f"output_{i}" for i in range(len(results))]
    return Network(w, name or type(module).__name__, dict(zip(names, results, strict=True)), Framework("PyTorch", run))


def _by_name(module: torch.nn.Module, example: Any) -> dict[str, torch.Tensor]:
    """Example tensors by argument name of `forward`."""
    import torch

    if isinstance(example, Mapping):
        found = dict(example)
    else:
        values = example if isinstance(example, (tuple, list)) else (example,)
        try:
            found = dict(inspect.signature(module.forward).bind(*values).arguments)
        except TypeError as error:
            name = type(module).__name__
            raise ModelError(f"{name} cannot be called with {len(values)} example inputs: {error}.") from None
    return {key: torch.as_tensor(value) for key, value in found.items()}


def _trace(module: torch.nn.Module, arguments: list[str]) -> fx.Graph:
    """What `forward` calls, with the modules that have a rule as one call each."""
    from torch import fx

    from trtkit.engine.network.torch_modules import rule_for

    class Tracer(fx.Tracer):
        def is_leaf_module(self, m: torch.nn.Module, module_qualified_name: str) -> bool:
            return rule_for(m) is not None or super().is_leaf_module(m, module_qualified_name)

    parameters = inspect.signature(module.forward).parameters
    fixed = {  # what an example did not give stays at its default
        key: p.default for key, p in parameters.items() if key not in arguments and p.default is not p.empty
    }
    if rule_for(module) is not None:
        return _alone(module, arguments)
    try:
        return Tracer().trace(module, concrete_args=fixed)
    except Exception as error:  # whatever a `forward` raises that was called with tensors without values
        raise ModelError(
            f"torch.fx cannot follow the forward of {type(module).__name__}, perhaps for an `if` or a loop on values: "
            f"{str(error).strip().splitlines()[0] if str(error).strip() else error!r}. {_WAY_OUT}"
        ) from error


def _alone(module: torch.nn.Module, arguments: list[str]) -> fx.Graph:
    """The graph of a module that is itself one call."""
    from torch import fx

    graph = fx.Graph()
    graph.output(graph.call_module("", tuple(graph.placeholder(name) for name in arguments)))
    return graph


def _write(
    w: Writer, module: torch.nn.Module, graph: fx.Graph, examples: dict[str, torch.Tensor], dynamic: bool
) -> list[Any]:
    """Call the rule of every node in order; returns the output tensors."""
    from torch import fx

    from trtkit.engine.network import torch_functions, torch_modules

    values: dict[Any, Any] = {}

    def given(argument: Any) -> Any:
        return fx.node.map_arg(argument, lambda node: values[node])

    for node in graph.nodes:
        if node.op == "placeholder":
            values[node] = _input(w, node, examples, dynamic)
        elif node.op == "get_attr":
            values[node] = _attribute(module, node.target)
        elif node.op == "output":
            return _outputs(w, given(node.args[0]))
        else:
            with w.layer(_name_of(node, module)):
                if node.op == "call_module":
                    part = module.get_submodule(node.target)
                    values[node] = torch_modules.write(w, part, *given(node.args), **given(node.kwargs))
                else:
                    values[node] = torch_functions.write(w, node, given(node.args), given(node.kwargs))
    raise ModelError(f"{type(module).__name__}.forward returns nothing.")


def _name_of(node: fx.Node, module: torch.nn.Module) -> str:
    return (str(node.target) or type(module).__name__) if node.op == "call_module" else str(node.name)


def _input(w: Writer, node: fx.Node, examples: dict[str, torch.Tensor], dynamic: bool) -> Any:
    if node.target not in examples:
        return node.args[0] if node.args else None  # an argument left at its default
    example = examples[node.target]
    shape = (-1, *example.shape[1:]) if dynamic and example.ndim else tuple(example.shape)
    return w.input(str(node.target), shape, str(example.dtype).removeprefix("torch."))


def _attribute(module: torch.nn.Module, path: str) -> np.ndarray:
    """A parameter or buffer that `forward` uses by itself."""
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found.detach().cpu().numpy() if hasattr(found, "detach") else found


def _outputs(w: Writer, result: Any) -> list[Any]:
    """The tensors in what `forward` returns: one, several, or a dict of them."""
    from torch.utils import _pytree as tree

    found = [leaf for leaf in tree.tree_leaves(result) if leaf is not None]
    wrong = [leaf for leaf in found if not hasattr(leaf, "is_network_input")]
    if wrong or not found:
        raise ModelError(f"forward must return tensors that depend on its inputs, not {wrong[:1] or 'nothing'}.")
    return found


def _run(module: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> list[np.ndarray]:
    """What the module itself computes, in the order of the outputs."""
    import torch
    from torch.utils import _pytree as tree

    training = {part: part.training for part in module.modules()}
    module.eval()
    weight = next(module.parameters(), None)
    try:
        with torch.no_grad():
            results = module(**{key: t if weight is None else t.to(weight.device) for key, t in tensors.items()})
    except Exception as error:
        raise ModelError(f"{type(module).__name__} itself fails on these inputs: {error}") from error
    finally:
        for part, mode in training.items():
            part.training = mode
    return [leaf.cpu().numpy() for leaf in tree.tree_leaves(results) if leaf is not None]
