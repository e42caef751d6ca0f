"""The rules for functions and methods that a torch module calls by itself: `torch.relu(x)`, `x + y`, `x.flatten(1)`.

torch spells most of them in several ways (torch.add, operator.add, Tensor.add, Tensor.add_); the rule goes by the name,
and takes the arguments in torch's order.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trtkit.engine.network import layers
from trtkit.engine.network.torch_modules import adaptive_avg_pool, avg_pool, flatten, max_pool, refuse_if
from trtkit.engine.network.writer import Writer
from trtkit.engine.trt import trt
from trtkit.errors import ModelError

if TYPE_CHECKING:
    from torch import fx

RULES: dict[str, Callable[..., Any]] = {
    "flatten": flatten, "max_pool2d": max_pool, "avg_pool2d": avg_pool, "adaptive_avg_pool2d": adaptive_avg_pool,
    "silu": layers.silu, "hardswish": layers.hard_swish,
}  # fmt: skip
_RECKONING = ("add", "sub", "mul", "floordiv", "truediv")
_MODULES = ("_operator", "operator", "math", "torch", "builtins", "torchvision")


def rule(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Mark a function as the rule for torch's functions of these names."""

    def mark(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(names, function))
        return function

    return mark


def write(w: Writer, node: fx.Node, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Add the layers of one call; a call of numbers alone is done at once.

    Raises:
        ModelError: there is no rule for the function.
    """
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
    home = "torch" if node.op == "call_method" else str(getattr(node.target, "__module__", None) or "torch")
    if home.split(".")[0] not in _MODULES:
        raise _no_rule(w, f"{home}.{name}")
    kwargs = {key: value for key, value in kwargs.items() if key != "inplace"}
    if not any(_is_tensor(one) for one in _leaves([args, kwargs])):
        return _of_numbers(w, node, name, args, kwargs)
    found = RULES.get(name.strip("_"))  # relu_ is relu on the spot, __add__ is add
    if found is None:
        raise _no_rule(w, name)
    try:
        return found(w, *args, **kwargs)
    except TypeError as error:  # arguments that the rule does not know
        raise _no_rule(w, f"{name}{tuple(kwargs) or ''} ({error})") from error


def _no_rule(w: Writer, what: str) -> ModelError:
    return ModelError(
        f"No rule for the function {what} at {w.owner!r}. Take the way through ONNX instead, "
        f"trtkit.build(trtkit.load(module, example)), or use one that has a rule: {', '.join(sorted(RULES))}."
    )


def _is_tensor(value: Any) -> bool:
    return isinstance(value, trt.ITensor)


def _leaves(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for one in value for leaf in _leaves(one)]
    return [leaf for one in value.values() for leaf in _leaves(one)] if isinstance(value, dict) else [value]


def _of_numbers(w: Writer, node: fx.Node, name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A call without any tensor of the network: sizes, weights and numbers are reckoned with here and now."""
    if name == "expand" and isinstance(args[0], np.ndarray) and args[1] == -1 and args[0].shape[0] == 1:
        return layers.repeat(w, args[0], like=w.network.get_input(0))  # one row of weights for each in the batch
    if name in _RECKONING and any(isinstance(one, int) and one == -1 for one in args):
        raise ModelError(
            f"{w.owner!r} reckons with the batch size, which may change here. Give dynamic_batch=False, or take the "
            "way through ONNX, trtkit.build(trtkit.load(module, example))."
        )
    tensors = [torch.from_numpy(one) if isinstance(one, np.ndarray) else one for one in args]
    if node.op == "call_method":
        result = getattr(tensors[0], name)(*tensors[1:], **kwargs)
    elif callable(node.target):
        result = node.target(*tensors, **kwargs)
    return result.numpy() if isinstance(result, torch.Tensor) else result


def tensor(w: Writer, value: Any) -> trt.ITensor:
    """A tensor as it is; a number or an array as a constant."""
    return value if _is_tensor(value) else w.constant(np.asarray(value, np.float32).reshape(np.shape(value) or (1,)))


def axis_of(x: trt.ITensor, dim: int) -> int:
    return dim % len(x.shape)


# Arithmetic

_ARITHMETIC = {"add": "SUM", "iadd": "SUM", "mul": "PROD", "imul": "PROD", "sub": "SUB", "truediv": "DIV", "div": "DIV",
               "pow": "POW", "maximum": "MAX", "minimum": "MIN"}  # fmt: skip


def _arithmetic(kind: str) -> Callable[..., Any]:
    def calculate(w: Writer, a: Any, b: Any, *, alpha: float = 1) -> trt.ITensor:
        refuse_if(w, alpha != 1, "alpha of an addition")
        return layers.elementwise(w, kind, tensor(w, a), tensor(w, b))

    return calculate


RULES.update({name: _arithmetic(kind) for name, kind in _ARITHMETIC.items()})


@rule("matmul", "bmm")
def _matmul(w: Writer, a: Any, b: Any) -> trt.ITensor:
    return layers.matmul(w, tensor(w, a), tensor(w, b))


_UNARY = {"exp": "EXP", "sqrt": "SQRT", "neg": "NEG", "abs": "ABS", "log": "LOG", "erf": "ERF"}
_ACTIVATIONS = {"relu": "RELU", "sigmoid": "SIGMOID", "tanh": "TANH"}


def _one(write_one: Callable[..., Any], kind: str) -> Callable[..., Any]:
    return lambda w, x: write_one(w, kind, x) if write_one is layers.unary else write_one(w, x, kind)


RULES.update({name: _one(layers.unary, kind) for name, kind in _UNARY.items()})
RULES.update({name: _one(layers.activation, kind) for name, kind in _ACTIVATIONS.items()})


@rule("hardtanh")
def _hardtanh(w: Writer, x: trt.ITensor, min_val: float = -1, max_val: float = 1) -> trt.ITensor:
    return layers.activation(w, x, "CLIP", min_val, max_val)


@rule("relu6")
def _relu6(w: Writer, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "CLIP", 0, 6)


@rule("leaky_relu")
def _leaky(w: Writer, x: trt.ITensor, negative_slope: float = 0.01) -> trt.ITensor:
    return layers.activation(w, x, "LEAKY_RELU", negative_slope)


@rule("gelu")
def _gelu(w: Writer, x: trt.ITensor, approximate: str = "none") -> trt.ITensor:
    return layers.activation(w, x, "GELU_TANH" if approximate == "tanh" else "GELU_ERF")


@rule("hardsigmoid")
def _hard_sigmoid(w: Writer, x: trt.ITensor) -> trt.ITensor:
    return layers.activation(w, x, "HARD_SIGMOID", 1 / 6, 0.5)


@rule("softmax")
def _softmax(w: Writer, x: trt.ITensor, dim: int, _stacklevel: int = 3, dtype: Any = None) -> trt.ITensor:
    refuse_if(w, dtype is not None, "the dtype of a softmax")
    return layers.softmax(w, x, dim)


@rule("scaled_dot_product_attention")
def _attention(w: Writer, query: trt.ITensor, key: trt.ITensor, value: trt.ITensor, attn_mask: Any = None,
               dropout_p: float = 0, is_causal: bool = False, scale: float | None = None,
               enable_gqa: bool = False) -> trt.ITensor:  # fmt: skip
    refuse_if(w, attn_mask is not None or enable_gqa, "an attention mask or enable_gqa")
    added = w.constant(layers.causal(query.shape[-2])) if is_causal else None
    return layers.attention(w, query, key, value, scale=scale, added=added)


@rule("layer_norm")
def _layer_norm(w: Writer, x: trt.ITensor, normalized_shape: Sequence[int], weight: Any = None, bias: Any = None,
                eps: float = 1e-5) -> trt.ITensor:  # fmt: skip
    rank = len(x.shape)
    return layers.layer_norm(w, x, weight, bias, eps, range(rank - len(normalized_shape), rank))


@rule("linear")
def _linear(w: Writer, x: trt.ITensor, weight: np.ndarray, bias: Any = None) -> trt.ITensor:
    return layers.linear(w, x, weight, bias)


@rule("mean")
def _mean(w: Writer, x: trt.ITensor, dim: Any = None, keepdim: bool = False) -> trt.ITensor:
    axes = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return layers.reduce(w, "AVG", x, [axis_of(x, one) for one in axes], keepdim)


@rule("sum")
def _sum(w: Writer, x: trt.ITensor, dim: Any = None, keepdim: bool = False) -> trt.ITensor:
    axes = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    return layers.reduce(w, "SUM", x, [axis_of(x, one) for one in axes], keepdim)


# Shapes


@rule("size")
def _size(w: Writer, x: trt.ITensor, dim: int | None = None) -> Any:
    """-1 stands for the batch size that may change, as TensorRT has it."""
    return tuple(x.shape) if dim is None else tuple(x.shape)[dim]


@rule("dim")
def _dim(w: Writer, x: trt.ITensor) -> int:
    return len(x.shape)


@rule("getattr")
def _getattr(w: Writer, x: trt.ITensor, name: str) -> Any:
    refuse_if(w, name not in ("shape", "T", "mT"), f"the attribute {name!r} of a tensor")
    return tuple(x.shape) if name == "shape" else _transpose(w, x, -1, -2)


@rule("view", "reshape")
def _view(w: Writer, x: trt.ITensor, *shape: Any) -> trt.ITensor:
    sizes = list(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else list(shape)
    refuse_if(w, any(n < -1 for n in sizes), "reckoning with a batch size that may change (dynamic_batch=False helps)")
    if sizes.count(-1) > 1 and sizes[0] == -1:
        sizes[0] = 0  # the batch size, which TensorRT takes over, beside "what is left"
    return layers.reshape(w, x, sizes)


@rule("permute")
def _permute(w: Writer, x: trt.ITensor, *order: Any) -> trt.ITensor:
    axes = order[0] if len(order) == 1 and not isinstance(order[0], int) else order
    return layers.transpose(w, x, [axis_of(x, axis) for axis in axes])


@rule("transpose")
def _transpose(w: Writer, x: trt.ITensor, dim0: int, dim1: int) -> trt.ITensor:
    order = list(range(len(x.shape)))
    one, other = axis_of(x, dim0), axis_of(x, dim1)
    order[one], order[other] = other, one
    return layers.transpose(w, x, order)


@rule("unsqueeze")
def _unsqueeze(w: Writer, x: trt.ITensor, dim: int) -> trt.ITensor:
    return layers.unsqueeze(w, x, [dim % (len(x.shape) + 1)])


@rule("squeeze")
def _squeeze(w: Writer, x: trt.ITensor, dim: Any = None) -> trt.ITensor:
    refuse_if(w, dim is None and -1 in tuple(x.shape), "squeeze without an axis where a size may change")
    wanted = range(len(x.shape)) if dim is None else [dim] if isinstance(dim, int) else dim
    axes = [axis_of(x, one) for one in wanted if x.shape[axis_of(x, one)] == 1]
    return layers.squeeze(w, x, axes) if axes else x


@rule("cat", "concat")
def _cat(w: Writer, tensors: Sequence[Any], dim: int = 0) -> trt.ITensor:
    return layers.concatenate(w, [tensor(w, one) for one in tensors], dim)


@rule("chunk")
def _chunk(w: Writer, x: trt.ITensor, chunks: int, dim: int = 0) -> list[trt.ITensor]:
    return _split(w, x, -(-x.shape[axis_of(x, dim)] // chunks), dim)


@rule("split")
def _split(w: Writer, x: trt.ITensor, split_size: Any, dim: int = 0) -> list[trt.ITensor]:
    axis, total = axis_of(x, dim), x.shape[axis_of(x, dim)]
    refuse_if(w, total < 0, "splitting an axis whose size may change")
    sizes = [min(split_size, total - at) for at in range(0, total, split_size)] if isinstance(split_size, int) \
        else list(split_size)  # fmt: skip
    starts = np.cumsum([0, *sizes])
    return [_block(w, x, axis, int(at), n) for at, n in zip(starts, sizes, strict=False)]


def _block(w: Writer, x: trt.ITensor, axis: int, start: int, size: int, step: int = 1) -> trt.ITensor:
    starts, sizes, steps = [0] * len(x.shape), list(x.shape), [1] * len(x.shape)
    starts[axis], sizes[axis], steps[axis] = start, size, step
    return layers.crop(w, x, starts, sizes, steps)


@rule("getitem")
def _getitem(w: Writer, x: Any, index: Any) -> Any:
    """Of a tuple an entry; of a tensor slices, whole numbers, `...` and None, one after the other."""
    if not _is_tensor(x):
        return operator.getitem(x, index)
    entries = list(index) if isinstance(index, tuple) else [index]
    if any(one is Ellipsis for one in entries):
        at = next(i for i, one in enumerate(entries) if one is Ellipsis)
        missing = len(x.shape) - sum(one is not None for one in entries) + 1
        entries[at : at + 1] = [slice(None)] * missing
    axis = 0
    dropped: list[int] = []
    added: list[int] = []
    for place, one in enumerate(entries):
        if one is None:
            added.append(place - len(dropped))
            continue
        refuse_if(w, not isinstance(one, (int, slice)), f"an index of type {type(one).__name__}")
        if one != slice(None):
            x = _slice(w, x, axis, slice(one, one + 1 or None) if isinstance(one, int) else one)
        dropped += [axis] if isinstance(one, int) else []
        axis += 1
    x = layers.squeeze(w, x, dropped) if dropped else x
    return layers.unsqueeze(w, x, added) if added else x


def _slice(w: Writer, x: trt.ITensor, axis: int, part: slice) -> trt.ITensor:
    refuse_if(w, x.shape[axis] < 0, "slicing an axis whose size may change")
    start, stop, step = part.indices(x.shape[axis])
    return _block(w, x, axis, start, len(range(start, stop, step)), step)


@rule("contiguous", "clone", "detach", "dropout", "stochastic_depth", "to", "float")
def _identity(w: Writer, x: trt.ITensor, *ignored: Any, **options: Any) -> trt.ITensor:
    types = [one for one in (*ignored, *options.values()) if isinstance(one, torch.dtype)]
    refuse_if(w, x.dtype != trt.float32 or any(one != torch.float32 for one in types), "a conversion to another type")
    return x
