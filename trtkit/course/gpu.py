"""ResNet-50 on a GPU against PyTorch, measured where there is one, else recalled; and records of many networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

from trtkit.bench.record import Records, keys, load, measure_or_recall
from trtkit.errors import RecordError

if TYPE_CHECKING:
    from trtkit.bench.compare import Comparison

# contender in a record -> its name in a comparison
CONTENDERS = {"trtkit": "engine {}, GPU", "eager": "PyTorch eager {}, GPU",
              "eager-graph": "PyTorch CUDA graph {}, GPU", "compile": "torch.compile {}, GPU"}  # fmt: skip


class Figures(dict[str, float]):
    """Median milliseconds of one call by contender, all from one run, and where they are from."""

    def __init__(self, times: Mapping[str, float], source: str) -> None:
        super().__init__(times)
        self.source = source

    def factors(self) -> dict[str, float]:
        """How many times faster the engine is than each peer.

        >>> Figures({"trtkit": 2.0, "eager": 5.0}, "an example").factors()
        {'eager': 2.5}
        """
        return {peer: time / self["trtkit"] for peer, time in self.items() if peer != "trtkit"}

    def best_peer(self) -> str:
        """The fastest of the others."""
        return min(self.factors(), key=self.factors().__getitem__)


def resnet50(precision: str = "fp16", batch: int = 1) -> Figures:
    """Our engine, PyTorch eager, eager in a CUDA graph and torch.compile on ResNet-50, side by side.

    Raises RecordError when there is neither a GPU nor a record.
    """
    key = f"resnet50-{precision}-b{batch}"
    found = measure_or_recall(key, lambda: _measured(precision, batch), needs="tensorrt-gpu")
    return _figures(found) if isinstance(found, Records) else cast(Figures, found)


def sweep(
    precisions: Sequence[str] = ("fp32", "fp16"), batches: Sequence[int] = (1, 32, 128)
) -> tuple[dict[str, Figures], list[str]]:
    """`resnet50` for every precision and batch by name ("fp16, batch 1"), and why the others are left out."""
    found: dict[str, Figures] = {}
    missing: list[str] = []
    for precision, batch in ((precision, batch) for precision in precisions for batch in batches):
        try:
            found[f"{precision}, batch {batch}"] = resnet50(precision, batch)
        except RecordError as error:
            missing.append(f"{precision}, batch {batch} is left out: {error}")
    return found, missing


def recalled(precision: str, batch: int) -> Figures:
    """The same from the record, GPU or not. Raises RecordError when there is none."""
    return _figures(load(f"resnet50-{precision}-b{batch}"))


def levels(precision: str = "fp16") -> dict[str, Records]:
    """Latency at batch 1 by network, and in it by level of `optimize`: "level-0" is the graph as exported.

    From the records, GPU or not: measuring them takes minutes (`python3 -m benchmarks.engine_effects`). A level whose
    graph TensorRT refused is not among them; `extra["refused"]` of the others says why.

    >>> sorted(levels()["swin-t"])
    ['level-1', 'level-2', 'level-3']
    """
    return _named("engine-latency-", f"-{precision}")


def quantized() -> dict[str, Records]:
    """FP16, INT8, FP8 and INT4 by network and batch ("bert-base-b32"), and in it by form, "fp16" always among them.

    From the records, GPU or not (`python3 -m benchmarks.gpu_quant` measures them). A form that TensorRT refused, or
    whose outputs were further off than allowed, is not among them.

    >>> sorted(quantized()["llama-mlp-b1"])
    ['fp16', 'fp8', 'int4', 'int8', 'int8-smooth']
    """
    return _named("quant-")


def table(found: Mapping[str, Records], reference: str = "fp16") -> str:
    """Records as lines, a column a contender: ms of one call and its speed against `reference`; what lacks is refused.

    >>> print(table({"llama-mlp-b1": quantized()["llama-mlp-b1"]}).splitlines()[0])
    network, batch            fp16            int8     int8-smooth             fp8            int4
    """
    names = list(dict.fromkeys(name for records in found.values() for name in records))
    rows = {"network, batch": names} | {
        network: [f"{records[name].median_ms:.3f} ms {records.speedup(name, reference):.2f}×"
                  if name in records else "refused" for name in names]
        for network, records in found.items()
    }  # fmt: skip
    return "\n".join(f"{first:14}" + "".join(f"{cell:>16}" for cell in cells) for first, cells in rows.items())


def _named(start: str, end: str = "") -> dict[str, Records]:
    """The records whose keys begin and end so, by what is between."""
    return {
        key.removeprefix(start).removesuffix(end): load(key)
        for key in keys()
        if key.startswith(start) and key.endswith(end)
    }


def _figures(records: Records) -> Figures:
    """The record's contenders; the engine and its peers have to come from one run, or their ratio says nothing."""
    if "trtkit" not in records:
        peers = ", ".join(records)
        raise RecordError(f"{records.key}: only {peers} were recorded; benchmarks/README.md says why no engine was.")
    for peer in records:
        records.speedup("trtkit", peer)  # raises when the runs differ
    return Figures({name: record.median_ms for name, record in records.items()}, records["trtkit"].source)


def _measured(precision: str, batch: int) -> Figures:
    """Measure here, on the GPU alone; takes a minute, most of it torch.compile."""
    import torch

    import trtkit
    from trtkit.bench.peers import bench_model
    from trtkit.course.nets import resnet50 as network

    module = network()
    model = trtkit.load(module, torch.rand(1, 3, 224, 224), name="resnet50")
    if batch == 1:  # as benchmarks/contenders.py does, which made the records
        model = trtkit.low_latency(trtkit.optimize(model))
    found = bench_model(model, torch_module=module, precisions=[precision], batches=[batch], places=["gpu"])
    return _from_comparison(found, precision)


def _from_comparison(comparison: Comparison, precision: str) -> Figures:
    """What of a comparison the lesson shows. Raises RecordError when the engine was refused: there is no ratio then."""
    rows: dict[str, dict[str, Any]] = {row["name"]: row for row in comparison.rows}
    wanted = {name: form.format(precision) for name, form in CONTENDERS.items()}
    if wanted["trtkit"] not in rows:
        why = [note for note in comparison.notes if note.startswith(wanted["trtkit"])]
        raise RecordError(" ".join([f"resnet50-{precision}: only the peers were measured here.", *why]))
    times = {name: float(rows[row]["median_ms"]) for name, row in wanted.items() if row in rows}
    return Figures(times, f"measured here: {rows[wanted['trtkit']]['measured']}")
