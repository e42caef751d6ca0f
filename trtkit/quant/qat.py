"""Quantisation-aware training: a torch module that computes with INT8's steps while its weights are still learned.

    prepared = qat.prepare(module, example, batches)     # as good, or bad, as trtkit.quantize makes it
    ...                                                  # your own training loop, on a small learning rate
    int8 = qat.export(prepared, example)                 # the Q/DQ graph that trtkit.build takes

`prepare` asks `trtkit.quantize` where Q/DQ would stand and calibrates on the same graph, so that training starts from
the very numbers of post-training quantisation; `export` lets `quantize` write what was learned.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import numpy as np

from trtkit.errors import ModelError, VerificationError
from trtkit.graph.taps import Batch
from trtkit.model import Model
from trtkit.quant.calibrate import DEFAULT_METHOD, INT8_MAX, Calibration, calibrate
from trtkit.quant.data import CalibrationProgress
from trtkit.quant.fake_quant import FakeQuant, Left, fx, nn, torch
from trtkit.quant.qat_graph import Places, check_places, float_model, write_weight
from trtkit.quant.qat_trace import (
    LAYERS,
    TRANSPOSED,
    call,
    check_same,
    is_a,
    is_depthwise,
    round_activations,
    trace,
    weight_quantizer,
)
from trtkit.quant.qdq import QUANTIZABLE, quantize

__all__ = ["FakeQuant", "export", "prepare"]

_TIPPED = 0.1  # relative error: of small outputs a single value on the edge between two steps moves some percent


def prepare(
    module: nn.Module,
    example: Any,
    data: Iterable[Batch],
    method: str = DEFAULT_METHOD,
    per_channel: bool = True,
    skip: Collection[str] = (),
    progress: CalibrationProgress | None = None,
    *,
    weight_bits: int = 8,
    learn_steps: bool = True,
    depthwise: bool = False,
    transposed: bool = False,
) -> fx.GraphModule:
    """A copy of a module with a `FakeQuant` wherever `trtkit.quantize` would write Q/DQ, ready to be trained.

    1. Batch norm behind a convolution is folded into it, and dropout left out: what is trained is what the engine runs.
    2. Weights of nn.Conv*, nn.Linear and, if asked for, nn.ConvTranspose* are rounded per output channel;
       `layer.weight` gives the rounded weight, `layer.parametrizations.weight.original` is the one that learns.
    3. The inputs of these layers, and one branch of each addition that TensorRT fuses into a convolution, are rounded
       with one step; all readers of a tensor share it. Biases stay as they are.
    4. Steps start from where `trtkit.quantize` would leave them with the same data and method.

    Args:
        module: float32, on the CPU; it stays as it is. torch.fx has to be able to trace it: no Python branches on
            values of tensors.
        example: inputs to export with: a tensor, a tuple, or a dict by argument name of `forward`, batch first.
        data: calibration batches as for `trtkit.quantize`: float32 arrays, or dicts by input name; read once.
        method: "max", "percentile", "mse" or "entropy", see `trtkit.quant.calibrate`.
        per_channel: one step per output channel of a weight, or one for all.
        skip: names of layers to leave in float, as `named_modules` has them.
        progress: called after every batch with the number of batches done and, if known, in all.
        weight_bits: 8, or fewer: TensorRT convolves no INT4, so `export` stores e.g. -7 .. 7 in INT8.
        learn_steps: train the steps (LSQ), or keep them as calibrated.
        depthwise: round depthwise convolutions, too; see `trtkit.quantize`.
        transposed: round nn.ConvTranspose*, too, which TensorRT-RTX computes in float anyway.

    Returns:
        A torch.fx.GraphModule to be called like the module, in training mode.

    Raises:
        ModelError: the module is quantised already, not float32, has NaN in its weights, cannot be traced or exported,
            has weights that are in no layer of the kinds above (F.conv2d, nn.MultiheadAttention) or are computed
            (weight_norm), works in place on what is read again, has nothing to quantise, or a name in `skip` is none.
        DataError: no data, data that does not fit, or NaN or infinity in a tensor, which is named.
        ValueError: weight_bits is not from 2 to 8.

    >>> net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    >>> prepared = prepare(net, torch.zeros(2, 1, 8, 8), [torch.rand(8, 1, 8, 8).numpy()])
    >>> [name for name, part in prepared.named_modules() if isinstance(part, FakeQuant)]
    ['0.parametrizations.weight.0', '4.parametrizations.weight.0', 'fake_quant_input_1', 'fake_quant_3']
    """
    if not 2 <= weight_bits <= 8:
        raise ValueError(f"weight_bits has to be from 2 to 8, got {weight_bits}.")
    traced = trace(module)
    layers = {str(n.target): traced.get_submodule(str(n.target)) for n in traced.graph.nodes if is_a(traced, n, LAYERS)}
    if unknown := sorted(set(skip) - set(layers)):
        raise ModelError(f"skip: there is no layer {unknown[0]!r} that could be quantised; there are {list(layers)}.")
    asked = {n: layer for n, layer in layers.items() if transposed or not isinstance(layer, TRANSPOSED)}
    chosen = {name for name, layer in asked.items() if name not in skip and (depthwise or not is_depthwise(layer))}
    if not chosen:
        raise ModelError(f"Nothing to quantise in {traced._get_name()!r}: of nn.Conv*, nn.ConvTranspose* and nn.Linear "
                         f"it has {list(layers) or 'none'}; skip, depthwise and transposed leave no one.")  # fmt: skip
    rounding: dict[Any, nn.Module] = {}  # by weight: what is tied stays so
    for name, layer in layers.items():
        weight = layer.weight
        if name not in chosen:
            rounding[weight] = Left()
        elif not isinstance(rounding.get(weight), FakeQuant):
            rounding[weight] = weight_quantizer(layer, weight_bits, per_channel, learn_steps)
        torch.nn.utils.parametrize.register_parametrization(layer, "weight", rounding[weight])
    round_activations(traced, chosen, learn_steps)
    check_same(module, traced, example)
    model, places = float_model(traced, example)
    check_places(model, places)
    _share(traced, places)
    calibration = calibrate(model, data, sorted(places.tensors), method, progress)
    for tensor, names in places.tensors.items():
        traced.get_submodule(names[0]).calibrated.fill_(calibration.scale(tensor))  # type: ignore[operator]
    return traced.train()


def export(module: nn.Module, example: Any, *, name: str | None = None) -> Model:
    """What a prepared module has learned, as the Q/DQ graph that `trtkit.quantize` would write.

    Args:
        module: from `prepare`, trained or not, on any device; it stays as it is.
        example: inputs to export with, as for `prepare`.
        name: what to call the model; by default the class of the original module.

    Returns:
        An INT8 model. It gives what the module gives in eval mode, but for values on the edge between two steps, which
        the last bit of a sum can tip to either side. It is its own `origin`: the network in float, which engines are
        otherwise compared with, is not what was trained.

    Raises:
        ModelError: the module was not prepared, a weight or step is NaN or infinite, or it cannot be exported.
        VerificationError: on the example, the model and the module differ by more than a few values tipped over.

    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    >>> int8 = export(prepare(net, torch.zeros(2, 4), [torch.eye(4).numpy()]), torch.zeros(2, 4))
    >>> int8.op_counts["DequantizeLinear"], int8.precision
    (2, 'int8')
    """
    fakes = [part for part in module.modules() if isinstance(part, FakeQuant)]
    if not fakes:
        raise ModelError(f"{type(module).__name__} has no FakeQuant: give what qat.prepare(module, ...) returned.")
    for key, tensor in module.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise ModelError(f"{key!r} holds NaN or infinity: training diverged. Take a checkpoint from before, and a "
                             "smaller learning rate.")  # fmt: skip
    model, places = float_model(module, example, name)
    check_places(model, places)
    ranges = {tensor: INT8_MAX * float(_fake(module, names[0]).step) for tensor, names in places.tensors.items()}
    per_channel = any(fake.axis is not None for fake in fakes)
    learned = Calibration(ranges, "training", batches=0)
    int8 = quantize(model, None, per_channel=per_channel, skip=places.left, depthwise=True,
                    ops=QUANTIZABLE, calibration=learned)  # fmt: skip
    for node in model.ir.graph:
        if node.name in places.weights:
            write_weight(node, int8.ir.graph.node(node.name), _fake(module, places.weights[node.name]))
    trained = Model(int8.ir, int8.name, history=int8.history, precision="int8")
    _verify(module, trained, example)
    return trained


def _fake(module: nn.Module, name: str) -> FakeQuant:
    found = module.get_submodule(name)
    assert isinstance(found, FakeQuant)
    return found


def _verify(module: nn.Module, model: Model, example: Any) -> None:
    """Raise VerificationError unless the graph, as it is written, gives what the module gives for the example."""
    wanted = call(copy.deepcopy(module).cpu().eval(), example)
    given = example if isinstance(example, (Mapping, tuple, list)) else [example]
    named = given if isinstance(given, Mapping) else dict(zip((info.name for info in model.inputs), given, strict=True))
    got = model.open_reference(exact=True).run({key: np.asarray(value) for key, value in named.items()})
    floats = [array for array in got.values() if array.dtype.kind == "f"]
    for want, have in zip(wanted, floats, strict=True):
        error = np.linalg.norm(have - want.numpy()) / max(float(want.norm()), float(np.finfo(np.float32).tiny))
        if not error <= _TIPPED:
            raise VerificationError(f"The graph of {model.name!r} is off by {error:.1%} from the module that was "
                                    "trained. Does `forward` depend on the batch, or on chance?")  # fmt: skip


def _share(traced: fx.GraphModule, places: Places) -> None:
    """One FakeQuant for all that turned out to stand at one tensor of the graph."""
    for first, *others in places.tensors.values():
        for other in others:
            traced.set_submodule(other, traced.get_submodule(first))
