"""What goes wrong with engines, done on purpose: what is said of it, what is lost, and whether the process lives on.

    python3 -m benchmarks.gpu_faults --out out/gpu                  # everything, 3 minutes on one GPU
    python3 -m benchmarks.gpu_faults --only nan closed              # some of it
    python3 -m benchmarks.gpu_faults --device cpu --out out/q       # what needs no GPU

Each fault is tried many times in processes of its own. `handled` are the tries that ended as they should, in an
EngineError with the cause or in the right numbers; `harmless` those where the damage changed nothing; `crashed` those
that ended their process, `wrong` those that went on as if nothing were. Records: faults-DEVICE/FAULT, whose time is
that of one try.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

import trtkit
from trtkit.bench import record
from trtkit.bench.measure import Measurement
from trtkit.engine.cache import CacheFile
from trtkit.engine.device import gpu
from trtkit.engine.engine import Engine, open_engine
from trtkit.errors import EngineError, TrtkitError
from trtkit.model import Model

log = logging.getLogger("gpu_faults")

HANDLED, WRONG, CRASHED, HARMLESS = "handled", "wrong", "crashed", "harmless"
FLIPS = 48  # places of a plan at which bits are turned, each in turn
KILLS = 12
TOLERANCE = 5e-3  # relative error of a right answer; FP32 products in TF32
Outcome = tuple[str, str]  # one of the four words, and what was said


def network(seed: int = 0, channels: int = 64) -> Model:
    """Convolutions with a changeable batch; the weights differ by seed."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(seed)
    shapes = {"w1": (channels, 3, 3, 3), "w2": (channels, channels, 3, 3), "w3": (8, channels, 1, 1)}
    weights = [
        numpy_helper.from_array((rng.standard_normal(s) / np.sqrt(np.prod(s[1:]))).astype(np.float32), n)
        for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("Conv", ["d", "w3"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, ["n", c, 64, 64]) for n, c in (("x", 3), ("y", 8))]
    graph = helper.make_graph(nodes, f"net{seed}", ends[:1], ends[1:], weights)
    return trtkit.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def engine_of(seed: int = 0, **options: Any) -> Engine:
    return trtkit.build(
        network(seed), {"x": [(1, 3, 64, 64), (4, 3, 64, 64), (512, 3, 64, 64)]}, verify=False, **options
    )


def sample(seed: int = 0, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((batch, 3, 64, 64)).astype(np.float32)


def is_right(got: np.ndarray, x: np.ndarray, seed: int = 0) -> bool:
    want = network(seed).run(x)["y"]
    return bool(got.shape == want.shape and np.linalg.norm(got - want) <= TOLERANCE * np.linalg.norm(want))


def refused(action: Callable[[], Any], *words: str) -> Outcome:
    """The action has to end in an error of trtkit's own, which names its cause."""
    try:
        action()
    except TrtkitError as error:
        said = str(error)
        missing = [word for word in words if word not in said]
        return (WRONG, f"does not say {missing}: {said}") if missing else (HANDLED, said)
    except Exception as error:  # noqa: BLE001 - an error, and not one that says what to do
        return WRONG, f"{type(error).__name__}: {error}"
    return WRONG, "no error"


# Faults of files, which need no GPU


def damaged_files(folder: Path) -> Iterator[Outcome]:
    """Bits turned in a saved engine and its manifest, and both cut off: `open_engine` notices all of it."""
    path = engine_of().save(folder / "net.engine")
    for file in (path, path.with_name(path.name + ".json")):
        whole = file.read_bytes()
        for place in np.linspace(0, len(whole) - 1, FLIPS, dtype=int):
            file.write_bytes(flipped(whole, int(place)))
            yield refused(lambda: open_engine(path))
        for length in (0, 1, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            yield refused(lambda: open_engine(path))
        file.write_bytes(whole)
    yield (HANDLED, "whole again") if open_engine(path).plan else (WRONG, "empty")


def flipped(data: bytes, place: int) -> bytes:
    """One byte other than it was: a bit turned, which one depends on the place."""
    return data[:place] + bytes([data[place] ^ (1 << place % 8)]) + data[place + 1 :]


def killed_while_saving(folder: Path) -> Iterator[Outcome]:
    """A process that saves two engines to one name by turns, killed at any moment: one of them lies there, whole."""
    plans = [engine_of(seed).save(folder / f"{seed}.engine").read_bytes() for seed in (0, 1)]
    target = folder / "net.engine"
    for moment in moments():
        kill_after(moment, "save", folder)
        try:
            found = open_engine(target).plan
        except EngineError as error:
            yield WRONG, str(error)
            continue
        yield (HANDLED, "an engine lies there") if found in plans else (WRONG, "another plan")
    left = [file.name for file in folder.iterdir() if file.name.endswith(".part")]
    yield HANDLED, f"{len(left)} temporary files are left by {KILLS} killed processes"


def killed_while_caching(folder: Path) -> Iterator[Outcome]:
    """The same with a cache file: what is read afterwards is one of the two contents, or nothing."""
    for moment in moments():
        kill_after(moment, "cache", folder)
        found = cache_file(folder).read()
        fits = found is None or found in (b"a" * 4_000_000, b"b" * 4_000_000)
        yield (HANDLED, "whole, or none") if fits else (WRONG, "a mixture")


def moments() -> list[float]:
    return [0.02 * random.Random(number).random() + 0.001 * number for number in range(KILLS)]


def cache_file(folder: Path) -> CacheFile:
    return CacheFile(folder / "trtkit" / "x.runtime-cache", {"for": "test"})


def kill_after(seconds: float, what: str, folder: Path) -> None:
    """Start this script as a writer, and kill it some time after it has begun to write."""
    with subprocess.Popen(command("--child", what, str(folder)), stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()  # it writes now
        time.sleep(seconds)
        child.kill()


def write_for_ever(what: str, folder: Path) -> None:
    engines = [open_engine(folder / f"{seed}.engine") for seed in (0, 1)] if what == "save" else []
    for number in range(10_000):
        if engines:
            engines[number % 2].save(folder / "net.engine")
        else:
            cache_file(folder).write((b"a", b"b")[number % 2] * 4_000_000)
        if number == 1:
            print("writing", flush=True)


def disk_full(folder: Path) -> Iterator[Outcome]:
    """No room for the plan, nor for a cache: said clearly, and the engine that was there still is."""
    first, second = engine_of(0), engine_of(1)
    path = first.save(folder / "net.engine")
    for room in (100, 4096, len(second.plan) // 2, len(second.plan) - 1):
        with limited(room):
            yield refused(lambda: second.save(path), "Cannot save the engine", "untouched")
            kept = cache_file(folder).write(b"a" * (room + 1))
        yield (WRONG, "a cache that does not fit was written") if kept else (HANDLED, "done without the cache")
        yield (HANDLED, "the old engine opens") if open_engine(path).plan == first.plan else (WRONG, "it is lost")
    names = {file.name for file in folder.iterdir()}
    yield (
        (HANDLED, "nothing left over") if names <= {"net.engine", "net.engine.json", "trtkit"} else (WRONG, str(names))
    )


class limited:
    """No file may grow over so many bytes: what a full disk does, for this process alone."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *_: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def other_version(folder: Path) -> Iterator[Outcome]:
    """An engine that another TensorRT built."""
    engine = engine_of()
    engine.manifest["version"] = "1.2.3"
    path = engine.save(folder / "net.engine")
    yield refused(lambda: open_engine(path), "1.2.3", "build it again")


def closed(folder: Path) -> Iterator[Outcome]:
    """A session, and one of its contexts, after close."""
    engine = engine_of()
    for _ in range(3):
        session = engine.open()
        before = session.run(sample())["y"]
        session.close()
        session.close()
        yield refused(lambda session=session: session.run(sample()), "closed")
        yield (HANDLED, "outputs live on") if is_right(before, sample()) else (WRONG, "outputs changed")
    with engine.open() as session:
        yield (
            (HANDLED, "another session runs") if is_right(session.run(sample())["y"], sample()) else (WRONG, "numbers")
        )


def nan(folder: Path) -> Iterator[Outcome]:
    """Inputs that are no numbers spread to outputs as in the reference, and the next call is right."""
    with engine_of().open() as session:
        for bad in (np.nan, np.inf, -np.inf):
            x = sample()
            x[0, 0, 5, 5] = bad
            got = session.run(x)["y"]
            yield (HANDLED, "the other image is right") if is_right(got[1:], x[1:]) else (WRONG, "it spread too far")
            finite = bool(np.isfinite(got[0]).all())
            yield (WRONG, f"{bad} is gone without a word") if finite else (HANDLED, "it shows in the output")
            yield (HANDLED, "the next call is right") if is_right(session.run(sample())["y"], sample()) else (WRONG, "")


# Faults that need a GPU


def damaged_plans(folder: Path) -> Iterator[Outcome]:
    """Plans that TensorRT itself is given damaged, past our checksum: by bits turned, and cut off."""
    plan = engine_of().plan
    places = np.linspace(0, len(plan) - 1, FLIPS, dtype=int)
    (folder / "plan").write_bytes(plan)
    yield from in_children("flip", [str(int(place)) for place in places], folder)
    yield from in_children("cut", [str(len(plan) * part // 8) for part in range(8)] + [str(len(plan) - 1)], folder)


def one_plan(how: str, where: int, folder: Path) -> Outcome:
    """Open and run one damaged plan as it is, without the checks of a saved engine."""
    from trtkit.engine.gpu import GpuSession

    whole = (folder / "plan").read_bytes()
    try:
        plan = flipped(whole, where) if how == "flip" else whole[:where]
        with GpuSession(plan, "damaged", cache_dir=folder / how / str(where)) as session:
            got = session.run(sample())["y"]
    except TrtkitError as error:
        return HANDLED, str(error)
    return (HARMLESS, "it computes what it should") if is_right(got, sample()) else (WRONG, "other numbers, no error")


def in_children(how: str, cases: list[str], folder: Path, workers: int = 4) -> Iterator[Outcome]:
    """Several processes go through the cases; one that dies is counted, and another goes on behind its case."""
    running: list[tuple[list[str], subprocess.Popen]] = []
    heaps = [cases[number::workers] for number in range(workers)]
    while heaps or running:
        while heaps:
            heap = heaps.pop()
            if heap:
                child = subprocess.Popen(
                    command("--child", how, str(folder), *heap),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
                running.append((heap, child))
        if not running:
            return
        heap, child = running.pop(0)
        try:
            text, _ = child.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            child.kill()
            text, _ = child.communicate()
        found = [json.loads(line) for line in text.splitlines() if line.startswith("[")]
        yield from ((outcome, said) for outcome, said in found)
        if len(found) < len(heap):
            log.info("%s %s ended its process (%s)", how, heap[len(found)], child.returncode)
            yield CRASHED, f"{how} {heap[len(found)]}: exit status {child.returncode}"
            heaps.append(heap[len(found) + 1 :])


def other_gpu(folder: Path) -> Iterator[Outcome]:
    """An engine for other GPUs alone: refused before TensorRT sees it, and by TensorRT."""
    from trtkit.engine.gpu import GpuSession

    mine = {(9, 0): (8, 9), (8, 9): (12, 0)}.get(gpu().compute_capability, (8, 9))
    engine = engine_of(compute_capabilities=[mine])
    yield refused(lambda: engine.open("cuda"), "cannot run here", ".".join(map(str, mine)))
    yield refused(lambda: GpuSession(engine.plan, "other", cache_dir=folder).run(sample()), "TensorRT cannot")


def out_of_memory(folder: Path) -> Iterator[Outcome]:
    """Almost all of the GPU's memory taken by somebody else: opening, and running a large batch."""
    from trtkit.engine.cuda import cuda

    engine = engine_of()
    with engine.open() as session:
        session.run(sample())
        for left in (60, 30, 8):
            hoard = take_all(cuda, left << 20)
            try:
                yield refused(lambda: session.run(sample(batch=512)))
                yield ok(session)
                yield refused(lambda: [engine.open() for _ in range(400)], "")
            finally:
                for piece in hoard:
                    piece.free()
            yield ok(session)
            yield (HANDLED, "the large batch runs") if session.run(sample(batch=64))["y"].size else (WRONG, "")


def refused_operators(folder: Path) -> Iterator[Outcome]:
    """What TensorRT refuses, repaired or split: the engines agree with the models as they were."""
    from tests.engine.test_hybrid import detector
    from tests.passes.repair_cases import ATTENTION, CASES
    from trtkit.engine.hybrid import hybrid
    from trtkit.engine.repair import repair
    from trtkit.engine.verify import verify_engine

    def made(name: str) -> Engine | TrtkitError:
        try:
            return trtkit.build(repair({**CASES, "attention": ATTENTION}[name].model), verify=False)
        except TrtkitError as error:
            return error

    names = [*CASES, "attention"]
    with ThreadPoolExecutor(8) as pool:  # each waits for processes of its own
        for name, engine in zip(names, pool.map(made, names), strict=True):
            yield agreement(name, lambda engine=engine: verify_engine(engine)) if isinstance(engine, Engine) else (
                WRONG, f"{name}: {engine}"
            )  # fmt: skip
    yield agreement("detector with NonMaxSuppression", lambda: hybrid(detector(), tf32=False).verification)


def agreement(name: str, verified: Callable[[], Any]) -> Outcome:
    try:
        return HANDLED, f"{name}: {max(check.error for check in verified().checks):.1e} off at most"
    except TrtkitError as error:
        return WRONG, f"{name}: {error}"


def ok(session: Any) -> Outcome:
    return (
        (HANDLED, "what ran before runs on") if is_right(session.run(sample())["y"], sample()) else (WRONG, "numbers")
    )


def take_all(cuda: Any, left: int) -> list[Any]:
    """Allocations in ever smaller pieces until no more than so many bytes are free."""
    hoard, size = [], 1 << 33
    while size >= 1 << 20:
        if cuda.mem_get_info()[0] - left < size:
            size //= 2
            continue
        try:
            hoard.append(cuda.mem_alloc(size))
        except cuda.MemoryError:
            size //= 2
    return hoard


FILES: dict[str, Callable[[Path], Iterator[Outcome]]] = {
    "damaged-files": damaged_files, "killed-while-saving": killed_while_saving,
    "killed-while-caching": killed_while_caching, "disk-full": disk_full, "other-version": other_version,
    "closed": closed, "nan": nan,
}  # fmt: skip
ON_GPU: dict[str, Callable[[Path], Iterator[Outcome]]] = {
    "damaged-plans": damaged_plans, "other-gpu": other_gpu, "out-of-memory": out_of_memory,
    "refused-operators": refused_operators,
}  # fmt: skip


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "benchmarks.gpu_faults", *words]


def child(what: str, folder: Path, cases: list[str]) -> int:
    """What a process that may be killed, or die, does."""
    if what in ("save", "cache"):
        write_for_ever(what, folder)
    elif what == "fault":
        for outcome in {**FILES, **ON_GPU}[cases[0]](folder):
            print(json.dumps(outcome), flush=True)
    else:
        for case in cases:
            print(json.dumps(one_plan(what, int(case), folder)), flush=True)
    return 0


def try_fault(name: str, options: argparse.Namespace) -> None:
    """One fault in a process of its own, in a folder of its own; counts, prints and records how it ended."""
    from benchmarks.gpu_step1 import say

    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="trtkit-faults-") as folder:
        done = subprocess.run(command("--child", "fault", folder, name), capture_output=True, text=True)
    found = [tuple(json.loads(line)) for line in done.stdout.splitlines() if line.startswith("[")]
    log.info("%s: %s\n%s", name, json.dumps(found, indent=0), done.stderr[-2000:])
    if done.returncode:
        found.append((CRASHED, f"exit status {done.returncode}: {done.stderr.strip()[-300:]}"))
    counts = {word: sum(outcome == word for outcome, _ in found) for word in (HANDLED, HARMLESS, WRONG, CRASHED)}
    if not found:
        raise RuntimeError("nothing was tried")
    words = "  ".join(f"{count} {word}" for word, count in counts.items() if count)
    say(f"{name:22s} {len(found):4d} tries: {words}")
    for outcome, said in found:
        if outcome in (WRONG, CRASHED):
            say(f"    {outcome}: {said[:300]}")
    said = dict.fromkeys(text.splitlines()[0][:300] for outcome, text in found if outcome == HANDLED and text)
    each_ms = 1e3 * (time.perf_counter() - begin) / len(found)
    measurement = Measurement.from_samples([each_ms], options.device)
    line = f"python3 -m benchmarks.gpu_faults --device {options.device} --only {name}"
    record.save(f"faults-{options.device}/{name}", measurement, command=line, unit="s",
                extra={**counts, "said": list(said)[:12]})  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_faults", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--only", nargs="+", metavar="FAULT", help=f"some of: {' '.join({**FILES, **ON_GPU})}")
    parser.add_argument("--budget", type=float, default=240, help="seconds after which no further fault is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_faults"), help="folder for the log and the records")
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.child:
        return child(options.child[0], Path(options.child[1]), options.child[2:])
    from benchmarks.gpu_step1 import guarded, open_log, say  # which imports PyTorch: the processes do without

    open_log(options.out)
    os.environ.setdefault("TRTKIT_RUN", record.RUN)
    begin, failed = time.perf_counter(), 0
    for name in options.only or [*(ON_GPU if options.device == "cuda" else {}), *FILES]:
        if time.perf_counter() - begin > options.budget:
            say(f"{name}: not begun, the budget is spent")
            continue
        failed += not guarded(name, lambda name=name: try_fault(name, options), options.out)
    return int(failed > 0)


if __name__ == "__main__":
    raise SystemExit(main())
