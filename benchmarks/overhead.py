"""What `Session.run` adds to the barest loops there are: execute_async_v3, and the replay of a CUDA graph.

Host wall time per call over thousands of calls. Everybody is timed twice: `queued` launches without waiting and waits
once at the end; `waited` waits after every call, as somebody does who needs the answer. Contenders take turns, round by
round, so that a slow moment of the machine meets all of them, and what is added is the median over the rounds of the
difference within a round. The graph is the session's own: another one of the same kernels can be some microseconds
faster or slower by itself (README.md, two speeds), which is not of the session's making.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch

import trtkit
from trtkit.bench.measure import Measurement
from trtkit.bench.record import save

if TYPE_CHECKING:
    from benchmarks.contenders import Runner, Setting

ROUNDS = 60  # samples; each is the mean over `calls` calls
_OVER = "added_us_over_"


def run(runner: Runner, setting: Setting, command: str, say: Callable[[str], None]) -> None:
    """Records `session-overhead-tiny` and `session-overhead-NETWORK`, in microseconds a call."""
    network = runner.build(setting, "half" if setting.precision == "fp16" else "fp32")
    sample = setting.network.inputs(setting.batch, 1, setting.precision, "", runner.device)[0]
    tiny = trtkit.build(trtkit.load(_tiny()), shapes={"x": (1, 64)})
    cases = [("tiny", tiny, torch.randn(1, 64, device=runner.device), 100)]
    cases += [(setting.network.name, network, sample, 30)]
    for name, engine, tensor, calls in cases:
        calls = 3 if runner.quick else calls
        with engine.open(runner.device) as session:
            samples = _take_turns(_loops(engine, session, tensor, runner.device), calls, runner.device)
        for contender, taken in samples.items():
            measurement = Measurement.from_samples(taken, runner.device)
            added = _added(contender, samples)
            extra = {"calls": calls * ROUNDS, "per_sample": calls} | added
            save(f"session-overhead-{name}/{contender}", measurement, command=command, unit="us", extra=extra)
            if contender.startswith("session"):
                text = "".join(f", {us:+.2f} {over[len(_OVER) :]}" for over, us in added.items())
                say(f"overhead {name:14s} {contender}: {measurement.median_ms * 1e3:.2f} us a call{text}")


def _tiny() -> onnx.ModelProto:
    """Two small layers: next to no work for the GPU, so that what is left is the cost of calling."""
    rng = np.random.default_rng(0)
    weights = [rng.standard_normal((64, 64)).astype(np.float32) / 8 for _ in range(2)]
    text = '<ir_version: 10, opset_import: ["": 20]> tiny (float[n, 64] x) => (float[n, 64] y) ' \
           "{h = MatMul(x, w0) r = Relu(h) y = MatMul(r, w1)}"  # fmt: skip
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(w, f"w{i}") for i, w in enumerate(weights))
    return proto


def _loops(engine: Any, session: Any, tensor: torch.Tensor, device: str) -> dict[str, Callable[[], Any]]:
    """One call of each contender: the session, and on a GPU the two bare loops beside it."""
    name = engine.model.inputs[0].name
    feed = {name: tensor if device == "cuda" else tensor.numpy()}
    loops: dict[str, Callable[[], Any]] = {"session": lambda: session.run(feed)}
    if device == "cuda":
        loops |= {"execute-async": bare_runtime(engine, tensor), "graph-replay": bare_replay(session, feed)}
    return loops


def bare_replay(session: Any, feed: dict[str, Any]) -> Callable[[], Any]:
    """The CUDA graph that the session replays, launched by the driver on the session's stream."""
    from cuda.bindings import driver

    for _ in range(2):  # the second call has the graph
        session.run(feed)
    graph, stream, launch = session.graphs[-1], session.stream.handle, driver.cuGraphLaunch
    return lambda: launch(graph, stream)


def bare_runtime(engine: Any, tensor: torch.Tensor) -> Callable[[], Any]:
    """TensorRT's own runtime with nothing around it."""
    from trtkit.engine.trt import trt

    logger = trt.Logger(trt.Logger.ERROR)
    runtime = trt.Runtime(logger)
    plan = runtime.deserialize_cuda_engine(engine.plan)
    context = plan.create_execution_context()
    buffers = []
    for i in range(plan.num_io_tensors):
        name = plan.get_tensor_name(i)
        if plan.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            context.set_input_shape(name, tuple(tensor.shape))
            buffer = tensor
        else:
            dtype = torch.float16 if plan.get_tensor_dtype(name) == trt.DataType.HALF else torch.float32
            buffer = torch.empty(tuple(context.get_tensor_shape(name)), dtype=dtype, device="cuda")
        context.set_tensor_address(name, buffer.data_ptr())
        buffers.append(buffer)
    handle = torch.cuda.Stream().cuda_stream
    if not context.execute_async_v3(handle):
        raise RuntimeError("the bare execute_async_v3 refused to run")
    torch.cuda.synchronize()

    def execute(_alive: Any = (logger, runtime, plan, buffers)) -> bool:
        return bool(context.execute_async_v3(handle))

    return execute


def _take_turns(loops: dict[str, Callable[[], Any]], calls: int, device: str) -> dict[str, list[float]]:
    """Milliseconds per call of each loop in both ways; sample i of all of them is of round i."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    ways = {f"{name}-{way}": (fn, way == "waited") for name, fn in loops.items() for way in ("queued", "waited")}
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(ROUNDS + 3):  # the first three warm up
        for name, (fn, each) in ways.items():
            took = _time_calls(fn, wait, calls, each)
            if turn >= 3:
                samples[name].append(took)
    return samples


def _time_calls(fn: Callable[[], Any], wait: Callable[[], None], calls: int, wait_each: bool) -> float:
    """Milliseconds per call, the mean over `calls` calls."""
    wait()
    begin = time.perf_counter()
    if wait_each:
        for _ in range(calls):
            fn()
            wait()
    else:
        for _ in range(calls):
            fn()
        wait()
    return (time.perf_counter() - begin) * 1e3 / calls


def _added(contender: str, samples: dict[str, list[float]]) -> dict[str, float]:
    """Microseconds that the session takes more than each bare loop that waits in the same way."""
    kind, _, way = contender.rpartition("-")
    if kind != "session":
        return {}
    bare = [name for name in samples if name.endswith(way) and name != contender]
    return {
        f"{_OVER}{name}": round(median(a - b for a, b in zip(samples[contender], samples[name], strict=True)) * 1e3, 2)
        for name in bare
    }
