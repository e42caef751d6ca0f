"""One backbone with many heads: several tasks for the price of one trunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from trtkit.compose.align import named
from trtkit.compose.merge import merge
from trtkit.compose.split import until
from trtkit.errors import ModelError
from trtkit.model import Model


def multi_head(
    backbone: Model,
    heads: Mapping[str, Model] | Sequence[Model],
    *,
    at: str | None = None,
    name: str | None = None,
) -> Model:
    """Feed one tensor of a backbone to several heads. What of the backbone comes after that tensor is dropped.

    Args:
        heads: models, each of which takes the features as its only input.
        at: the tensor of the backbone that holds the features; by default its only output.

    Returns:
        A model with the backbone's inputs and the heads' outputs; outputs of the same name get their head's in front.

    Raises:
        ModelError: no head, a head with several inputs, or one that takes another type or shape; `at` does not exist.

    >>> import onnx
    >>> from trtkit.importers import load
    >>> text = '<ir_version: 10, opset_import: ["": 20]> %s (float[n, 4] x) => (float[n, 4] y) {y = %s(x)}'
    >>> names = (("t", "Abs"), ("a", "Exp"), ("b", "Neg"))
    >>> trunk, a, b = (load(onnx.parser.parse_model(text % pair)) for pair in names)
    >>> multi_head(trunk, [a, b])
    Model('t+a+b': 3 nodes, 0 weights in 0 bytes, opset 20; x float32 (n, 4) -> a/y float32 (n, 4), b/y float32 (n, 4))
    """
    parts = named(heads)
    trunk = features_of(backbone, at)
    features = trunk.outputs[0].name
    if not parts or trunk.name in parts:
        raise ModelError(
            f"multi_head needs heads, called otherwise than the backbone {trunk.name!r}; got {list(parts)}."
        )
    connect = {}
    for title, head in parts.items():
        if len(head.inputs) != 1:
            names = [info.name for info in head.inputs]
            raise ModelError(f"The head {title!r} has the inputs {names}; a head takes the features and nothing else.")
        connect[title, head.inputs[0].name] = (trunk.name, features)
    return merge({trunk.name: trunk, **parts}, connect=connect, name=name)


def features_of(model: Model, at: str | None) -> Model:
    """The part of a model that computes the tensor `at`, under the model's own name; all of it if that is its output.

    Raises:
        ModelError: no such tensor, or none was named and there are several outputs.
    """
    outputs = [info.name for info in model.outputs]
    if at is None and len(outputs) != 1:
        raise ModelError(f"{model.name!r} has the outputs {outputs}: say with `at` which tensor holds the features.")
    if at is None or outputs == [at]:
        return model
    return until(model, at)
