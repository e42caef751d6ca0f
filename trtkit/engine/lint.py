"""lint: whether what a graph says in Q/DQ is what runs, product by product and pair by pair, and if not, why."""

from __future__ import annotations

import hashlib
import html
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import onnx_ir as ir

from trtkit.engine.fusion import FusionMap, fusion_map
from trtkit.engine.layers import Layer
from trtkit.errors import EngineError
from trtkit.model import Model
from trtkit.quant.lint import COSTLY, EXPLAINED, LEVELS, RULES, Finding, check
from trtkit.quant.quantized_graph import QuantizedGraph, code_type, constant_of, hands_on, origin

if TYPE_CHECKING:
    from trtkit.engine.engine import Engine

CODES = ("Int8", "FP8")  # TensorRT's words for 8-bit codes
FUSED, FOLDED, MERGED, ALONE, IN_PASSING = "fused", "folded", "merged", "alone", "in passing"
AT_INPUT = "it reads the graph's input: no kernel runs before it"
_QDQ = ("QuantizeLinear", "DequantizeLinear")
# What generated kernels call operators that move numbers and compute nothing.
_MOVING = {"Reformat", "Move", "Tran", "Resh", "Cast", "Conc", "Pad", "Slic"}
_SHOWN = 4  # places of one rule in the printed report; `findings` has them all

# rule -> why the engine is so, and how to mend it; the rules on the graph alone are `trtkit.quant.lint.RULES`
ENGINE_RULES = {
    "not-8-bit": (
        "A product whose factors are both quantised is computed in float.",
        "Mend what is named. Where nothing is, the result may be taken apart, as into queries, keys and values: "
        "TensorRT-RTX then reorders the weight, and dequantises it if it has a scale for each channel. One scale "
        "(per_channel=False) or a product for each part keeps such a one in 8 bits.",
    ),
    "own-kernel": (
        "A Q or DQ that no other kernel takes along reads and writes the whole tensor once more.",
        "Mend what is named at each place; what the library itself does not fuse has to stay.",
    ),
    "in-passing": (
        "A Q and its DQ are in one kernel, so that codes are never stored: the pair rounds and saves nothing.",
        "Without the pair this engine is more exact and as fast. On a residual branch it helps a library that adds "
        "inside of its convolutions, which then reads codes.",
    ),
    "float-result": (
        "The kernel of an 8-bit product writes float numbers; the next one rescales them, adds the bias and rounds. "
        "TensorRT-RTX 1.7 did so in every engine looked at, INT8 or FP8.",
        "Nothing in the graph. Scales in FP16 would halve what is written behind matrix products, and overflow there.",
    ),
    "padded": (
        "TensorRT fills the channels of each group of an 8-bit convolution up to a multiple of 4 with zeros.",
        "Leave depthwise convolutions in float, as trtkit.quantize does; else choose groups of 4 channels, 8, 12 ...",
    ),
    "reformat": (
        "A kernel only moves 8-bit numbers from one kernel to another.",
        "Where the graph asks for it, see whether it can ask for less: a Transpose or a Concat elsewhere.",
    ),
}  # fmt: skip


class Product(NamedTuple):
    """A quantised Conv, ConvTranspose, Gemm or MatMul: what it should read, and what its kernel reads and writes."""

    node: str
    op_type: str
    expected: str
    found: str  # TensorRT's word for the type; empty when no kernel names the node
    writes: str
    kernel: str
    channels: tuple[int, int]  # of the activation: in the graph and, padded, in the engine; of a Conv, else (0, 0)

    @property
    def ok(self) -> bool:
        return self.found == self.expected


class Account(NamedTuple):
    """What became of one QuantizeLinear or DequantizeLinear.

    `state` is "fused" (into a kernel with other operators), "folded" (while building), "merged" (no kernel names it:
    a neighbour does its work), "alone" (a kernel of its own) or "in passing" (rounded inside a kernel, never stored).
    """

    node: str
    op_type: str
    state: str
    kernel: str
    why: str


@dataclass(frozen=True)
class Lint:
    """What `lint` found. Iterating gives the findings, the worst first.

    Attributes:
        findings: of the rules on the graph and, with an engine, of what became of it.
        products: every quantised product as it is in the engine; empty without one.
        accounts: every QuantizeLinear and DequantizeLinear in the engine; empty without one.
    """

    model_name: str
    quantized: int
    findings: tuple[Finding, ...]
    products: tuple[Product, ...] = ()
    accounts: tuple[Account, ...] = ()

    def __iter__(self) -> Iterator[Finding]:
        return iter(self.findings)

    def __len__(self) -> int:
        return len(self.findings)

    @property
    def ok(self) -> bool:
        """Whether there is nothing to mend: what is found, if anything, has to be so."""
        return all(finding.level == EXPLAINED for finding in self.findings)

    @property
    def missing(self) -> tuple[str, ...]:
        """The names of products that should be 8-bit in the engine and are not."""
        return tuple(product.node for product in self.products if not product.ok)

    def counts(self) -> list[tuple[str, str, int, int]]:
        """The table of expected against found: (operator, type, quantised in the graph, in the engine)."""
        kinds = dict.fromkeys((product.op_type, product.expected) for product in self.products)
        groups = [(kind, [p.ok for p in self.products if (p.op_type, p.expected) == kind]) for kind in kinds]
        return [(*kind, len(each), sum(each)) for kind, each in groups]

    def __str__(self) -> str:
        return "\n".join([self._headline(), *(f"  {line}" for line in self._products()), *self._findings()])

    def _repr_html_(self) -> str:
        lines = "".join(f"<p>{html.escape(line)}</p>" for line in (self._headline(), *self._products()))
        head = "".join(f"<th>{name}</th>" for name in ("rule", "level", "node", "what"))
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in finding) for finding in self.findings)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return lines + (f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if body else "")

    def _headline(self) -> str:
        levels = Counter(finding.level for finding in self.findings)
        found = ", ".join(f"{levels[level]} {level}" for level in LEVELS if levels[level]) or "nothing to say"
        return f"{self.model_name}: {self.quantized} quantised products; {found}"

    def _products(self) -> list[str]:
        lines = [f"{op}: {found} of {expected} in {kind}" for op, kind, expected, found in self.counts()]
        for op in _QDQ:
            states = Counter(account.state for account in self.accounts if account.op_type == op)
            if states:
                lines.append(f"{op}: " + ", ".join(f"{count} {state}" for state, count in states.most_common()))
        return lines

    def _findings(self) -> Iterator[str]:
        for rule in dict.fromkeys(finding.rule for finding in self.findings):
            places = [finding for finding in self.findings if finding.rule == rule]
            requires, why, mend = RULES[rule][2:5] if rule in RULES else ("", *ENGINE_RULES[rule])
            for level in dict.fromkeys(finding.level for finding in places):
                here = [finding for finding in places if finding.level == level]
                yield f"{level}: {rule} ({len(here)})"
                yield from (f"    {finding.node}: {finding.what}" for finding in here[:_SHOWN])
                if len(here) > _SHOWN:
                    yield f"    and {len(here) - _SHOWN} more"
            if requires:
                yield f"  requires: {requires}"
            yield f"  why: {why}"
            yield f"  mend: {mend}"


def lint(model: Model, engine: Engine | None = None) -> Lint:
    """Explain what in a quantised graph TensorRT cannot take, cannot fuse, or gains nothing from.

    Without an engine the rules of `trtkit.quant.lint` look at the graph. With one, every quantised product, every
    QuantizeLinear and DequantizeLinear and every kernel that only moves 8-bit numbers is accounted for as well.

    Args:
        model: a quantised model, ours or anybody's.
        engine: built from it.

    Raises:
        ModelError: the model has no Q/DQ.
        EngineError: the engine was built from another model.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('''<ir_version: 10, opset_import: ["": 20]>
    ...     g (float[n, 2] x) => (float[n, 2] y) <float s = {0.1}, int8 z = {0}, float[2, 2] w = {1, 2, 3, 4}> {
    ...     r = Relu(x)  q = QuantizeLinear(r, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(d, w)}'''))
    >>> print(lint(model))
    g: 0 quantised products; 1 costly
    costly: one-sided (1)
        MatMul_3: its activation is 8-bit codes, its weight is float
      requires: Both factors of a Conv, Gemm or MatMul are quantised, or neither.
      why: The kernels that multiply 8-bit codes take two of them. With one, it is dequantised and the product is float.
      mend: Put the missing pair (activation) or DequantizeLinear (weight) in, or take the other one away.
    """
    graph = QuantizedGraph(model)
    findings = list(check(model))
    products: list[Product] = []
    accounts: list[Account] = []
    if engine is not None:
        digest = engine.manifest["model_sha256"]
        if engine.model is not model and hashlib.sha256(model.to_bytes()).hexdigest() != digest:
            raise EngineError(f"The engine was built from another model than {model.name!r}, or from it before it was "
                              f"changed (it was called {engine.manifest['model']!r}).")  # fmt: skip
        told = _Told(graph, fusion_map(model, engine.layers), {f.node: f for f in findings if f.level != EXPLAINED})
        products = [told.product(node) for node in graph.products if graph.quantized(node)]
        accounts = [told.account(node) for node in graph.nodes if node.op_type in _QDQ]
        findings += [*told.lost(products), *told.unfused(accounts), *told.reformats()]
    findings.sort(key=lambda finding: LEVELS.index(finding.level))
    quantized = sum(map(graph.quantized, graph.products))
    return Lint(model.name, quantized, tuple(findings), tuple(products), tuple(accounts))


class _Told:
    """The engine's layers beside the graph."""

    def __init__(self, graph: QuantizedGraph, fusion: FusionMap, broken: dict[str, Finding]) -> None:
        self.graph, self.fusion, self.broken = graph, fusion, broken
        self.by_name = {node.name or "": node for node in graph.nodes}
        self.naming: dict[str, list[Layer]] = {}
        for layer in fusion.kernels:
            for name in layer.onnx_nodes:
                self.naming.setdefault(name, []).append(layer)
        self.given = {node.name: node for node in fusion.nodes}

    def product(self, node: ir.Node) -> Product:
        name = node.name or ""
        dq = self.graph.source(node.inputs[0])
        kind = code_type(dq) if dq is not None else None
        expected = "FP8" if kind is not None and kind.name.startswith("FLOAT8") else "Int8"
        index = self.given[name].kernel
        if index is None:
            return Product(name, node.op_type, expected, "", "", "", (0, 0))
        layer = self.fusion.kernels[index]
        reads, writes = ([tensor.dtype for tensor in side] for side in (layer.inputs, layer.outputs))
        # a library's kernel reads its factors first; a generated one that multiplies before the product dequantises,
        # unless it has the Q inside, which ends with rounding and a cast
        before = re.split("Fc|Corr|Gemm", layer.ops)[0]
        codes = ["Int8"] if before.endswith("RounCast") else [dtype for dtype in reads if dtype in CODES]
        inside = "Mul" not in before or before.endswith("RounCast")
        whole = inside if _generated(layer) else codes[:1] == reads[:1]
        found = codes[0] if codes and whole else next((dtype for dtype in reads if dtype not in CODES), "Float")
        channels = _channels(node, layer) if found in CODES and node.op_type == "Conv" else (0, 0)
        return Product(name, node.op_type, expected, found, ", ".join(dict.fromkeys(writes)), layer.name, channels)

    def lost(self, products: Sequence[Product]) -> Iterator[Finding]:
        """Products that are float in the engine, that write float for a Q behind them, or that read zeros."""
        for product in products:
            node = self.by_name[product.node]
            if not product.ok:
                reads = f"its kernel {product.kernel} reads {product.found}"
                reason = reads if product.kernel else self.given[product.node].reason
                what = f"{product.expected} expected; {reason}{self._because(node) or self._dequantised(node)}"
                yield Finding("not-8-bit", COSTLY, product.node, what)
            elif product.writes not in CODES and self.graph.precedes_q(node.outputs[0]):
                what = f"its kernel {product.kernel} reads {product.found} and writes {product.writes}"
                yield Finding("float-result", EXPLAINED, product.node, what)
            have, read = product.channels
            if read > have:
                what = f"its input has {have} channels, its kernel {product.kernel} reads {read}"
                yield Finding("padded", COSTLY if read >= 2 * have else EXPLAINED, product.node, what)

    def _because(self, node: ir.Node) -> str:
        """What is to be mended at a node, or on the way from what was computed before it."""
        near = [node]
        for each in near:
            finding = self.broken.get(each.name or "")
            if finding is not None:
                return f"; {finding.rule} at {each.name}: {finding.what}"
            makers = [value.producer() for value in each.inputs if value is not None]
            near += [m for m in makers if m is not None and m not in near and (m.op_type in _QDQ or hands_on(m))]
        return ""

    def _dequantised(self, node: ir.Node) -> str:
        """The kernel that dequantises a product's weight, from constants alone, before each run of the product."""
        dq = self.graph.source(node.inputs[1])
        layers = self.naming.get(dq.name or "", []) if dq is not None else []
        kernel = next((layer.name for layer in layers if not layer.inputs), "")
        return f"; its weight is dequantised in each run by {kernel}" if kernel else ""

    def account(self, node: ir.Node) -> Account:
        name = node.name or ""
        layers = self.naming.get(name, [])
        if constant_of(node) is not None and (node.op_type == "QuantizeLinear" or not layers):
            return Account(name, node.op_type, FOLDED, "", "computed while building: it works on a constant")
        if not layers:
            return Account(name, node.op_type, MERGED, "", self.given[name].reason)
        if node.op_type == "QuantizeLinear" and self._stays_inside(node, layers):
            why = "all that dequantises its codes is in the same kernel"
            return Account(name, node.op_type, IN_PASSING, layers[0].name, why)
        alone = [layer for layer in layers if not any(self._computes(other) for other in layer.onnx_nodes)]
        if alone:
            return Account(name, node.op_type, ALONE, alone[0].name, self._why_alone(node, alone[0]))
        best = min(layers, key=_generated)
        others = ", ".join(other for other in best.onnx_nodes if self._computes(other))
        return Account(name, node.op_type, FUSED, best.name, f"with {others}")

    def _computes(self, name: str) -> bool:
        return name in self.by_name and self.by_name[name].op_type not in _QDQ

    def _moves(self, name: str) -> bool:
        return self._computes(name) and self.by_name[name] not in self.graph.products

    def _stays_inside(self, q: ir.Node, layers: Sequence[Layer]) -> bool:
        readers = [node for node, _ in q.outputs[0].uses()]
        inside = [self.naming.get(node.name or "") for node in readers if node.op_type == "DequantizeLinear"]
        return len(layers) == 1 and len(inside) == len(readers) > 0 and all(each == list(layers) for each in inside)

    def _why_alone(self, node: ir.Node, alone: Layer) -> str:
        """Why no kernel can take a Q along; empty when one could, and for a DQ, which its reader could take."""
        if node.op_type == "DequantizeLinear":
            return ""
        maker = origin(node.inputs[0])
        if maker is None:
            return AT_INPUT
        if self.graph.quantized(maker):
            return f"{maker.name} writes float, see float-result; this kernel rescales and rounds it"
        layers = self.naming.get(maker.name or "", [])
        fixed = next((layer for layer in layers if not _generated(layer)), None)
        if fixed is not None:
            return f"{fixed.name} ({fixed.kind}), which computes {maker.name}, takes no rounding along"
        given, wanted = ({tensor.format for tensor in side} for side in (alone.inputs, alone.outputs))
        turned = f"it also turns {maker.name} from {', '.join(given)} to {', '.join(wanted)}, as its reader needs it"
        return turned if given and wanted and given.isdisjoint(wanted) else ""

    def unfused(self, accounts: Sequence[Account]) -> Iterator[Finding]:
        for account in accounts:
            if account.state not in (ALONE, IN_PASSING) or account.why == AT_INPUT:  # that a finding on the graph says
                continue
            node = self.by_name[account.node]
            near = [node, *_readers(node), *(after for reader in _readers(node) for after in _readers(reader))]
            because = next(filter(None, map(self._because, near)), "")
            rule = "own-kernel" if account.state == ALONE else "in-passing"
            why = account.why or ("" if because else "nothing explains it")
            level = COSTLY if because or not account.why else EXPLAINED
            yield Finding(rule, level, account.node, f"{account.kernel}{': ' if why else ''}{why}{because}")

    def reformats(self) -> Iterator[Finding]:
        """Kernels that only move numbers, between others."""
        makers = {tensor.name: layer for layer in self.fusion.kernels for tensor in layer.outputs}
        read = {tensor.name: layer for layer in self.fusion.kernels for tensor in layer.inputs}
        for layer in self.fusion.kernels:
            words = re.findall("[A-Z][a-z]+", layer.ops)
            types = {tensor.dtype for tensor in (*layer.inputs, *layer.outputs)}
            if not words or not set(words) <= _MOVING or not types & set(CODES):
                continue
            before = [makers[tensor.name] for tensor in layer.inputs if tensor.name in makers]
            after = [read[tensor.name] for tensor in layer.outputs if tensor.name in read]
            if not before or not after:
                continue  # at an end of the graph, where the caller's layout counts
            wanted = [name for name in layer.onnx_nodes if self._moves(name)]
            what = f"{layer.name} ({layer.ops}) between {before[0].name} and {after[0].name}"
            reason = f"; the graph asks for it: {', '.join(wanted)}" if wanted else "; nothing in the graph asks for it"
            yield Finding("reformat", EXPLAINED if wanted else COSTLY, (wanted or [layer.name])[0], what + reason)


def _generated(layer: Layer) -> bool:
    """Whether TensorRT wrote a kernel for this layer alone; others come from its library."""
    return layer.kind == "kgen" or layer.ops != layer.kind


def _readers(node: ir.Node) -> list[ir.Node]:
    return [reader for reader, _ in node.outputs[0].uses()]


def _channels(conv: ir.Node, layer: Layer) -> tuple[int, int]:
    weight = conv.inputs[1]
    dq = origin(weight) if weight is not None else None
    codes = constant_of(dq) if dq is not None else None
    shapes = [tensor.shape for tensor in layer.inputs if tensor.dtype in CODES]
    if codes is None or not shapes or len(shapes[0]) < 3:
        return 0, 0
    return int(codes.shape.numpy()[1]) * conv.attributes.get_int("group", 1), shapes[0][1]
