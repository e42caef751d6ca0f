"""One model in TensorRT and ONNX Runtime by turns, where TensorRT has no equivalent of an operator."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np

from trtkit.compose.parts import parts
from trtkit.engine import verify as verification
from trtkit.engine.build import build
from trtkit.engine.engine import Engine
from trtkit.engine.repair import refusals, repair
from trtkit.engine.session import Session
from trtkit.engine.shapes import Profile, Shapes, check_within, profiles_for
from trtkit.engine.verify import Verification
from trtkit.errors import BuildError, VerificationError
from trtkit.model import Model, check_inputs

MINIMUM = 4  # nodes that compute something; below, handing the data over costs more than an engine gains
_TRIES = 8
_COLUMNS = ("part", "runs in", "nodes", "takes", "gives")


class Part(NamedTuple):
    """One part of a hybrid: its graph, and its engine where TensorRT runs it."""

    model: Model
    engine: Engine | None

    @property
    def runs_in(self) -> str:
        return "ONNX Runtime" if self.engine is None else "TensorRT"

    @property
    def row(self) -> tuple[str, ...]:
        ends = (", ".join(map(str, infos)) for infos in (self.model.inputs, self.model.outputs))
        return (self.model.name, self.runs_in, str(self.model.node_count), *ends)


class HybridEngine:
    """A model split into parts that run one after the other; opened and run like any engine. Prints as a table.

    Attributes:
        model: the whole graph, after repairs.
        parts: in the order in which they run.
        verification: what was compared before it was handed out; None when that was not asked for.
    """

    def __init__(self, model: Model, parts: Iterable[Part], profiles: list[Profile]) -> None:
        self.model, self.parts, self.profiles = model, tuple(parts), profiles
        self.verification: Verification | None = None

    def __repr__(self) -> str:
        lines = [f"HybridEngine({self.model.name!r}: {len(self.parts)} parts)"]
        return "\n".join([*lines, *("  " + " | ".join(part.row) for part in self.parts)])

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = ("".join(f"<td>{html.escape(cell)}</td>" for cell in part.row) for part in self.parts)
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

    def open(self, device: str | None = None, **options: Any) -> Session:
        """A session that runs all parts in turn: the engines on the GPU where there is one, the others on the CPU.

        Args:
            device, options: as in `Engine.open`, for every engine.

        Raises:
            EngineError: an engine cannot run there; says why.
        """
        return HybridSession(self, device, options)


class HybridSession(Session):
    """Runs the parts of a hybrid in turn, on NumPy arrays, which go to the GPU and back at every change."""

    def __init__(self, engine: HybridEngine, device: str | None, options: Mapping[str, Any]) -> None:
        self.name = engine.model.name
        self.inputs, self.outputs = engine.model.inputs, engine.model.outputs
        self._parts, self._profiles = engine.parts, engine.profiles
        self._sessions: list[Session | None] = []
        with ExitStack() as opened:  # should one fail to open, those before it are closed
            for part in engine.parts:
                session = None if part.engine is None else opened.enter_context(part.engine.open(device, **options))
                self._sessions.append(session)
            self._opened = opened.pop_all()
        devices = dict.fromkeys("cpu" if session is None else session.device for session in self._sessions)
        self.device = " and ".join(devices)

    def run(self, inputs: Mapping[str, Any] | Any) -> dict[str, Any]:
        self._check_open()
        arrays = check_inputs(self.inputs, inputs, self.name)
        check_within(self._profiles, {name: array.shape for name, array in arrays.items()}, self.name)
        values: dict[str, Any] = dict(arrays)
        for part, session in zip(self._parts, self._sessions, strict=True):
            given = {info.name: values[info.name] for info in part.model.inputs}
            # not part.model.run: that nothing was found, an empty tensor, is a result like any other inside
            values |= part.model.reference.run(given) if session is None else session.run(given)
        return {info.name: values[info.name] for info in self.outputs}

    def close(self) -> None:
        self._opened.close()
        super().close()


def hybrid(
    model: Model,
    shapes: Shapes | None = None,
    *,
    data: Iterable[Any] | None = None,
    minimum: int = MINIMUM,
    verify: bool = True,
    tolerance: float | None = None,
    **options: Any,
) -> HybridEngine:
    """Repair what can be, split at what cannot, and build an engine of every part that TensorRT runs.

    For models with NonMaxSuppression, NonZero, Unique, Det, sequences ... How it is split: see
    `trtkit.compose.parts.parts`. Where `refusals` finds nothing, it is one engine.

    Args:
        shapes, data, verify, tolerance, options: as in `build`; `shapes` are those of the model's own inputs.
        minimum: nodes that compute something, below which a part stays in ONNX Runtime.

    Raises:
        BuildError, VerificationError, MissingError: as `build`; of the parts, each verified on what reaches it, and of
            the whole. ModelError: see `parts`.

    >>> import onnx, trtkit
    >>> model = trtkit.load(onnx.parser.parse_model('<ir_version: 10, opset_import: ["": 20]> g (float[4, 4] x) => '
    ...     '(int64[2, k] y) {a = Exp(x)  b = Sin(a)  c = Tanh(b)  d = Mul(c, b)  y = NonZero(d)}'))
    >>> engine = hybrid(model)
    >>> engine
    HybridEngine('g': 2 parts)
      g_1 | TensorRT | 4 | x float32 (4, 4) | d float32 (4, 4)
      g_2 | ONNX Runtime | 1 | d float32 (4, 4) | y int64 (2, k)
    >>> with engine.open() as session:
    ...     session.run({"x": np.eye(4, dtype=np.float32)})["y"].shape
    (2, 16)
    """
    model = repair(model)
    profiles = profiles_for(model, shapes)
    samples = verification.samples_for(model, profiles, data)
    outside = set(refusals(model).nodes)
    for _ in range(_TRIES):
        try:
            built = _build_parts(model, outside, minimum, profiles, samples, verify, tolerance, options)
            break
        except _Refused as refused:
            outside |= refused.nodes
    else:
        raise BuildError(f"TensorRT kept refusing parts of {model.name!r}; refusals(model, thorough=True) says more.")
    engine = HybridEngine(model, built, profiles)
    if verify:
        engine.verification = _verify(engine, samples, tolerance)
    return engine


class _Refused(Exception):
    """No error: the model is split elsewhere, with these nodes outside as well."""

    def __init__(self, nodes: Iterable[str]) -> None:
        self.nodes = set(nodes)


def _build_parts(
    model: Model,
    outside: set[str],
    minimum: int,
    profiles: list[Profile],
    samples: list[dict[str, np.ndarray]],
    verify: bool,
    tolerance: float | None,
    options: Mapping[str, Any],
) -> list[Part]:
    """The parts, built. Raises _Refused with the nodes that TensorRT has something against after all."""
    values = [dict(sample) for sample in samples]  # each sample's tensors, as far as they are computed
    built = []
    for inside, part in parts(model, outside, minimum):
        given = [{info.name: one[info.name] for info in part.inputs} for one in values]
        engine = None
        if inside:
            try:
                shapes = [_shapes(model, part, profile) for profile in profiles]
                engine = build(part, shapes, data=given, verify=verify, tolerance=tolerance, **options)
            except BuildError as error:
                found = refusals(part, thorough=True).nodes
                if error.stage not in ("parse", "build", "crash"):
                    raise
                raise _Refused(found or {node.name or "" for node in part.ir.graph}) from error
        reference = part.open_reference(exact=True)
        for one, inputs in zip(values, given, strict=True):
            one |= reference.run(inputs)
        built.append(Part(part, engine))
    return built


def _shapes(model: Model, part: Model, profile: Profile) -> dict[str, list[list[int]]]:
    """A profile of the whole as one of a part: its changeable dimensions are those of the model's inputs."""
    sizes: dict[str, list[int]] = {}
    for info in model.inputs:
        for axis, dim in enumerate(info.shape):
            if isinstance(dim, str):
                sizes[dim] = [shape[axis] for shape in profile[info.name]]
    return {
        info.name: [[d if isinstance(d, int) else sizes[d][which] for d in info.shape] for which in range(3)]
        for info in part.inputs
        if any(isinstance(d, str) for d in info.shape)
    }


def _verify(engine: HybridEngine, samples: list[dict[str, np.ndarray]], tolerance: float | None) -> Verification:
    """The whole, as it runs here, against the model as it was loaded."""
    model = engine.model
    with engine.open() as session:
        outputs = [session.run(sample) for sample in samples]
    ran = any(part.engine is not None and part.engine.runs_here for part in engine.parts)
    limit = max(verification.GRAPH_TOLERANCE[model.precision], verification.ENGINE_TOLERANCE[model.precision])
    checks = verification.against_origin(model, samples, outputs, limit if tolerance is None else tolerance)
    failed = [check for check in checks if not check.passed]
    if failed:
        raise VerificationError(
            f"The hybrid of {model.name!r} is refused, since as a whole it is not what was asked for:\n"
            + "\n".join(f"  {check}" for check in failed)
            + "\nIts parts agree with their own graphs. Operators that choose, like NonMaxSuppression, may choose "
            "otherwise when two numbers are nearly equal, as random ones are: give real `data`, or tf32=False, or a "
            "`tolerance`; verify=False hands it out unseen."
        )
    note = "" if ran else "The engines were not run: no GPU here can; their graphs ran in ONNX Runtime."
    return Verification(tuple(checks), note, ran)
