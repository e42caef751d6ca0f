"""Inside a call: what each layer of an engine computes and moves, how long it took, and how far that is from possible.

The costs come from the ONNX nodes that TensorRT fused into a layer, so that they are known without a GPU. The times
come from a GPU's own clock, kernel by kernel, and are laid over the layers in the order in which both run
(`trtkit.bench.profiler` measures; a record keeps what it found).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import onnx_ir as ir

from trtkit.engine.engine import Engine
from trtkit.engine.fusion import fusion_map
from trtkit.engine.layers import Layer, LayerTensor
from trtkit.errors import EngineError
from trtkit.graph.cost import NodeCost, cost
from trtkit.graph.groups import Group, groups_of, mark, unmark
from trtkit.graph.shapes import Tensor, concrete_tensors
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TILE = 128  # rows and columns of a product's result that one processor of a GPU computes at a time, usually
_SIZES = {"Float": 4, "Half": 2, "BFloat16": 2, "Int8": 1, "FP8": 1, "Int32": 4, "Int64": 8, "Bool": 1, "UInt8": 1}
_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum", "Attention")


class LayerCost(NamedTuple):
    """What one layer of an engine has to do. `bytes` counts what goes in, weights too, and what comes out, once each.

    `tiles` is how many blocks of 128 by 128 numbers the result of its matrix product or convolution has: work that can
    be shared out; 0 where there is no product.
    """

    name: str
    kind: str
    ops: str
    nodes: tuple[str, ...]  # ONNX nodes, in TensorRT's order
    op_types: tuple[str, ...]
    flops: int
    bytes: int
    tiles: int
    module: str  # where it stands in the network that was exported, "layer1.0.conv2"; "" where that is not known

    @property
    def label(self) -> str:
        """The operators, or what TensorRT calls a layer of its own making."""
        return "+".join(self.op_types) or self.ops


def layer_costs(engine: Engine, batch: int = 1, dims: Mapping[str, int] | None = None) -> tuple[LayerCost, ...]:
    """The cost of every layer of the engine that starts a kernel, in the order in which they run.

    Args:
        batch: the size of every changeable first dimension.
        dims: sizes of other changeable dimensions by name.

    Raises:
        EngineError: the engine came from a file and its model was not given.
        ModelError: as `trtkit.graph.cost.cost` does.

    >>> import onnx, trtkit
    >>> engine = trtkit.build(trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 64] x, float[64, 32] w) => (float[n, 32] y) {a = MatMul(x, w)  y = Relu(a)}''')))
    >>> [(layer.label, layer.flops, layer.bytes) for layer in layer_costs(engine, batch=2)]
    [('MatMul+Relu', 8256, 8960)]
    """
    if not isinstance(engine.model, Model):
        raise EngineError(
            f"To know what the layers of {engine.manifest['model']!r} compute, their graph is needed: "
            "trtkit.open_engine(path, model=trtkit.load('that.onnx'))."
        )
    model = engine.model
    layers = [layer for layer in engine.layers if layer.profile == 0]
    modules = {node.name or "": module_of(node) for node in model.ir.graph}
    tensors = concrete_tensors(model, batch, dims)
    nodes = {node.name: node for node in cost(model, batch, dims).nodes}
    groups = _groups(model, layers)
    costs = [
        _cost(layer, groups.get(place), nodes, tensors, batch) for place, layer in enumerate(layers) if layer.launches
    ]
    return _placed(costs, modules)


def _placed(costs: list[LayerCost], modules: Mapping[str, str]) -> tuple[LayerCost, ...]:
    """The layers with their modules; where a pass or TensorRT made one, it stands with the layer after it."""
    placed: list[LayerCost] = []
    after = ""
    for layer in reversed(costs):
        known = [modules[name] for name in layer.nodes if modules.get(name)]
        placed.append(layer._replace(module=known[0] if known else after))
        after = known[0].rpartition(".")[0] if known else after
    return tuple(reversed(placed))


def module_of(node: ir.Node) -> str:
    """The module that a node came from, as PyTorch's exporters write it: dotted, "" where none is known."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    if scopes.startswith("["):  # "['', 'layer1', 'layer1.0', 'conv2d_2']": the last one is the operator
        return scopes.strip("[]").replace("'", "").split(", ")[-2:][0]
    parts = [part for part in (node.name or "").split("/") if part]
    if not (node.name or "").startswith("/"):
        return ""
    inside = parts[:-1]  # "/layer1/layer1.0/conv2/Conv": a part may repeat those before it
    dotted = ""
    for part in inside:
        dotted = part if dotted and part.startswith(f"{dotted}.") else f"{dotted}.{part}".strip(".")
    return dotted


def _groups(model: Model, layers: list[Layer]) -> dict[int, Group]:
    """For each layer the ONNX nodes in it, as a group with what it reads from outside and hands on."""
    marked = model.copy()
    unmark(marked.ir.graph)
    by_name = {node.name: node for node in marked.ir.graph}
    for account in fusion_map(model, layers).nodes:
        if account.kernel is not None:
            mark([by_name[account.name]], account.kernel, "tensorrt")
    return {group.id: group for group in groups_of(marked)}


def _cost(
    layer: Layer, group: Group | None, nodes: Mapping[str, NodeCost], tensors: Mapping[str, Tensor], batch: int
) -> LayerCost:
    if group is None:  # one of TensorRT's own: it computes nothing that the graph asks for
        moved = sum(_size_bytes(tensor, batch) for tensor in (*layer.inputs, *layer.outputs))
        return LayerCost(layer.name, layer.kind, layer.ops, (), (), 0, moved, 0, "")
    parts = [nodes[name] for name in group.nodes if name in nodes]
    ends = sum(tensors[name].size_bytes for name in (*group.inputs, *group.outputs) if name in tensors)
    apart = sum((part.bytes_read or 0) + (part.bytes_written or 0) for part in parts)
    return LayerCost(
        layer.name,
        layer.kind,
        layer.ops,
        group.nodes,
        group.op_types,
        sum(part.flops or 0 for part in parts),
        min(ends, apart),  # a Gather reads a part of its table
        _tiles(group, tensors),
        "",
    )


def _size_bytes(tensor: LayerTensor, batch: int) -> int:
    """What it takes in memory; a dimension that may change is the batch where it is the first, and else not counted."""
    first, *others = tensor.shape or (1,)
    return max(first, batch if first < 0 else 1) * math.prod(max(d, 1) for d in others) * _SIZES.get(tensor.dtype, 4)


def _tiles(group: Group, tensors: Mapping[str, Tensor]) -> int:
    """Of the largest result that leaves the group, if there is a product in it."""
    shapes = [tensors[name].shape for name in group.outputs if name in tensors]
    if not shapes or not any(op in _PRODUCTS for op in group.op_types):
        return 0
    shape = max(shapes, key=math.prod)
    if any(op in ("Conv", "ConvTranspose") for op in group.op_types) and len(shape) > 2:
        rows, columns, times = shape[0] * math.prod(shape[2:]), shape[1], 1
    else:
        rows, columns, times = (*(1, *shape)[-2:], math.prod(shape[:-2]))
        if not any(op in ("MatMul", "Attention") for op in group.op_types) or len(shape) == 3:
            rows, times = rows * times, 1
    return times * math.ceil(rows / TILE) * math.ceil(columns / TILE)


class KernelTime(NamedTuple):
    """One kernel of a call as the GPU's clock saw it, microseconds; medians over calls.

    `charged` is from the end of all before it to its own end: what the call would be shorter without it. The charged
    times of a call add up to its length, which durations do not: a kernel may begin before the one before it ends.
    """

    name: str
    charged: float
    duration: float


class LayerTime(NamedTuple):
    """One layer with what it did and how long it took; `bound_us` is the least that the machine could need."""

    cost: LayerCost
    us: float
    busy_us: float
    kernels: tuple[str, ...]
    bound_us: float

    @property
    def tflops(self) -> float:
        """Achieved TFLOP/s."""
        return self.cost.flops / self.us / 1e6 if self.us else 0.0

    @property
    def gb_s(self) -> float:
        """Achieved GB/s; may be over the memory's bandwidth where data stayed in the cache."""
        return self.cost.bytes / self.us / 1e3 if self.us else 0.0

    @property
    def of_roofline(self) -> float:
        """Share of the possible speed, 1 on the roofline; 0 for a layer that needed do nothing."""
        return self.bound_us / self.us if self.us else 0.0


@dataclass(frozen=True)
class Profile:
    """Where the time of one call goes, layer by layer.

    Attributes:
        name: what was profiled.
        layers: in the order in which they run.
        latency_us: median of a call measured without any profiler; what `sum_us` must come to.
        flops, bytes: the machine's measured peak rates a second; `processors` how many share the work.
        facts: what else was found: power, clocks, energy, sums by other methods.
        source: "measured here", or where a record comes from.
    """

    name: str
    layers: tuple[LayerTime, ...]
    latency_us: float
    machine: str
    flops: float
    bytes: float
    processors: int
    facts: dict[str, Any] = field(default_factory=dict)
    source: str = "measured here"

    @property
    def sum_us(self) -> float:
        return sum(layer.us for layer in self.layers)

    @property
    def coverage(self) -> float:
        """The layers' sum as a share of the latency; what lacks is the launch of the call."""
        return self.sum_us / self.latency_us

    def top(self, count: int = 10) -> list[LayerTime]:
        """The layers that take longest."""
        return sorted(self.layers, key=lambda layer: -layer.us)[:count]

    def furthest(self, count: int = 3) -> list[LayerTime]:
        """The layers that lose most against their roofline: microseconds over what the machine could do."""
        return sorted(self.layers, key=lambda layer: layer.bound_us - layer.us)[:count]

    def why(self, layer: LayerTime) -> str:
        """The likeliest reason for a layer's distance from its roofline, from its numbers alone."""
        work, moving = layer.cost.flops / self.flops, layer.cost.bytes / self.bytes
        limit, peak = f"{self.flops / 1e12:.0f} TFLOP/s", f"{self.bytes / 1e9:.0f} GB/s"
        if 0 < layer.cost.tiles < self.processors:
            return (f"its result is {layer.cost.tiles} tiles of {TILE}×{TILE}, "
                    f"for {self.processors} processors: most have nothing to do")  # fmt: skip
        if layer.bound_us < 1:
            return f"{layer.bound_us:.2f} µs of work: starting a kernel and waiting for memory take longer"
        if moving >= work:
            return f"limited by memory, reaches {layer.gb_s:.0f} of {peak}"
        return f"limited by arithmetic, reaches {layer.tflops:.0f} of {limit}"

    def table(self, count: int = 10) -> str:
        """The layers that take longest as text, then the sum against the latency."""
        head = f"{'us':>8} {'share':>6} {'MFLOP':>9} {'MB':>8} {'TFLOP/s':>8} {'GB/s':>7} {'roofline':>8}  layer"
        rows = [
            f"{x.us:8.2f} {x.us / self.sum_us:6.1%} {x.cost.flops / 1e6:9.1f} {x.cost.bytes / 1e6:8.2f} "
            f"{x.tflops:8.1f} {x.gb_s:7.0f} {x.of_roofline:8.0%}  {x.cost.label}"
            for x in self.top(count)
        ]
        return "\n".join([str(self), head, *rows])

    def __str__(self) -> str:
        return (
            f"{self.name} on {self.machine}: {len(self.layers)} layers, {self.sum_us:.1f} us in all, "
            f"{self.coverage:.0%} of a call's {self.latency_us:.1f} us [{self.source}]"
        )

    def plot(self, **options: Any) -> Figure:
        """The time as nested bars, from the network down to the layers; see `trtkit.plot.flame`."""
        from trtkit import plot

        return plot.flame(self, **options)

    def as_facts(self) -> dict[str, Any]:
        """All of it as JSON can say it, for a record; `from_facts` reads it back."""
        rows = [
            [*x.cost[:3], list(x.cost.nodes), list(x.cost.op_types), *x.cost[5:], round(x.us, 3), round(x.busy_us, 3),
             list(x.kernels), round(x.bound_us, 4)]
            for x in self.layers
        ]  # fmt: skip
        said = {"name": self.name, "machine": self.machine, "flops": self.flops, "bytes": self.bytes}
        numbers = {"processors": self.processors, "latency_us": self.latency_us}
        return {**said, **numbers, "facts": self.facts, "layers": rows}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any], source: str) -> Profile:
        """A profile that `as_facts` wrote. Raises EngineError when it is damaged."""
        try:
            layers = tuple(_layer_time(row) for row in facts["layers"])
            return cls(facts["name"], layers, facts["latency_us"], facts["machine"], facts["flops"], facts["bytes"],
                       facts["processors"], facts["facts"], source)  # fmt: skip
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise EngineError(f"This is no profile that trtkit wrote: {error!r}. Measure it again.") from error


def _layer_time(row: Sequence[Any]) -> LayerTime:
    name, kind, ops, nodes, op_types, flops, moved, tiles, module, us, busy, kernels, bound = row
    return LayerTime(
        LayerCost(name, kind, ops, tuple(nodes), tuple(op_types), flops, moved, tiles, module),
        us,
        busy,
        tuple(kernels),
        bound,
    )


def lay_over(kernels: Sequence[KernelTime], costs: Sequence[LayerCost], flops: float, moved: float) -> list[LayerTime]:
    """Give each kernel to the layer that started it, and each layer the least time at these rates a second.

    Both lists are in running order. A layer may start several kernels (a product in parts, then their sum) or none;
    generated kernels carry their layer's operators in the name, the others do not. So: the alignment with the fewest
    contradictions, found by dynamic programming as for two texts.
    """
    given: list[list[KernelTime]] = [[] for _ in costs]
    for kernel, place in zip(kernels, _aligned(kernels, costs), strict=True):
        given[place].append(kernel)
    return [
        LayerTime(
            layer,
            sum(k.charged for k in mine),
            sum(k.duration for k in mine),
            tuple(k.name for k in mine),
            1e6 * max(layer.flops / flops, layer.bytes / moved),
        )
        for layer, mine in zip(costs, given, strict=True)
    ]


_HELPERS = ("splitk", "split_k", "reduce", "memset", "memcpy")  # what a product starts besides its kernel
# Price of a kernel under a wrong name, of a second one, of a layer without any, of a helper that comes first.
_CLASH, _MORE, _NONE, _HELPER = 4.0, 1.0, 1.5, 0.5


def _second(clash: float) -> float:
    """The price of a second kernel in a layer, low for a helper."""
    return 0.2 if clash == _HELPER else clash + _MORE


def _aligned(kernels: Sequence[KernelTime], costs: Sequence[LayerCost]) -> list[int]:
    """For each kernel the index of its layer, never falling."""
    rows, columns = len(kernels), len(costs)
    best = [[math.inf] * (columns + 1) for _ in range(rows + 1)]
    step = [[""] * (columns + 1) for _ in range(rows + 1)]
    best[0][0] = 0.0
    for i in range(rows + 1):
        for j in range(columns + 1):
            ways = []
            if i and j:
                clash = _clash(kernels[i - 1], costs[j - 1])
                ways = [(best[i - 1][j - 1] + clash, "first"), (best[i - 1][j] + _second(clash), "more")]
            if j:
                ways.append((best[i][j - 1] + _NONE, "none"))
            if ways:
                best[i][j], step[i][j] = min(ways)
    places, i, j = [0] * rows, rows, columns
    while i:
        if step[i][j] != "none":
            places[i - 1] = j - 1
        i, j = i - (step[i][j] != "none"), j - (step[i][j] != "more")
    return places


def _clash(kernel: KernelTime, layer: LayerCost) -> float:
    """0 where the kernel's name is the layer's, a little where it says nothing, much where it says another's."""
    generated = "__myl_" in kernel.name
    if not generated and layer.kind != "kgen" and any(word in kernel.name.lower() for word in _HELPERS):
        return _HELPER
    if generated and f"__myl_{layer.ops}_" in kernel.name:
        return 0.0
    if generated == (layer.kind == "kgen"):
        return _CLASH if generated else 0.0
    return _CLASH if layer.kind == "kgen" else 0.4
