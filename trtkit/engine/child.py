"""The one function that drives TensorRT's builder, and the child process it runs in.

A process of its own, because TensorRT may abort the process it lives in, because after a failed build some versions
fail at every later one, and because a process has one TensorRT logger for its whole life.
Started as `python -m trtkit.engine.child FOLDER`: reads FOLDER/request.json and the ONNX file it names, reports
progress on standard output, one JSON object a line, and leaves FOLDER/plan and FOLDER/result.json.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trtkit.engine.cache import TimingCache
from trtkit.engine.device import gpu
from trtkit.engine.trt import require, trt

Progress = Callable[[str, int, int], None]


class Log(trt.ILogger):
    """Keeps every message. TensorRT uses the first logger of a process for all later builds, so there is one."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.messages: list[str] = []
        self.errors: list[str] = []

    def log(self, severity: trt.ILogger.Severity, message: str) -> None:
        self.messages.append(message)
        # without a GPU most errors drag one about the missing driver behind them, which explains nothing
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR) and "cudaError" not in message:
            self.errors.append(message)

    def clear(self) -> None:
        self.messages.clear()
        self.errors.clear()


class Monitor(trt.IProgressMonitor):
    """Passes the builder's phases and steps on."""

    def __init__(self, report: Progress) -> None:
        trt.IProgressMonitor.__init__(self)
        self.report = report
        self.steps: dict[str, int] = {}

        self.failure: BaseException | None = None

    def tell(self, phase: str, step: int, steps: int) -> None:
        """Report, keeping an exception for later: it must not travel through TensorRT's C++."""
        try:
            if self.failure is None:
                self.report(phase, step, steps)
        except BaseException as error:  # noqa: BLE001  (raised again by build_plan)
            self.failure = error

    def phase_start(self, phase_name: str, parent_phase: str, num_steps: int) -> None:
        self.steps[phase_name] = num_steps
        self.tell(phase_name, 0, num_steps)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self.tell(phase_name, step + 1, self.steps.get(phase_name, step + 1))
        return self.failure is None  # False cancels the build

    def phase_finish(self, phase_name: str) -> None:
        steps = self.steps.pop(phase_name, 1)
        self.tell(phase_name, steps, steps)


_log: Log | None = None


def log() -> Log:
    """The logger of this process, emptied."""
    global _log
    _log = _log or Log()
    _log.clear()
    return _log


def create_network(builder: trt.Builder) -> trt.INetworkDefinition:
    """An empty network, strongly typed: the only kind that 11 and RTX know, and it behaves the same on 10."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return builder.create_network(0 if flag is None else 1 << int(flag))


def build_plan(onnx_file: str, request: dict[str, Any], report: Progress) -> tuple[bytes | None, dict[str, Any]]:
    """Parse an ONNX file and build it: the serialised engine and what there is to say about it.

    On failure the first is None, and `errors` in the second holds TensorRT's own words, ONNX nodes included.
    """
    logger = log()
    builder = trt.Builder(logger)
    network = create_network(builder)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(onnx_file):
        return None, {"errors": [*_parser_errors(parser), *logger.errors], "stage": "parse"}
    return build_network(builder, network, request, report)


def build_network(
    builder: trt.Builder, network: trt.INetworkDefinition, request: dict[str, Any], report: Progress
) -> tuple[bytes | None, dict[str, Any]]:
    """Build a finished network, wherever it came from; what comes back is that of `build_plan`."""
    assert _log is not None  # whoever made the builder gave it this log
    logger = _log
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.progress_monitor = monitor = Monitor(report)
    if request.get("workspace_bytes"):
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request["workspace_bytes"])
    if not request.get("tf32", True):
        config.clear_flag(trt.BuilderFlag.TF32)
    _set_refitting(config, bool(request.get("refittable")), bool(request.get("stripped")))
    unknown = _set_targets(config, request.get("compute_capabilities") or [])
    if unknown:
        return None, {"errors": [unknown], "stage": "target"}
    for number, profile in enumerate(request["profiles"]):
        if not _add_profile(builder, config, profile):
            return None, {"errors": [f"profile {number} is impossible: {profile}", *logger.errors], "stage": "profile"}
    timings = TimingCache.open(config)
    start = time.perf_counter()
    plan = builder.build_serialized_network(network, config)
    seconds = time.perf_counter() - start
    if timings is not None:
        timings.save()
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        return None, {"errors": logger.errors or logger.messages[-5:], "stage": "build"}
    data = bytes(plan)
    return data, {
        "seconds": seconds,
        "network_layers": network.num_layers,
        **_layers(data, logger),
        "inputs": [network.get_input(i).name for i in range(network.num_inputs)],
    }


def _parser_errors(parser: trt.OnnxParser) -> list[str]:
    described = []
    for i in range(parser.num_errors):
        error = parser.get_error(i)
        node = f"node {error.node_name()!r} ({error.node_operator()}): " if error.node_operator() else ""
        described.append(f"{node}{error.desc()}")
    return described


def _set_refitting(config: trt.IBuilderConfig, refittable: bool, stripped: bool) -> None:
    """Weights that can be changed, or are left out. Stripped alone means: to be refitted with the same ones again."""
    if refittable:
        config.set_flag(trt.BuilderFlag.REFIT)
    if stripped:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        if not refittable:
            config.set_flag(getattr(trt.BuilderFlag, "REFIT_IDENTICAL", trt.BuilderFlag.REFIT))


def _set_targets(config: Any, capabilities: list[list[int]] | str) -> str:
    """Name the GPUs to build for, e.g. [[8, 9], [12, 0]], or "current"; returns what is wrong with them, if anything.

    TensorRT-RTX only; `config` is untyped, since the stubs of the full library lack it.
    """
    if not capabilities:
        return ""
    if not hasattr(config, "set_compute_capability"):
        return "this TensorRT builds for the GPU that is here and no other; leave compute_capabilities out"
    known: dict[str, Any] = vars(trt)["ComputeCapability"].__members__
    if isinstance(capabilities, str):
        config.num_compute_capabilities = 1
        config.set_compute_capability(known["CURRENT"], 0)
        return ""
    config.num_compute_capabilities = len(capabilities)
    for i, (major, minor) in enumerate(capabilities):
        if f"SM{major}{minor}" not in known:
            return f"no compute capability {major}.{minor}; it builds for {', '.join(known)}"
        config.set_compute_capability(known[f"SM{major}{minor}"], i)
    return ""


def _add_profile(builder: trt.Builder, config: trt.IBuilderConfig, shapes: dict[str, list[list[int]]]) -> bool:
    profile = builder.create_optimization_profile()
    for name, three in shapes.items():
        least, best, most = (trt.Dims(shape) for shape in three)
        profile.set_shape(name, least, best, most)
    return config.add_optimization_profile(profile) != -1


def _layers(plan: bytes, logger: Log) -> dict[str, Any]:
    """The engine's layers: from the inspector where this GPU can open the engine, else from the build log."""
    device = gpu()
    if device is not None and require().runs_on(device.compute_capability):
        runtime = trt.Runtime(logger)
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is not None:
            text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
            return {"layers_from": "inspector", "layers": text}
    listed = [message for message in logger.messages if message.startswith("Layers:")]
    return {"layers_from": "log", "layers": listed}


def main(folder: Path) -> int:
    request = json.loads((folder / "request.json").read_text())
    out = sys.stdout

    def report(phase: str, step: int, steps: int) -> None:
        out.write(json.dumps([phase, step, steps]) + "\n")
        out.flush()

    plan, result = build_plan(request["onnx_file"], request, report)
    if plan is not None:
        (folder / "plan").write_bytes(plan)
    (folder / "result.json").write_text(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
