"""Models and engines side by side on the same data: how far apart, how large, how fast, and where that was measured."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trtkit.bench import machine
from trtkit.bench.measure import Measurement, measure
from trtkit.engine.engine import Engine
from trtkit.engine.session import Session
from trtkit.engine.verify import relative_error, sqnr_db
from trtkit.errors import DataError, ModelError
from trtkit.model import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

Inputs = dict[str, np.ndarray]
Outputs = dict[str, np.ndarray]
Timing = tuple[Measurement, str]  # how long, and what that was measured on

_TIMING: dict[str, Any] = {"warmup": 3, "min_runs": 50, "min_seconds": 0.2, "max_runs": 500}
_COLUMNS = (  # key in a row, heading, format
    ("name", "model", "{}"),
    ("batch", "batch", "{}"),
    ("precision", "precision", "{}"),
    ("size_bytes", "size MB", "{:.2f}"),
    ("error", "error", "{:.1e}"),
    ("sqnr_db", "SQNR dB", "{:.1f}"),
    ("top1_agreement", "same top-1", "{:.1%}"),
    ("median_ms", "median ms", "{:.3f}"),
    ("p10_ms", "p10", "{:.3f}"),
    ("p90_ms", "p90", "{:.3f}"),
    ("ratio", "speed-up over {}", "{:.2f}x"),
    ("measured", "on", "{}"),
)
_WORDS = ("name", "precision", "measured")


class Comparison:
    """What `compare` found: one row (a dict) for each model, the first being the one the others are held against.

    A row has: name, precision, size_bytes, error (‖a - b‖ / ‖b‖ over all outputs), sqnr_db, top1_agreement (share of
    samples with the same largest class; None when no output is (N, classes)), median_ms, p10_ms, p90_ms, count, ratio
    (how many times faster than `peer` at the same batch, above 1 is faster), batch and measured (on what). What was not
    measured is None. `notes` say what was left out and why.
    """

    def __init__(self, rows: list[dict[str, Any]], peer: str, title: str = "", notes: Sequence[str] = ()) -> None:
        self.peer, self.title, self.notes = peer, title, tuple(notes)
        base = {row["batch"]: row["median_ms"] for row in rows if row["name"] == peer}
        self.rows = [row | {"ratio": _ratio(base.get(row["batch"]), row["median_ms"])} for row in rows]

    def __repr__(self) -> str:
        return f"Comparison of {', '.join(row['name'] for row in self.rows)}, ratios to {self.peer!r}"

    def __getitem__(self, name: str) -> dict[str, Any]:
        """The row of one model. Raises KeyError with the names there are."""
        found = next((row for row in self.rows if row["name"] == name), None)
        if found is None:
            raise KeyError(f"{name!r} was not compared; these were: {', '.join(row['name'] for row in self.rows)}")
        return found

    def table(self) -> Table:
        """The rows as a rich table, for a terminal. A column that holds nothing is left out."""
        from rich import box
        from rich.table import Table

        caption = "\n".join(self._below())
        table = Table(title=self.title or None, caption=caption or None, caption_justify="left", box=box.SIMPLE_HEAD)
        for key, heading, _ in self._columns():
            table.add_column(heading, justify="left" if key in _WORDS else "right")
        for row in self.rows:
            table.add_row(*self._cells(row))
        return table

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(heading)}</th>" for _, heading, _ in self._columns())
        lines = ("".join(f"<td>{html.escape(cell)}</td>" for cell in self._cells(row)) for row in self.rows)
        body = "".join(f"<tr>{line}</tr>" for line in lines)
        caption = f"<caption>{html.escape(self.title)}</caption>" if self.title else ""
        notes = "".join(f"<p>{html.escape(line)}</p>" for line in self._below())
        return f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"

    def plot(self, **options: Any) -> Figure:
        """Error, size and latency of the rows as bars, see `trtkit.plot.comparison`."""
        from trtkit import plot

        return plot.comparison(self.rows, peer=self.peer, **options)

    def _columns(self) -> list[tuple[str, str, str]]:
        filled = [column for column in _COLUMNS if any(row[column[0]] is not None for row in self.rows)]
        return [(key, heading.format(self.peer), form) for key, heading, form in filled]

    def _cells(self, row: dict[str, Any]) -> list[str]:
        shown = row | {"measured": self._places().get(row["measured"])}
        return [_cell(key, shown[key], form) for key, _, form in self._columns()]

    def _places(self) -> dict[str, str]:
        """A letter for every machine and program that something was measured on: a column of them would be too wide."""
        places = dict.fromkeys(row["measured"] for row in self.rows if row["measured"])
        return {place: chr(ord("a") + i) for i, place in enumerate(places)}

    def _below(self) -> list[str]:
        """The lines below the table: what the letters stand for, and the notes."""
        return [*(f"measured on {letter}: {place}" for place, letter in self._places().items()), *self.notes]


def _ratio(base: float | None, median: float | None) -> float | None:
    return base / median if base and median else None


def _cell(key: str, value: Any, form: str) -> str:
    if value is None:
        return ""
    return form.format(value / 1e6 if key == "size_bytes" else value)


def compare(
    *models: Model | Engine,
    data: Iterable[Mapping[str, Any] | np.ndarray] | None = None,
    names: Sequence[str] | None = None,
    measure_latency: bool = True,
) -> Comparison:
    """Run models on the same data and tell how they differ from the first.

    A Model runs in ONNX Runtime on the CPU, an Engine on the GPU where one can run it and otherwise as its graph on the
    CPU; the column `measured` says which. Latency is one call on a batch of `data`, the batches in turn. Inputs are
    converted to the types that a model takes (float16 for a model with FP16 inputs).

    Args:
        data: batches, as dicts by input name or as arrays for models with one input; random ones when left out.
        names: what to call the models; by default their own names with the precision.
        measure_latency: False skips the timing.

    Raises:
        DataError: `data` is there but empty.
        ModelError: no model, as many names as models are not given, or a model does not take the data.

    >>> import onnx, trtkit
    >>> text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {y = Relu(x)}'
    >>> model = trtkit.load(onnx.parser.parse_model(text))
    >>> found = trtkit.compare(model, model, names=["a", "b"], measure_latency=False)
    >>> found["b"]["error"], found["b"]["median_ms"]
    (0.0, None)
    """
    if not models:
        raise ModelError("compare() has nothing to compare: give at least one Model or Engine.")
    labels = list(names) if names is not None else _names(models)
    if len(labels) != len(models) or len(set(labels)) != len(labels):
        raise ModelError(f"compare() has {len(models)} models and the names {labels}: give every model one of its own.")
    batches = batches_for(_graph(models[0]), data)
    expected: list[Outputs] = []
    rows = []
    for label, model in zip(labels, models, strict=True):
        outputs, timing = _run(model, batches, measure_latency)
        expected = expected or outputs
        rows.append(row_of(label, _precision(model), model.size_bytes, outputs, expected, timing))
    return Comparison(rows, labels[0])


def fixed_batch(model: Model) -> int | None:
    """The batch of a model that takes no other; None where the first dimension of an input can change."""
    first = [info.shape[0] for info in model.inputs if info.shape]
    fixed = [size for size in first if isinstance(size, int)]
    return fixed[0] if fixed and len(fixed) == len(first) else None


def batches_for(
    model: Model, data: Iterable[Mapping[str, Any] | np.ndarray] | None, batch: int | None = None
) -> list[Inputs]:
    """`data` as checked input sets of `model`; where there is none four random ones, from seeds.

    Args:
        batch: of the random ones; by default the model's own where that is fixed, else 1.

    Raises:
        DataError: `data` is there but empty.
        ModelError: the data does not fit the model, or it takes batches of another size only.
    """
    if data is None:
        own = fixed_batch(model)
        batch = batch if batch is not None else own or 1
        if batch < 1:
            raise ModelError(f"A batch of {batch} holds nothing to compute: give 1 or more.")
        if own is not None and batch != own:
            raise ModelError(f"{model.name!r} takes batches of {own} only, so it cannot run at batch {batch}. Leave "
                             "the batch out, or export the model with a first dimension that can change.")
        return [model.random_inputs(batch, seed=seed) for seed in range(4)]
    batches = [model.check_inputs(given) for given in data]
    if not batches:
        raise DataError("The data to compare on holds no batch at all. Give some, or leave it out for random inputs.")
    return batches


def row_of(
    name: str,
    precision: str,
    size_bytes: int | None,
    outputs: list[Outputs],
    expected: list[Outputs],
    timing: Timing | None,
    batch: int | None = None,
) -> dict[str, Any]:
    """One row of a Comparison: `outputs` held against `expected`, and a timing with where it was measured."""
    got, want = _flat(outputs, expected), _flat(expected, expected)
    found: dict[str, Any] = {
        "name": name, "batch": batch, "precision": precision, "size_bytes": size_bytes,
        "error": relative_error(got, want), "sqnr_db": sqnr_db(got, want),
        "top1_agreement": top1_agreement(outputs, expected),
        "median_ms": None, "p10_ms": None, "p90_ms": None, "count": None, "measured": None,
    }  # fmt: skip
    if timing is None:
        return found
    timed, where = timing
    times = {"median_ms": timed.median_ms, "p10_ms": timed.p10_ms, "p90_ms": timed.p90_ms, "count": timed.count}
    return found | times | {"measured": where}


def _flat(many: list[Outputs], like: list[Outputs]) -> np.ndarray:
    """All outputs as one float64 vector, in the order of `like`. Raises ModelError when names or shapes differ."""
    names = list(like[0])
    for one, other in zip(many, like, strict=True):
        for name in names:
            if name not in one or np.shape(one[name]) != np.shape(other[name]):
                got = np.shape(one[name]) if name in one else f"only {', '.join(one)}"
                raise ModelError(f"These models cannot be compared: where the first gives {name!r} of shape "
                                 f"{np.shape(other[name])}, another gives {got}.")
    return np.concatenate([np.asarray(one[name], np.float64).ravel() for one in many for name in names])


def top1_agreement(outputs: list[Outputs], expected: list[Outputs]) -> float | None:
    """Share of samples whose largest class is the same, when the first output is (N, classes); None otherwise."""
    name = next(iter(expected[0]))
    if any(one[name].ndim != 2 or one[name].shape[1] < 2 for one in expected):
        return None
    got, want = (np.concatenate([np.asarray(one[name]).argmax(1) for one in many]) for many in (outputs, expected))
    return float(np.mean(got == want))


def _run(model: Model | Engine, batches: list[Inputs], timed: bool) -> tuple[list[Outputs], Timing | None]:
    """Outputs for all batches, and the latency of one call with where it was measured."""
    feeds = [as_taken(_graph(model), batch) for batch in batches]
    if isinstance(model, Model):
        outputs = [model.run(feed) for feed in feeds]
        return outputs, time_on_cpu(model.run, feeds) if timed else None
    with model.open() as session:
        outputs = [session.run(feed) for feed in feeds]
        return outputs, time_session(model, session, feeds) if timed else None


def time_on_cpu(run: Callable[[Any], Any], feeds: Sequence[Any], runs: str = "ONNX Runtime") -> Timing:
    """Latency of `run` on this CPU, and where that was."""
    return measure(run, inputs=feeds, **_TIMING), f"{runs}, {machine.cpu()}"


def time_session(engine: Engine, session: Session, feeds: list[Inputs]) -> Timing:
    """Latency of an engine's session. On a GPU inputs lie there when torch can hold them; else copies are timed too."""
    if session.device == "cpu":
        return time_on_cpu(session.run, feeds, "its graph in ONNX Runtime")
    where = f"{engine.manifest['tensorrt']} {engine.manifest['version']}, {session.device}"
    resident = _on_gpu(feeds)
    if resident is None:
        return measure(session.run, inputs=feeds, **_TIMING), f"{where}, copies included"
    stream = getattr(session, "stream", None)
    return measure(session.run, inputs=resident, device="cuda", stream=stream, **_TIMING), where


def _on_gpu(feeds: list[Inputs]) -> list[dict[str, Any]] | None:
    try:
        import torch

        return [{name: torch.from_numpy(array).cuda() for name, array in feed.items()} for feed in feeds]
    except (ImportError, TypeError):  # no torch, or a type that it cannot take from NumPy, such as bfloat16
        return None


def as_taken(model: Model, batch: Inputs) -> Inputs:
    """The batch in the types that this model takes: a float32 image for a model with float16 inputs, say."""
    dtypes = {info.name: info.dtype for info in model.inputs}
    return {name: array.astype(dtypes.get(name, array.dtype), copy=False) for name, array in batch.items()}


def _graph(model: Model | Engine) -> Model:
    graph = model if isinstance(model, Model) else model.model
    if not isinstance(graph, Model):
        raise ModelError("This engine was opened without its ONNX model, which comparing needs: "
                         "trtkit.open_engine(path, model=...).")
    return graph


def _precision(model: Model | Engine) -> str:
    return model.precision if isinstance(model, Model) else str(model.manifest["precision"])


def _names(models: Sequence[Model | Engine]) -> list[str]:
    """Name and precision, "engine" for engines, and a number where that is not enough."""
    names: list[str] = []
    for model in models:
        base = f"{_graph(model).name} {_precision(model)}{' engine' if isinstance(model, Engine) else ''}"
        count = sum(name == base or name.startswith(f"{base} #") for name in names)
        names.append(f"{base} #{count + 1}" if count else base)
    return names
