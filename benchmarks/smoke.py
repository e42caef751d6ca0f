"""Does a session do what it says, on this device? Small checks, each on its own; the results go to one JSON file."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import torch

import trtkit
from trtkit.errors import EngineError, ModelError, TrtkitError
from trtkit.model import Model

HEAD = '<ir_version: 10, opset_import: ["": 20]> smoke '


def run(device: str, path: Path, say: Callable[[str], None]) -> None:
    """Run all checks on `device`. Raises RuntimeError at the end when some failed; the file has the tracebacks."""
    results = {}
    for check in CHECKS:
        try:
            results[check.__name__] = f"ok: {check(device) or ''}"
        except Exception:  # noqa: BLE001 - the next check is independent of this one
            results[check.__name__] = f"FAILED: {traceback.format_exc()}"
    path.write_text(json.dumps(results, indent=1))
    failed = [name for name, text in results.items() if text.startswith("FAILED")]
    say(f"smoke: {len(results) - len(failed)} of {len(results)} checks passed")
    for name in failed:
        say(f"  {name}: {results[name].strip().splitlines()[-1][:150]}")
    if failed:
        raise RuntimeError(f"smoke checks failed: {', '.join(failed)}")


def model(text: str, **weights: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(HEAD + text)
    proto.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    return trtkit.load(proto)


def matmul() -> Model:
    """y = x @ w, x of shape (n, 16)."""
    return model("(float[n, 16] x) => (float[n, 8] y) {y = MatMul(x, w)}", w=draw((16, 8), seed=1))


def draw(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def as_array(value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        return value.float().numpy() if value.dtype == torch.bfloat16 else value.numpy()
    return np.asarray(value)


def close(got: Any, want: np.ndarray, tolerance: float = 5e-3) -> None:
    got = as_array(got)
    assert got.shape == want.shape, f"shape {got.shape}, expected {want.shape}"
    error = np.linalg.norm(got.astype(np.float64) - want) / np.linalg.norm(want)
    assert error <= tolerance, f"relative error {error:.2e}"


def raises(kind: type[Exception] | tuple[type[Exception], ...], fn: Callable[[], Any]) -> str:
    try:
        fn()
    except kind as error:
        return f"{type(error).__name__}: {str(error)[:160]}"
    raise AssertionError(f"nothing was raised, expected {kind}")


def dynamic_batch(device: str) -> None:
    network = matmul()
    with trtkit.build(network, shapes={"x": [(1, 16), (4, 16), (8, 16)]}).open(device) as session:
        for i, batch in enumerate((1, 8, 3, 1, 8)):
            x = draw((batch, 16), seed=i)
            close(session.run({"x": x})["y"], network.run(x)["y"])


def default_shapes(device: str) -> None:
    network = matmul()
    with trtkit.build(network).open(device) as session:
        x = draw((32, 16))
        close(session.run({"x": x})["y"], network.run(x)["y"])


def float16(device: str) -> str:
    network = model("(float16[n, 4] x) => (float16[n, 4] y) {y = Add(x, x)}")
    x = draw((3, 4)).astype(np.float16)
    with trtkit.build(network).open(device) as session:
        y = session.run({"x": x})["y"]
        close(y, 2.0 * x)
        return f"{type(y).__name__} {y.dtype}"


def bfloat16(device: str) -> str:
    # through float32 in the middle, since ONNX Runtime has few bfloat16 operators on the CPU
    network = model("(bfloat16[n, 4] x) => (bfloat16[n, 4] y) {a = Cast<to = 1>(x) b = Add(a, a) y = Cast<to = 16>(b)}")
    x = draw((3, 4)).astype(ml_dtypes.bfloat16)
    with trtkit.build(network).open(device) as session:
        y = session.run({"x": x})["y"]
        close(y, 2.0 * x.astype(np.float32), 1e-2)
        return f"{type(y).__name__} {y.dtype}"


def int64_in_and_out(device: str) -> str:
    text = "(int64[n, 5] i) => (float[n, 5, 4] y, int64[n, 5] j) {y = Gather(t, i) j = Add(i, i)}"
    network = model(text, t=draw((9, 4)))
    i = np.random.default_rng(0).integers(0, 9, (2, 5))
    with trtkit.build(network).open(device) as session:
        out = session.run({"i": i})
        close(out["y"], draw((9, 4))[i])
        assert as_array(out["j"]).tolist() == (2 * i).tolist()
        return f"{as_array(out['j']).dtype}"


def torch_inputs(device: str) -> str:
    """CUDA tensors are taken as they are; what a session does not take, it says."""
    network, x, turned = matmul(), torch.from_numpy(draw((4, 16))), torch.from_numpy(draw((16, 4), seed=2)).T
    with trtkit.build(network).open(device) as session:
        for _ in range(3):
            y = session.run({"x": x.to(device)})["y"]
            close(y, network.run(x.numpy())["y"])
        if device == "cpu":
            close(session.run({"x": turned})["y"], network.run(np.ascontiguousarray(turned.numpy()))["y"])
            return f"{type(y).__name__}"
        host = raises(ModelError, lambda: session.run({"x": x}))
        strided = raises(ModelError, lambda: session.run({"x": turned.cuda()}))
        return f"{type(y).__name__} on {y.device}; host tensor: {host}; strided: {strided}"


def many_pointers(device: str) -> None:
    """A CUDA graph remembers addresses: fresh tensors, other shapes and reused memory must not confuse a session."""
    network = matmul()
    weights = torch.from_numpy(draw((16, 8), seed=1)).to(device)
    with trtkit.build(network).open(device) as session:
        for i in range(200):
            x = torch.from_numpy(draw((1 + i % 5, 16), seed=i)).to(device)
            feed = x if device == "cuda" else x.numpy()
            close(session.run({"x": feed})["y"], as_array(x.double() @ weights.double()))


def ordered_after_torch(device: str) -> None:
    """The input is still being computed on torch's stream when `run` is called, and its result is used at once."""
    network, size = matmul(), 4096 if device == "cuda" else 256
    with trtkit.build(network).open(device) as session:
        big = torch.randn(size, size, device=device) / size**0.5
        for _ in range(20):
            x = big
            for _ in range(10):
                x = torch.tanh(x @ big)
            x = x[:4, :16].contiguous()
            y = session.run({"x": x if device == "cuda" else x.numpy()})["y"]
            y = torch.as_tensor(y) * 1.0  # the next kernel on torch's stream
            close(y, network.run(x.cpu().numpy())["y"])


def results_are_ones_own(device: str) -> str:
    """Is an output still what it was after the next call? Either answer is fine when the documentation says it."""
    with trtkit.build(matmul()).open(device) as session:
        first = session.run({"x": draw((2, 16))})["y"]
        before = as_array(first).copy()
        session.run({"x": draw((2, 16), seed=5)})
        return "kept" if np.array_equal(as_array(first), before) else "overwritten by the next call"


def wrong_inputs(device: str) -> str:
    with trtkit.build(matmul()).open(device) as session:
        bad = {
            "name": {"z": draw((2, 16))}, "missing": {}, "rank": {"x": draw((16,))}, "width": {"x": draw((2, 15))},
            "dtype": {"x": draw((2, 16)).astype(np.float64)}, "empty": {"x": draw((0, 16))},
        }  # fmt: skip
        said = [f"{what}: {raises(ModelError, lambda f=feed: session.run(f))}" for what, feed in bad.items()]
        if device == "cuda":
            said.append(raises(ModelError, lambda: session.run({"x": torch.zeros(2, 15, device="cuda")})))
            said.append(raises(ModelError, lambda: session.run({"x": torch.zeros(2, 16, device="cuda").double()})))
            said.append(raises((ModelError, EngineError), lambda: session.run({"x": draw((1000, 16))})))
        close(session.run({"x": draw((2, 16))})["y"], matmul().run(draw((2, 16)))["y"])  # and it still works
    return " | ".join(said)


def closing(device: str) -> str:
    session = trtkit.build(matmul()).open(device)
    session.run({"x": draw((2, 16))})
    session.close()
    session.close()
    return raises(TrtkitError, lambda: session.run({"x": draw((2, 16))}))


def saved_and_damaged(device: str) -> str:
    """A saved engine runs again; a cut one and one of another version say so."""
    network = matmul()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.engine"
        trtkit.build(network).save(path)
        with trtkit.open_engine(path, model=network).open(device) as session:
            close(session.run({"x": draw((2, 16))})["y"], network.run(draw((2, 16)))["y"])
        facts = path.with_name("m.engine.json")
        good = facts.read_text()
        facts.write_text(good.replace('"version": "', '"version": "0.'))
        other = raises(EngineError, lambda: trtkit.open_engine(path, model=network).open(device))
        facts.write_text(good)
        path.write_bytes(path.read_bytes()[:-100])
        said = raises(EngineError, lambda: trtkit.open_engine(path, model=network).open(device))
    return f"{said} | {other}"


def several_sessions(device: str) -> None:
    network = matmul()
    engine = trtkit.build(network)
    with engine.open(device) as a, engine.open(device) as b:
        x, z = draw((2, 16)), draw((5, 16), seed=3)
        close(a.run({"x": x})["y"], network.run(x)["y"])
        close(b.run({"x": z})["y"], network.run(z)["y"])
        close(a.run({"x": z})["y"], network.run(z)["y"])


CHECKS: tuple[Callable[[str], str | None], ...] = (
    dynamic_batch, default_shapes, float16, bfloat16, int64_in_and_out, torch_inputs, many_pointers,
    ordered_after_torch, results_are_ones_own, wrong_inputs, closing, saved_and_damaged, several_sessions,
)  # fmt: skip
