"""The table of GPU latencies in README.md, made from the records: `python3 -m benchmarks.readme_table` prints it."""

from __future__ import annotations

from trtkit.bench.record import Records, load
from trtkit.errors import RecordError

PEERS = ("eager", "eager-graph", "compile")
SETTINGS = tuple(
    (network, precision, batch)
    for network in ("resnet50", "bert-base")
    for precision in ("fp16", "fp32")
    for batch in (1, 32, 128)
)


def table() -> str:
    """A Markdown table: medians in milliseconds, and how many times faster TensorRT is than the best peer."""
    head = "| network | precision | batch | eager | CUDA graph | torch.compile | TensorRT | against the best |"
    return "\n".join([head, "|---|---|---:|---:|---:|---:|---:|---:|", *(_row(*setting) for setting in SETTINGS)])


def _row(network: str, precision: str, batch: int) -> str:
    records = load(f"{network}-{precision}-b{batch}")
    cells = [f"{records[name].median_ms:.3g}" if name in records else "–" for name in PEERS]
    return f"| {network} | {precision.upper()} | {batch} | {' | '.join(cells)} | {_ours(records)} |"


def _ours(records: Records) -> str:
    if "trtkit" not in records:
        return "refused | –"  # its outputs were wrong, and a wrong engine has no latency
    best = min((name for name in PEERS if name in records), key=lambda name: records[name].median_ms)
    try:
        ratio = f"{records.speedup('trtkit', best):.2f}×"
    except RecordError:
        ratio = "–"  # measured in different runs
    return f"{records['trtkit'].median_ms:.3g} | {ratio}"


if __name__ == "__main__":
    print(table())
