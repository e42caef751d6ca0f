"""One setting (network, precision, batch) measured for every contender, each on its best footing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch

import trtkit
from benchmarks.networks import Network
from trtkit.bench import torch_peers
from trtkit.bench.measure import Measurement, measure
from trtkit.bench.record import remove, save
from trtkit.bench.torch_peers import Call
from trtkit.errors import VerificationError
from trtkit.passes import run_passes
from trtkit.passes.absorb_bias import AbsorbBias
from trtkit.passes.fix_shapes import fix_shapes
from trtkit.passes.low_latency import low_latency

log = logging.getLogger("gpu_step1")

# Where torch.compile, which takes long to compile, need not be tried in all forms: ResNet-50 at batch 1 on an H200 took
# 0.555 ms as nhwc and 0.607 as nchw in FP16, 0.679 and 0.731 in FP32.
COMPILED_FORM = {"resnet50": "nhwc", "resnet18-quick": "nhwc"}
TOLERANCE = {"fp32": 1e-2, "fp16": 2e-2}  # relative error against FP64; FP32 means TF32 arithmetic here, for everybody
SETS = 4  # input sets that take turns
Reference = Callable[[], list[torch.Tensor]]


@dataclass(frozen=True)
class Setting:
    """What is measured: `key` names the record file."""

    key: str
    network: Network
    precision: str
    batch: int


@dataclass
class Result:
    """One contender's best: its figures, what form won, and how far from the reference it is."""

    measurement: Measurement
    extra: dict[str, Any] = field(default_factory=dict)


Timer = Callable[[Setting, str, str], Result]  # of a setting, a contender and a form


class Runner:
    """Measures settings and writes their records; keeps what is expensive to make (modules, exported graphs)."""

    def __init__(
        self, device: str, command: str, say: Callable[[str], None], *, quick: bool = False, compile_peer: bool = True
    ) -> None:
        self.device, self.command, self.say = device, command, say
        self.quick, self.compile_peer = quick, compile_peer
        self.module = cache(self._module)
        self.graph = cache(self._graph)
        self.build = cache(self._build)

    # What is measured

    def measure(self, setting: Setting, timer: Timer | None = None) -> dict[str, Result]:
        """All contenders of one setting, each in its fastest form: write the records, print them and their ratios.

        `timer` measures one form of one contender; without it, `time` does so here, in this process.
        """
        reference = cache(lambda: self._reference(setting))  # not before it is asked for: see `_time`
        results: dict[str, Result] = {}
        for name in self.contenders:
            try:
                one = self._fastest(setting, name, timer or (lambda s, n, form: self.time(s, n, form, reference)))
            except RuntimeError as error:  # one contender's failure must not cost the others
                self.say(f"{setting.key:24s} {name:12s} FAILED: {error}")
                remove(f"{setting.key}/{name}")  # an older run's number must not stand beside those of this one
                continue
            results[name] = one
            save(f"{setting.key}/{name}", one.measurement, command=self.command, extra=one.extra)
            self._say_result(setting, name, one)
        say_ratios(setting.key, results, self.say)
        failed = [name for name in self.contenders if name not in results]
        if failed:
            raise RuntimeError(f"{setting.key}: {', '.join(failed)} failed")
        return results

    def time(self, setting: Setting, name: str, form: str, reference: Reference | None = None) -> Result:
        """One form of one contender: its time, then its errors against the network in FP64."""
        reference = reference or (lambda: self._reference(setting))
        try:
            return (self._ours if name == "trtkit" else self._peer)(setting, name, form, reference)
        finally:
            if self.device == "cuda":
                torch.cuda.empty_cache()

    @property
    def contenders(self) -> tuple[str, ...]:
        """Who can be measured on this device, and is wanted."""
        graph = ("eager-graph",) if self.device == "cuda" else ()
        return ("trtkit", "eager", *graph, *(("compile",) if self.compile_peer else ()))

    def _forms(self, setting: Setting, name: str) -> Iterator[str]:
        """The forms of one contender that are worth a try; for torch.compile the fastest alone, where it is known."""
        if name == "trtkit":
            if setting.batch == 1:
                yield "low-latency"
            elif "LayerNormalization" in self.graph(setting.network, "fp32").op_counts:
                yield "absorbed"
            yield "fp32" if setting.precision == "fp32" else "autocast"
        elif name == "compile" and setting.network.name in COMPILED_FORM:
            yield COMPILED_FORM[setting.network.name]
        else:
            yield from setting.network.variants

    def _fastest(self, setting: Setting, name: str, timer: Timer) -> Result:
        """The fastest form; what the others took stays with it. RuntimeError if none runs and is right."""
        results: dict[str, Result] = {}
        failed: dict[str, str] = {}

        def attempt(form: str) -> None:
            try:
                results[form] = timer(setting, name, form)
            except Exception as error:
                log.exception("%s/%s as %s", setting.key, name, form)
                failed[form] = f"{type(error).__name__}: {error}"[:200]

        for form in self._forms(setting, name):
            attempt(form)
        if not results and name == "trtkit" and setting.precision == "fp16":
            attempt("half")  # where FP16 of ours is refused: the module's own
        if not results:
            raise RuntimeError(f"no form runs and is right: {failed}")
        best = results[min(results, key=lambda form: results[form].measurement.median_ms)]
        if len(results) > 1:
            best.extra["forms_ms"] = {form: float(f"{r.measurement.median_ms:.6g}") for form, r in results.items()}
        best.extra |= {"failed_forms": failed} if failed else {}
        return best

    def _say_result(self, setting: Setting, name: str, result: Result) -> None:
        m, error = result.measurement, result.extra["relative_error"]
        limit = TOLERANCE[setting.precision]
        verdict = "" if error <= limit else f"  OVER THE TOLERANCE {limit}"
        times = f"{m.median_ms:9.4f} ms  p10 {m.p10_ms:9.4f}  p90 {m.p90_ms:9.4f}  n {m.count:5d}"
        self.say(f"{setting.key:24s} {name:12s} {times}  error {error:.1e}  {result.extra['form']}{verdict}")

    # The contenders

    def _peer(self, setting: Setting, name: str, form: str, reference: Reference) -> Result:
        """PyTorch, in one memory format or one form of attention."""
        inputs = setting.network.inputs(setting.batch, SETS, setting.precision, form, self.device)
        module = self.module(setting.network, setting.precision, form)
        call = {
            "eager": lambda: torch_peers.eager(module),
            "eager-graph": lambda: torch_peers.graphed(module, [inputs[0]]),
            "compile": lambda: torch_peers.compiled(module, "reduce-overhead"),
        }[name]()
        return self._time(call, inputs, reference, form)

    def _ours(self, setting: Setting, name: str, form: str, reference: Reference) -> Result:
        """An engine, refused with VerificationError where it is over the tolerance."""
        engine = self.build(setting, form)
        low = engine.model.inputs[0].dtype.name != "float32"
        inputs = setting.network.inputs(setting.batch, SETS, "fp16" if low else "fp32", "", self.device)
        with engine.open(self.device) as session:
            call, stream = session_call(session, self.device), getattr(session, "stream", None)
            result = self._time(call, inputs, reference, form, stream)
        error, limit = result.extra["relative_error"], TOLERANCE[setting.precision]
        if not error <= limit:
            raise VerificationError(f"{setting.key} from the {form} graph: relative error {error:.2e} over {limit}")
        result.extra |= {"engine_bytes": engine.size_bytes, "build_seconds": round(engine.build_seconds, 2)}
        log.info("%s %s: %s %s", setting.key, form, result, engine.manifest)
        return result

    def _build(self, setting: Setting, form: str) -> Any:
        """The engine of one setting, for exactly its batch: the peers are compiled for one shape as well.

        `build` would verify it in a session of its own, which costs the next one time (see `_time`), and with a
        reference on the CPU, which takes long for large batches. So it is held against FP64 on the GPU here, like
        everybody's results, and refused over the tolerance.
        """
        example = setting.network.inputs(setting.batch, 1, "fp32", "", "cpu")[0]
        shapes = {self.graph(setting.network, "fp32").inputs[0].name: tuple(example.shape)}
        if form in ("low-latency", "absorbed"):
            model = self._low_latency(setting, shapes) if form == "low-latency" else self._absorbed(setting)
            model = model if setting.precision == "fp32" else trtkit.autocast(model, "fp16", io="low")
        else:
            model = self.graph(setting.network, form)
        return trtkit.build(model, shapes=shapes, verify=False)

    def _low_latency(self, setting: Setting, shapes: dict[str, tuple[int, ...]]) -> Any:
        """The graph for single requests: for inputs of one shape, fused, and rewritten for a GPU that idles."""
        fixed = fix_shapes(self.graph(setting.network, "fp32"), shapes)
        return low_latency(trtkit.optimize(fixed, level=3))

    def _absorbed(self, setting: Setting) -> Any:
        """The graph without biases behind a LayerNormalization, for which attention needs no kernels of its own."""
        return run_passes(self.graph(setting.network, "fp32"), [AbsorbBias()])

    # What they share

    def _time(
        self, call: Call, inputs: list[torch.Tensor], reference: Reference, form: str, stream: Any = None
    ) -> Result:
        """The time first, then the errors, over many rounds of the inputs: a race in a kernel may be right most times.

        In this order, since at batch 1 a GPU that also computed a reference pauses longer between kernels (README.md).
        """
        for _ in range(3):
            call(inputs[0])
        runs = {"min_runs": 5, "min_seconds": 0.0, "warmup": 2} if self.quick else {"min_runs": 50, "min_seconds": 0.4}
        measurement = measure(call, inputs=inputs, device=self.device, stream=stream, **runs)
        errors = [
            relative_error(call(inputs[i]), wanted)
            for _ in range(1 if self.quick else 25)
            for i, wanted in enumerate(reference())
        ]
        return Result(measurement, {"relative_error": float(f"{max(errors):.3g}"), "form": form})

    def _reference(self, setting: Setting) -> list[torch.Tensor]:
        """The network in FP64 with its original weights, on the first two input sets."""
        variant = setting.network.export_variant
        module = self.module(setting.network, "fp64", variant)
        inputs = setting.network.inputs(setting.batch, SETS, "fp64", variant, self.device)[:2]
        # cuDNN's search for the fastest algorithm would cost more here than it gains
        with torch.inference_mode(), torch.backends.cudnn.flags(benchmark=False):
            return [module(tensor).clone() for tensor in inputs]

    def _module(self, network: Network, precision: str, variant: str) -> torch.nn.Module:
        return torch_peers.in_precision(network.make(variant), precision, self.device)

    def _graph(self, network: Network, form: str) -> Any:
        """The ONNX graph: FP32 as exported, or FP16 by our autocast, or FP16 exported from the halved module."""
        if form == "autocast":
            return trtkit.autocast(self.graph(network, "fp32"), "fp16", io="low")
        precision = "fp16" if form == "half" else "fp32"
        module = torch_peers.in_precision(network.make(network.export_variant), precision, "cpu")
        example = network.inputs(2, 1, precision, "", "cpu")[0]
        model = trtkit.load(module, example, name=network.name)
        small = trtkit.optimize(model)
        log.info("%s %s: %d nodes as exported, %d optimised", network.name, form, model.node_count, small.node_count)
        return small


def say_ratios(key: str, results: dict[str, Result], say: Callable[[str], None]) -> None:
    """Ours against the best peer and against eager, all from this run."""
    times = {name: result.measurement.median_ms for name, result in results.items()}
    ours = times.pop("trtkit", None)
    if ours is None or not times:
        return
    best = min(times, key=times.__getitem__)
    eager = f", {times['eager'] / ours:.2f}x eager" if "eager" in times else ""
    say(f"{key:24s} => trtkit {times[best] / ours:.2f}x the best peer ({best}){eager}")


def session_call(session: Any, device: str) -> Callable[[torch.Tensor], Any]:
    """A session as a function of one tensor: CUDA tensors as they are, CPU tensors through NumPy."""
    name = session.inputs[0].name
    if device == "cuda":
        return lambda tensor: next(iter(session.run({name: tensor}).values()))
    return lambda tensor: torch.from_numpy(next(iter(session.run({name: tensor.numpy()}).values())))


def relative_error(got: torch.Tensor, want: torch.Tensor) -> float:
    """‖got − want‖ / ‖want‖ in FP64; infinite for a wrong shape or for anything that is not a number.

    As `trtkit.engine.verify` has it for arrays, but computed where the tensors lie: BERT's outputs, of up to 50 MB,
    need not be copied to the CPU for each of 50 runs.
    """
    if got.shape != want.shape:
        return float("inf")
    if got.is_cuda:
        torch.cuda.synchronize()  # a session may have computed it on a stream of its own
    difference = torch.linalg.vector_norm(got.double() - want) / torch.linalg.vector_norm(want)
    return float(difference) if torch.isfinite(difference) else float("inf")
