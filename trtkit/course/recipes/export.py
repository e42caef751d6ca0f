"""What the recipes share: a module's way into datasets/."""

from __future__ import annotations

from typing import Any

import trtkit
from trtkit.course.paths import root
from trtkit.model import Model, every_node


def ship(net: Any, example: dict[str, Any], name: str, output: str = "logits") -> Model:
    """Export a torch module to datasets/`name`/model.onnx and return it as it is read back.

    nn.Sequential's one input, which PyTorch calls "input", becomes "x". The exporter's notes on where in Python each
    node comes from are left out: they take more bytes than a small network.
    """
    graph = trtkit.load(net, example, name=name).ir
    for value in graph.graph.inputs:
        value.name = "x" if value.name == "input" else value.name
    graph.graph.outputs[0].name = output
    graph.metadata_props.clear()
    values = [*graph.graph.inputs, *graph.graph.initializers.values()]
    for node in every_node(graph.graph):
        node.metadata_props.clear()
        values += node.outputs
    for value in values:
        value.metadata_props.clear()
    folder = root() / "datasets" / name
    folder.mkdir(exist_ok=True)
    return trtkit.load(trtkit.save(Model(graph, name), folder / "model.onnx"), name=name)
