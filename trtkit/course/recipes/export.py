"""What the recipes share: a module's way into datasets/."""

from __future__ import annotations

from typing import Any

import numpy as np

import trtkit
from trtkit.course.paths import root
from trtkit.course.trained import evaluate, trained
from trtkit.model import Model, every_node


def ship(net: Any, example: dict[str, Any], name: str, output: str = "logits") -> None:
    """Export a torch module to datasets/`name`/model.onnx.

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
    trtkit.save(Model(graph, name), folder / "model.onnx")


def write(name: str, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Compress arrays into datasets/`name`/data.npz, and return them."""
    folder = root() / "datasets" / name
    folder.mkdir(exist_ok=True)
    np.savez_compressed(folder / "data.npz", **arrays)  # type: ignore[arg-type]
    return arrays


def report(name: str) -> None:
    """Print what the card of a network says: its size, and its score on the data it never saw."""
    task = trained(name)
    print(f"{task.model}\n{task.metric}: {evaluate(task, task.model.run):.4f}")
