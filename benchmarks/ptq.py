"""Our post-training quantisation against ONNX Runtime's and NVIDIA ModelOpt's: score, seconds, memory, engines.

    python3 -m benchmarks.ptq                            # everything: records and tables
    python3 -m benchmarks.ptq --only digits              # some networks
    python3 -m benchmarks.ptq --contenders trtkit-max    # some contenders
    python3 -m benchmarks.ptq --modelopt /opt/m/bin/python  # ModelOpt lives in another Python, see README.md
    python3 -m benchmarks.ptq --part memory              # peak memory with once, 4 and 16 times the data
    python3 -m benchmarks.ptq --part readme              # the tables from the records into README.md, nothing is run

On every network of `trtkit.course.trained`. Each contender gets the same FP32 file and the same calibration batches, in
a process of its own, and writes a quantised file; `benchmarks.ptq_child` has the calls. All files are then run and
scored the same way: by ONNX Runtime on the CPU with every Q and DQ computed as it stands, and no integer kernels in
their place (`Reference(exact=True)`), since those round otherwise on every kind of CPU. FP16 it computes in float32
between casts; for BF16 it has no kernels, and `trtkit.quant.widen` writes the graph in float32 with every tensor
rounded to BF16. So what is scored is rounding, not speed. TensorRT-RTX builds an engine of each file, and `trtkit.lint`
counts which products became 8-bit in it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.children import Child, in_memory, take_turns
from benchmarks.ptq_child import CONTENDERS
from trtkit.bench import record
from trtkit.bench.measure import Measurement

OURS = tuple(name for name in CONTENDERS if name.startswith("trtkit"))
INT8 = tuple(f"trtkit-{method}" for method in ("max", "percentile", "mse", "entropy"))
THEIRS = tuple(name for name in CONTENDERS if name not in OURS)
PEERS_INT8 = tuple(name for name in THEIRS if not name.endswith("fp8"))
GROWING = ("trtkit-percentile", "trtkit-entropy", "onnxruntime-minmax", "onnxruntime-entropy", "modelopt-entropy")
TIMES = (1, 4, 16)
# The least of so many processes is a point of memory: what it takes to do the work. Some have 10 MB more by chance, and
# do so with little data as with much.
PROCESSES = 3
BATCHES, ROWS = 4, 8  # the data that is taken once, 4 and 16 times: a first batch alone would find memory fresh
FEW = {"mobilenet_v2": 1}  # rows instead: ONNX Runtime's entropy keeps 90 MB for each picture
TIMEOUT = 900  # seconds a contender may take for one network
ENOUGH = 6.0  # seconds; whoever took so long altogether gets no further turn: there is no noise to average over
WITHIN = 0.002  # of a score: what counts as no worse
COMMAND = "python3 -m benchmarks.ptq"
README = Path(__file__).with_name("README.md")
MARKS = ("<!-- ptq: made by python3 -m benchmarks.ptq --part readme -->", "<!-- ptq: end -->")


def child(contender: str, python: str, *arguments: object) -> Child:
    """The process of one contender; ModelOpt's in the Python that has it."""
    own = sys.executable if not contender.startswith("modelopt") else python
    return Child("benchmarks.ptq_child", contender, *arguments, python=own)


def write_batches(batches: Iterable[dict[str, np.ndarray]], folder: Path) -> Path:
    """A file for each batch; without a last smaller one, since ONNX Runtime's histograms want equal shapes."""
    folder.mkdir(exist_ok=True)
    batches = list(batches)
    shapes = [{name: array.shape for name, array in batch.items()} for batch in batches]
    batches = [batch for batch, shape in zip(batches, shapes, strict=True) if shape == shapes[0]]
    for number, batch in enumerate(batches):
        np.savez(folder / f"{number:05d}.npz", **batch)
    return folder


def network(name: str, contenders: Sequence[str], turns: int, python: str, folder: Path) -> None:
    """All contenders on one network: quantise, score, build; write the records, print a line for each."""
    import trtkit
    from trtkit.course.trained import trained

    task = trained(name)
    source = trtkit.save(task.model, folder / "fp32.onnx")
    calibration = write_batches(task.calibration, folder / "calibration")
    targets = {contender: folder / f"{contender}.onnx" for contender in contenders}
    children = {c: child(c, python, source, calibration, target) for c, target in targets.items()}
    results = take_turns(children, turns, TIMEOUT, ENOUGH)
    judge = Judge(task, source)
    for contender, result in results.items():
        report(name, contender, result, judge, targets[contender])


class Judge:
    """What a quantised file of a network is worth, held against the FP32 file."""

    def __init__(self, task: Any, source: Path) -> None:
        self.task = task
        self.samples = sum(len(next(iter(batch.values()))) for batch in task.test)
        self.wanted = self._outputs(source)
        self.fp32 = float(task.score(self.wanted))

    def _outputs(self, file: Path) -> list[dict[str, np.ndarray]]:
        import trtkit
        from trtkit.quant.widen import in_float32

        model = trtkit.load(file)
        model = in_float32(model, rounded=True) if model.precision == "bf16" else model
        reference = model.open_reference(exact=True)
        return [reference.run(batch) for batch in self.task.test]

    def score(self, file: Path) -> dict[str, Any]:
        """Score and decibels; {"failed": why} if ONNX Runtime cannot run it, or a number is not finite."""
        from trtkit.errors import TrtkitError
        from trtkit.quant.sensitivity import sqnr_db

        try:
            outputs = self._outputs(file)
            found = {
                "score": round(float(self.task.score(outputs)), 6),
                "sqnr_db": round(sqnr_db(self.wanted, outputs), 2),
            }
        except TrtkitError as why:
            return {"failed": str(why).splitlines()[0][:300]}
        return found | {
            "fp32": round(self.fp32, 6),
            "metric": self.task.metric,
            "kind": self.task.kind,
            "samples": self.samples,
        }


def engine(file: Path) -> dict[str, Any]:
    """What TensorRT made of a file: [[operator, type, quantised in the graph, so in the engine], ...], or why not."""
    import trtkit
    from trtkit.errors import TrtkitError

    try:
        model = trtkit.load(file)
        built = trtkit.build(model, verify=False)  # scored already; without a GPU there is nothing else to run
        if model.precision in ("fp16", "bf16"):
            return {"built": True, "products": []}
        return {"built": True, "products": products_of(model, built)}
    except TrtkitError as why:
        return {"built": False, "why": " ".join(str(why).split())[:300]}


def products_of(model: Any, built: Any) -> list[tuple[str, str, int, int]]:
    """The quantised products of a graph: (operator, type, how many there are, how many are so in the engine)."""
    import trtkit
    from trtkit.quant.quantized_graph import QuantizedGraph

    return [*trtkit.lint(model, built).counts(), *_in_blocks(QuantizedGraph(model), built)]


def _in_blocks(graph: Any, built: Any) -> Iterator[tuple[str, str, int, int]]:
    """Products with INT4 weights: how many there are, and for how many the kernel itself decodes the weight."""
    import onnx_ir as ir

    from trtkit.quant.quantized_graph import code_type

    groups: dict[str, list[bool]] = {}
    for node in graph.products:
        dq = node.inputs[1].producer() if node.inputs[1] is not None else None
        if dq is not None and dq.op_type == "DequantizeLinear" and code_type(dq) == ir.DataType.INT4:
            together = any({dq.name, node.name} <= set(layer.onnx_nodes) for layer in built.layers)
            groups.setdefault(node.op_type, []).append(together)
    for op, found in groups.items():
        yield op, "Int4", len(found), sum(found)


def report(name: str, contender: str, result: dict[str, Any], judge: Judge, target: Path) -> None:
    """Write one contender's record and print its line."""
    key = f"ptq-{name}/{contender}"
    found = result if "failed" in result else judge.score(target)
    if "failed" in found:
        print(f"{name:14s} {contender:22s} FAILED {found['failed']}", flush=True)
        record.remove(key)
        return
    built = engine(target)
    extra = found | {
        "prepare_s": round(median(result["prepare"]), 4), "cpu_s": round(median(result["cpu"]), 4),
        "peak_mb": round(result["peak_bytes"] / 1e6, 1), "file_mb": round(target.stat().st_size / 1e6, 2),
        "engine": built, "versions": result["versions"],
    }  # fmt: skip
    times = Measurement.from_samples([1e3 * s for s in result["seconds"]])
    record.save(key, times, command=COMMAND, extra=extra, unit="s")
    counts = " ".join(f"{kind} {op} {have}/{want}" for op, kind, want, have in built.get("products", ()))
    points = f"{100 * extra['score']:7.2f} (FP32 {100 * judge.fp32:.2f}) {extra['sqnr_db']:6.1f} dB"
    cost = f"{times.median_ms / 1e3:7.2f} s (cpu {extra['cpu_s']:.2f}) {extra['peak_mb']:6.0f} MB"
    layers = counts or "built" if built["built"] else f"NOT BUILT {built['why'][:120]}"
    print(f"{name:14s} {contender:22s} {points} {cost}  {layers}", flush=True)


def growth(name: str, contenders: Sequence[str], python: str, folder: Path) -> None:
    """Peak memory with once, 4 and 16 times the data, each the least of some processes."""
    import trtkit
    from trtkit.course.trained import trained

    task = trained(name)
    source = trtkit.save(task.model, folder / "fp32.onnx")
    rows = FEW.get(name, ROWS)
    batches = [{key: array[:rows] for key, array in batch.items()} for batch in task.calibration[:BATCHES]]
    calibration = write_batches(batches, folder / "calibration")
    for contender in contenders:
        peaks = []
        for times in TIMES:
            results = []
            for _ in range(PROCESSES):
                one = child(contender, python, source, calibration, folder / "out.onnx", times)
                results += take_turns({contender: one}, 1, TIMEOUT, ENOUGH).values()
            key = f"ptq-memory-{name}/{contender}-{times}"
            if failed := [result["failed"] for result in results if "failed" in result]:
                print(f"{name:14s} {contender:22s} FAILED {failed[0]}", flush=True)
                record.remove(key)
                break
            each = [round(result["peak_bytes"] / 1e6, 1) for result in results]
            peaks.append(min(each))
            extra = {
                "samples": rows * len(batches) * times,
                "peak_mb": peaks[-1],
                "peaks_mb": each,
                "cpu_s": round(median(result["cpu"][0] for result in results), 4),
            }
            seconds = Measurement.from_samples([1e3 * result["seconds"][0] for result in results])
            record.save(key, seconds, command=COMMAND, extra=extra, unit="s")
        print(f"{name:14s} {contender:22s} " + " -> ".join(f"{peak:.1f}" for peak in peaks) + " MB", flush=True)


# the tables, from the records


def found(prefix: str = "ptq-") -> dict[str, record.Records]:
    """The records by network, in the order of `TRAINED`."""
    from trtkit.course.trained import TRAINED

    kept = set(record.keys())
    return {name: record.load(prefix + name) for name in TRAINED if prefix + name in kept}


def tables() -> str:
    """All of them as Markdown, and what is true of them."""
    parts = [scores(), costs(), memories(), engines(), verdicts()]
    return "\n\n".join(part for part in parts if part)


_SHORT = {"onnxruntime": "ORT", "modelopt": "ModelOpt"}


def _heading(contender: str) -> str:
    whose, _, what = contender.partition("-")
    name = what.upper() if what in ("fp16", "bf16", "fp8", "int4") else what
    return f"{_SHORT[whose]} {name}" if whose in _SHORT else name


def _row(cells: Iterable[object]) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def markdown(head: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1) -> str:
    """A table whose first `left` columns are words and the others figures."""
    return "\n".join([_row(head), "|" + "---|" * left + "---:|" * (len(head) - left), *map(_row, rows)])


def scores() -> str:
    columns = (*OURS, *THEIRS)
    rows = []
    for name, records in found().items():
        some = next(iter(records.values())).extra
        cells = [f"{100 * records[c].extra['score']:.2f}" if c in records else "–" for c in columns]
        rows.append([name, f"{some['metric']}, {some['samples']}", f"{100 * some['fp32']:.2f}", *cells])
    return markdown(["network", "score, samples", "FP32", *map(_heading, columns)], rows, 2)


def costs() -> str:
    """Seconds of the processor, and the memory taken, to calibrate and quantise."""
    columns = ("trtkit-max", "trtkit-percentile", "trtkit-mse", "trtkit-entropy", *PEERS_INT8)
    rows = []
    for name, records in found().items():
        cells = [
            f"{r.extra['cpu_s']:.2f} s, {r.extra['peak_mb']:.0f} MB" if (r := records.get(c)) else "–" for c in columns
        ]
        rows.append([name, *cells])
    return markdown(["network", *map(_heading, columns)], rows)


def memories() -> str:
    rows = []
    for name, records in found("ptq-memory-").items():
        cells = []
        for contender in GROWING:
            peaks = [_least(r) for times in TIMES if (r := records.get(f"{contender}-{times}"))]
            cells.append(" → ".join(f"{peak:.1f}" for peak in peaks) or "–")
        samples = [str(r.extra["samples"]) for times in TIMES if (r := records.get(f"{GROWING[0]}-{times}"))]
        rows.append([name, " → ".join(samples), *cells])
    return markdown(["network", "samples", *(f"{_heading(c)} MB" for c in GROWING)], rows) if rows else ""


def _least(one: record.Record) -> float:
    """Peak megabytes of the process that needed the least."""
    return float(min(one.extra.get("peaks_mb", [one.extra["peak_mb"]])))


def engines() -> str:
    """Products that are 8-bit (INT4: whose own kernel decodes the weight) in the engine, of those in the graph."""
    rows = [[name, *(_products(records.get(c)) for c in (*OURS, *THEIRS))] for name, records in found().items()]
    return markdown(["network", *map(_heading, (*OURS, *THEIRS))], rows)


def _products(one: record.Record | None) -> str:
    if one is None:
        return "–"
    engine = one.extra["engine"]
    if not engine["built"]:
        return "refused"
    want, have = (sum(counts[i] for counts in engine["products"]) for i in (2, 3))
    return f"{have} of {want}" if want else "builds"


def verdicts() -> str:
    """The targets, each with what holds and where it does not."""
    networks = found()
    gaps = {name: _best(records, INT8) - _best(records, PEERS_INT8) for name, records in networks.items()}
    fp8 = {
        name: _best(records, ("trtkit-fp8",)) - _best(records, ("modelopt-fp8",)) for name, records in networks.items()
    }
    ratios = {
        name: records["onnxruntime-entropy"].extra["cpu_s"] / records["trtkit-entropy"].extra["cpu_s"]
        for name, records in networks.items()
        if {"trtkit-entropy", "onnxruntime-entropy"} <= records.keys()
    }
    unfused = [
        f"{name} {_heading(contender)} ({_products(records[contender])})"
        for name, records in networks.items()
        for contender in OURS
        if contender in records and not _whole(records[contender].extra["engine"])
    ]
    lines = [
        "INT8, our best calibrator against their best, " + _scored(gaps),
        "FP8, ours against ModelOpt's, " + _scored(fp8),
        "Calibration by entropy in at most half of ONNX Runtime's seconds of the processor: "
        + _holds(len(ratios), [f"{name} {ratio:.1f}x" for name, ratio in ratios.items() if ratio < 2])
        + (f" ({min(ratios.values()):.1f} to {max(ratios.values()):.1f} times faster)" if ratios else ""),
        f"Memory the same with {TIMES[-1]} times the data (within 10 % and 2 MB): "
        + _holds(len(found("ptq-memory-")), list(_growing())),
        "Every file of ours builds, and every product that is 8-bit in the graph is so in the engine: "
        + _holds(len(networks), unfused),
        "Signal to noise of the outputs, mean of all networks: " + ", ".join(_decibels(networks)),
    ]
    return "\n".join(f"- {line}" for line in lines)


def _decibels(networks: dict[str, record.Records]) -> Iterator[str]:
    """The contenders in 8 bits that every network has, with their mean."""
    for contender in (*INT8, "trtkit-fp8", *PEERS_INT8, "modelopt-fp8"):
        values = [records[contender].extra["sqnr_db"] for records in networks.values() if contender in records]
        if len(values) == len(networks):
            yield f"{_heading(contender)} {np.mean(values):.1f} dB"


def _best(records: record.Records, contenders: Iterable[str]) -> float:
    """The best score of some contenders; not a number where none of them has one."""
    return max((records[c].extra["score"] for c in contenders if c in records), default=float("nan"))


def _scored(gaps: dict[str, float]) -> str:
    known = {name: 100 * gap for name, gap in gaps.items() if not np.isnan(gap)}
    worse = [f"{name} {gap:+.2f}" for name, gap in known.items() if gap < -100 * WITHIN]
    spread = f" ({min(known.values()):+.2f} to {max(known.values()):+.2f} points)" if known else ""
    return f"at most {100 * WITHIN:.1f} points lower: {_holds(len(known), worse)}{spread}"


def _growing() -> Iterator[str]:
    for name, records in found("ptq-memory-").items():
        for contender in ("trtkit-percentile", "trtkit-entropy"):
            first, last = (_least(records[f"{contender}-{times}"]) for times in (TIMES[0], TIMES[-1]))
            if last > 1.1 * first + 2:
                yield f"{name} {_heading(contender)} {first:.0f} to {last:.0f} MB"


def _whole(engine: dict[str, Any]) -> bool:
    """Built, and its 8-bit products are 8-bit; weights in INT4 may be decoded by a kernel of their own."""
    return engine["built"] and all(want == have for _, kind, want, have in engine["products"] if kind != "Int4")


def _holds(count: int, misses: Sequence[str]) -> str:
    if not count:
        return "not measured"
    return f"holds on all {count} networks" if not misses else f"missed: {', '.join(misses)}"


def into_readme(text: str, tables: str) -> str:
    """README with the tables between its two marks. ValueError where the marks are not there."""
    before, begin, rest = text.partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    if not begin or not end:
        raise ValueError(f"README.md lacks the marks {MARKS[0]} and {MARKS[1]} between which the tables go.")
    return f"{before}{begin}\n\n{tables}\n\n{end}{after}"


def main(argv: list[str] | None = None) -> int:
    from trtkit.course.trained import TRAINED

    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__.splitlines()[0])
    parser.add_argument("--part", choices=("networks", "memory", "readme", "table", "all"), default="all")
    parser.add_argument("--only", nargs="+", default=list(TRAINED), choices=TRAINED, metavar="NETWORK")
    parser.add_argument(
        "--contenders", nargs="+", default=list(CONTENDERS), choices=list(CONTENDERS), metavar="CONTENDER"
    )
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument(
        "--modelopt", default=sys.executable, metavar="PYTHON", help="a Python that has nvidia-modelopt"
    )
    parser.add_argument("--keep", type=Path, help="folder for the quantised files; by default they are thrown away")
    chosen = parser.parse_args(argv)
    for name in chosen.only:
        for part in ("networks", "memory"):
            if chosen.part not in (part, "all"):
                continue
            with tempfile.TemporaryDirectory(dir=in_memory()) as temporary:
                folder = chosen.keep / f"{name}-{part}" if chosen.keep else Path(temporary)
                folder.mkdir(parents=True, exist_ok=True)
                if part == "networks":
                    network(name, chosen.contenders, chosen.turns, chosen.modelopt, folder)
                else:
                    growth(name, [c for c in GROWING if c in chosen.contenders], chosen.modelopt, folder)
    if chosen.part in ("table", "all"):
        print(tables())
    if chosen.part == "readme":
        README.write_text(into_readme(README.read_text(), tables()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
