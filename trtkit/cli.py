"""The command line: the verbs of `import trtkit` on files.

Every verb reads and writes ordinary ONNX files, so that other tools can stand between two of them.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import trtkit
from trtkit.cli_inputs import (
    TORCHVISION,
    check_picture,
    load_model,
    read_data,
    read_shapes,
    read_source,
    target,
    with_reference,
)
from trtkit.errors import BuildError, MissingError, TrtkitError, extra

if TYPE_CHECKING:
    from rich.console import RenderableType

    from trtkit.engine.engine import Engine
    from trtkit.model import Model

_Verb: TypeAlias = Callable[[argparse.Namespace], int | None]
COURSE_MAP = "notebooks/README.md"
LAB_SETTINGS = "notebooks/.jupyter"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; its exit status: 0, 1 after an error of the kit or if `lint` finds something to mend, 2 for
    wrong arguments, 130 after Ctrl-C.
    """
    args, rest = _parser().parse_known_args(argv)
    if rest and args.verb is not lab:
        _parser().error(f"unknown arguments: {' '.join(rest)}")
    args.rest = rest
    try:
        return args.verb(args) or 0
    except TrtkitError as error:
        if args.debug:
            raise
        print(f"trtkit: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trtkit: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# --- the verbs -------------------------------------------------------------------------------------------------------


def doctor(args: argparse.Namespace) -> None:
    """What this machine can do: Python, packages, TensorRT, GPU, what runs live and what is recalled."""
    from trtkit.doctor import render, report

    found = report()
    if args.line:
        print(found.line())
    else:
        _show(render(found))


def optimize(args: argparse.Namespace) -> None:
    """Make the graph smaller without changing what it computes."""
    path = target(args.output, args.model, "-optimized.onnx")
    model = load_model(args.model, "optimize")
    if fixed := read_shapes(args.fix, model):
        model = trtkit.fix_shapes(model, {name: shapes[0] for name, shapes in fixed.items()})
    model = trtkit.optimize(model, level=args.level)
    _save(trtkit.low_latency(model) if args.low_latency else model, path)


def autocast(args: argparse.Namespace) -> None:
    """Write FP16 or BF16 into the graph, as TensorRT 11 demands."""
    path = target(args.output, args.model, f"-{args.precision}.onnx")
    _save(trtkit.autocast(load_model(args.model, "autocast"), args.precision), path)


def quantize(args: argparse.Namespace) -> None:
    """Write INT8 or FP8 into the graph: Q/DQ pairs with scales from calibration data."""
    path = target(args.output, args.model, f"-{args.dtype}.onnx")
    model = load_model(args.model, "quantize")
    _save(trtkit.quantize(model, read_data(args.data, model), method=args.method, dtype=args.dtype), path)


def groups(args: argparse.Namespace) -> None:
    """Mark which nodes one kernel shall compute, and compare with the kernels that TensorRT makes."""
    from trtkit.engine.agreement import agreement
    from trtkit.graph.groups import groups_of
    from trtkit.passes.groups import fuse_groups

    path = target(args.output, args.model, "-groups.onnx")
    check_picture(args.map)
    model = fuse_groups(load_model(args.model, "groups"))
    _save(model, path)
    for label, count in Counter(group.label for group in groups_of(model)).most_common():
        print(f"{count:5d} x {label}")
    if not (args.compare or args.map):
        return
    with _Bar() as progress, _parser_advice(args.model):  # only the layers of this engine are read: it is not kept
        engine = trtkit.build(model, read_shapes(args.shapes, model), progress=progress, verify=False)
    found = agreement(model, engine.layers)
    print(found)
    for difference in found.disagreements:
        print(f"  {difference}")
    if args.map:
        from trtkit.plot import save

        print(f"picture: {save(found.plot(), args.map)}")


def lint(args: argparse.Namespace) -> int:
    """Explain each Q/DQ that TensorRT refuses, cannot fuse or gains nothing from; status 1 if there is one to mend."""
    model = load_model(args.model, "lint")
    engine = None
    if args.engine:
        with _Bar() as progress, _parser_advice(args.model):  # only its layers are read: it is not kept
            engine = trtkit.build(model, read_shapes(args.shapes, model), progress=progress, verify=False)
    found = trtkit.lint(model, engine)
    print(found)
    return 0 if found.ok else 1


def build(args: argparse.Namespace) -> None:
    """Build a TensorRT engine, verify it against the model and save it."""
    path = target(args.output, args.model, ".engine")
    check_picture(args.map)
    model = load_model(args.model, "build")
    if args.reference:
        model = with_reference(model, args.reference)
    shapes = read_shapes(args.shapes, model)
    data = read_data(args.data, model) if args.data else None
    options: dict[str, Any] = {"verify": not args.no_verify, "tolerance": args.tolerance}
    if args.workspace_mib:
        options["workspace_bytes"] = args.workspace_mib << 20
    with _Bar() as progress, _parser_advice(args.model):
        engine = trtkit.build(model, shapes, data=data, progress=progress, **options)
    engine.save(path)
    _describe(engine, path)
    if args.map:
        from trtkit.plot import save

        print(f"fusion map: {save(engine.fusion_map().plot(), args.map)}")


def compare(args: argparse.Namespace) -> None:
    """Models side by side on the same inputs: error, size, latency. The first is the reference."""
    from trtkit.bench.compare import batches_for

    check_picture(args.plot)
    models = [load_model(path, "compare") for path in args.models]
    data = read_data(args.data, models[0]) if args.data else batches_for(models[0], None, args.batch)
    stems = [Path(path).stem for path in args.models]
    result = trtkit.compare(*models, data=data, names=stems if len(set(stems)) == len(stems) else args.models)
    _show(result.table())
    if args.plot:
        from trtkit.plot import save

        save(result.plot(), args.plot)


def bench(args: argparse.Namespace) -> None:
    """Measure a model's variants (as it is, optimised, FP16, INT8 with --data) and its peers in one run."""
    source = read_source(args.model)
    model = trtkit.load(*source, name=Path(args.model).stem.removeprefix(TORCHVISION))
    data = read_data(args.data, model) if args.data else None
    from trtkit.bench import bench_model

    module = source[0] if len(source) > 1 else None
    precisions = ["fp32", "fp16", *(["int8"] if data else [])]
    result = bench_model(model, torch_module=module, precisions=precisions, batches=args.batch, data=data)
    _show(result.table())


def lab(args: argparse.Namespace) -> None:
    """Open JupyterLab on the course map; further arguments go to JupyterLab."""
    from importlib.util import find_spec

    from trtkit.course.paths import root

    if find_spec("jupyterlab") is None:
        raise MissingError(f"The lessons need JupyterLab: {extra('course')}.")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root()}"]
    command.append(f"--LabApp.default_url=/lab/tree/{COURSE_MAP}")
    if os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; the server still asks for its token
    settings = str(root() / LAB_SETTINGS)  # Markdown opens rendered, and JupyterLab asks for no news
    paths = [settings, *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")])]
    sys.stdout.flush()
    environment = {**os.environ, "JUPYTER_CONFIG_PATH": os.pathsep.join(paths)}
    os.execve(sys.executable, [*command, *args.rest], environment)  # JupyterLab answers Ctrl-C in its own way


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def _parser_advice(path: str) -> Iterator[None]:
    """What to try when TensorRT's parser refuses a file; whether that was optimised, the file does not tell."""
    try:
        yield
    except BuildError as error:
        if error.stage != "parse":
            raise
        advice = f"Run `trtkit optimize {path}` on it first, if it is as it was exported."
        raise BuildError(f"{error}\n{advice}", error.stage) from error


def _save(model: Model, path: Path) -> None:
    from rich.table import Table

    trtkit.save(model, path)
    table = Table("step", "what", "nodes", "seconds", title=f"{model.name}: what was done")
    for step in model.history:
        table.add_row(step.name, step.detail, f"{step.nodes_before} -> {step.nodes_after}", f"{step.seconds:.2f}")
    _show(table)
    print(f"saved: {path}")


def _describe(engine: Engine, path: str | Path) -> None:
    manifest = engine.manifest
    print(f"{manifest['tensorrt']} {manifest['version']}, {manifest['precision']}, {len(engine.layers)} layers")
    print(f"built in {engine.build_seconds:.1f} s, {engine.size_bytes / 1e6:.1f} MB")
    print(_verdict(engine))
    print(f"saved: {path}")


def _verdict(engine: Engine) -> str:
    found = engine.verification
    if found and not found.checks:
        return f"NOT compared: nothing to compare with; give --reference model.onnx\n{found.note}".strip()
    return f"verified: {found or 'no (--no-verify)'}"


def _show(tables: RenderableType) -> None:
    """Print tables: as wide as the terminal, or as wide as they like where the output goes to a file or a pipe."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = Measurement.get(console, console.options.update(max_width=400), tables).maximum
    console.print(tables)


class _Bar:
    """TensorRT's building phases as progress bars on stderr; silent where stderr is not a terminal."""

    def __enter__(self) -> Callable[[str, int, int], None]:
        from rich.console import Console
        from rich.progress import Progress

        self.bars = Progress(console=Console(stderr=True), transient=True)
        self.tasks: dict[str, Any] = {}
        self.shown = sys.stderr.isatty()
        if self.shown:
            self.bars.start()
        return self._advance

    def __exit__(self, *_: object) -> None:
        if self.shown:
            self.bars.stop()

    def _advance(self, phase: str, step: int, steps: int) -> None:
        if phase not in self.tasks:
            self.tasks[phase] = self.bars.add_task(phase, total=steps)
        self.bars.update(self.tasks[phase], completed=step)


# --- arguments -------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="trtkit", description="From a model to a verified TensorRT engine.")
    parser.add_argument("--version", action="version", version=f"trtkit {trtkit.__version__}")
    parser.add_argument("--debug", action="store_true", help="show where in the code an error was raised")
    verbs = parser.add_subparsers(required=True, metavar="command")

    def verb(function: _Verb) -> argparse.ArgumentParser:
        text = (function.__doc__ or "").strip()
        added = verbs.add_parser(function.__name__, help=text, description=text)
        added.set_defaults(verb=function)
        return added

    verb(doctor).add_argument("--line", action="store_true", help="one line only")
    _add_model_verbs(verb)
    added = verb(compare)
    added.add_argument("models", nargs="+", metavar="MODEL.onnx")
    _add_data(added)
    added.add_argument("--batch", type=int, help="batch of the random inputs used without --data")
    added.add_argument("--plot", metavar="FILE.png")
    added = verb(bench)
    added.add_argument("model", help="an ONNX file, or torchvision:NAME such as torchvision:resnet50")
    _add_data(added)
    added.add_argument("--batch", type=int, nargs="+", help="one or several sizes, such as 1 8 32")
    verb(lab)
    return parser


def _add_model_verbs(verb: Callable[[_Verb], argparse.ArgumentParser]) -> None:
    scales = "how calibration chooses scales (default: percentile for INT8, max for FP8)"
    output = "default: made of the model's name, in this folder"
    shapes = "for each input that can change; the name may be left out where there is one input"
    for function in (optimize, autocast, quantize, groups, lint, build):
        added = verb(function)
        added.add_argument("model", metavar="MODEL.onnx")
        if function is lint:
            added.add_argument("--engine", action="store_true", help="build an engine, and account for each Q and DQ")
        else:
            added.add_argument("-o", "--output", metavar="FILE", help=output)
        if function is optimize:
            added.add_argument("--level", type=int, choices=(0, 1, 2, 3), default=2, help="default: 2; 3 fuses, too")
            added.add_argument("--fix", action="append", default=[], metavar="NAME:SHAPE", help="for this shape alone")
            added.add_argument("--low-latency", action="store_true", help="for one request at a time on a large GPU")
        elif function is autocast:
            added.add_argument("precision", choices=("fp16", "bf16"))
        elif function is quantize:
            added.add_argument("--method", choices=("max", "percentile", "mse", "entropy"), help=scales)
            added.add_argument("--dtype", choices=("int8", "fp8"), default="int8", help="default: int8")
        if function in (quantize, build):
            _add_data(added, required=function is quantize)
        if function in (groups, lint, build):
            added.add_argument("--shapes", action="append", default=[], metavar="NAME:LEAST,BEST,LARGEST", help=shapes)
        if function is groups:
            added.add_argument("--compare", action="store_true", help="build an engine, and list where it differs")
            added.add_argument("--map", metavar="FILE.png", help="draw the groups above the nodes, its kernels below")
        if function is build:
            added.add_argument("--reference", metavar="MODEL.onnx", help="what it was made from, to verify against")
            added.add_argument("--workspace-mib", type=int, metavar="MIB", help="scratch memory a kernel may use")
            added.add_argument("--tolerance", type=float, help="largest relative error to accept")
            added.add_argument("--no-verify", action="store_true", help="hand the engine out unchecked")
            added.add_argument("--map", metavar="FILE.png", help="draw which ONNX nodes became which kernels")


def _add_data(parser: argparse.ArgumentParser, required: bool = False) -> None:
    text = "real inputs: a .npy file, or a .npz with an array for each input; samples go first"
    parser.add_argument("--data", metavar="FILE.npz", required=required, help=text)


if __name__ == "__main__":
    sys.exit(main())
