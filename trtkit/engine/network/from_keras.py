"""A Keras model, layer by layer: its graph of layers is walked in order, and each layer has a rule in `keras_rules`.

Keras keeps images channels last, (N, H, W, C), and TensorRT computes them channels first. So an image is turned at the
first layer that needs it and held so until a layer needs Keras' order again, as Flatten does: turning back there, and
not somewhere else, is what keeps the weights behind it right. What comes in and goes out is in Keras' order.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.engine.network.network import Framework, Network
from trtkit.engine.network.writer import Writer
from trtkit.errors import ModelError
from trtkit.importers.keras import input_specs, load_keras, output_names

if TYPE_CHECKING:
    import keras


def from_keras(model: keras.Model, *, name: str | None = None, dynamic_batch: bool = True) -> Network:
    """Write a Keras model (Sequential or functional) as a TensorRT network, each layer by calls of the network API.

    Inputs and outputs keep their names and layout: an image network takes (N, H, W, C). Any backend of Keras will do.

    Raises:
        ModelError: a layer without a rule, named; or the model does not say what it takes.
        BuildError: TensorRT refuses a layer, in its own words.
        MissingError: Keras is not installed.
    """
    from trtkit.engine.network.keras_rules import Held

    keras = load_keras()
    specs = input_specs(model)
    open_dims = [key for key, (shape, _) in specs.items() if None in shape[1:]]
    if not specs or open_dims:
        why = f"leaves dimensions of {open_dims} open" if open_dims else "does not say what it takes"
        raise ModelError(
            f"The Keras model {model.name!r} {why}. Give it a keras.Input with all sizes, or take the way through "
            "ONNX, trtkit.load(model, example)."
        )
    w = Writer("Keras")
    held = []
    for key, (shape, dtype) in specs.items():
        batch = -1 if dynamic_batch else shape[0] or 1
        held.append(Held(w.input(key, (batch, *(size or 1 for size in shape[1:])), dtype)))
    found = walk(w, model, held)
    with w.layer("in Keras' order"):
        results = [one.in_keras_order(w) for one in found]
    names = output_names(model)
    names = [name if names.index(name) == i else f"{name}_{i}" for i, name in enumerate(names)]

    structure = getattr(model, "input", None)  # of several inputs a list or a dict; a Sequential has one

    def run(arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        given = [arrays[key] for key in specs]
        packed = given[0] if structure is None else keras.tree.pack_sequence_as(structure, given)
        outputs = model(packed, training=False)
        return [keras.ops.convert_to_numpy(one) for one in keras.tree.flatten(outputs)]

    return Network(w, name or model.name, dict(zip(names, results, strict=True)), Framework("Keras", run))


def walk(w: Writer, model: keras.Model, inputs: list[Any]) -> list[Any]:
    """Write the layers of a model in the order of its graph, those of models inside it as well.

    A layer that is called twice is written twice, with the same weights: each call is a node of the graph.
    """
    from trtkit.engine.network import keras_rules, keras_sequences  # noqa: F401  (the latter adds its rules)

    keras = load_keras()
    model = getattr(model, "_functional", None) or model  # a Sequential is a functional model inside
    values: dict[int, Any] = dict(zip((id(t) for t in keras.tree.flatten(model.inputs)), inputs, strict=True))

    def given(argument: Any) -> Any:
        return keras.tree.map_structure(lambda one: values.get(id(one), one), argument)

    for depth in sorted(model._nodes_by_depth, reverse=True):
        for node in model._nodes_by_depth[depth]:
            if node.is_input:
                continue
            layer = node.operation
            with w.layer(f"{w.owner}/{layer.name}" if w.owner else layer.name):
                result = keras_rules.write(w, layer, given(node.arguments.args), given(node.arguments.kwargs))
            outputs = keras.tree.flatten(node.outputs)
            values.update(zip((id(t) for t in outputs), keras.tree.flatten(result), strict=True))
    return [values[id(t)] for t in keras.tree.flatten(model.outputs)]
