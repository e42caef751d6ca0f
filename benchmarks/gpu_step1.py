"""ResNet-50 and BERT-base on a GPU against PyTorch eager, eager in a CUDA graph and torch.compile, in one run.

    python3 -m benchmarks.gpu_step1 --out out/gpu --budget 1500        # everything, 16 minutes on one GPU
    python3 -m benchmarks.gpu_step1 --only resnet50-fp16-b1 smoke      # some of it
    python3 -m benchmarks.gpu_step1 --quick --device cpu --out out/q   # the same code on a CPU, smallest shapes

At batch 1 each form of a contender is measured in a process of its own. Where a command may not take that long,
several with --only and one mark in TRTKIT_RUN make one run. Records go to benchmarks/records as soon as they exist
(TRTKIT_RECORDS names another folder), the whole log to OUT/gpu_step1.log, all records once more to OUT/records.tgz, and
a short table to the screen.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import os
import shlex
import sys
import tarfile
import time
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from multiprocessing.context import BaseContext
from pathlib import Path

from benchmarks import inspect_layers, networks, overhead, smoke
from benchmarks.contenders import Result, Runner, Setting
from trtkit.bench import machine, record
from trtkit.bench.torch_peers import best_footing

log = logging.getLogger("gpu_step1")

ORDER = (  # the most wanted first: the command may be killed, and --budget may cut the rest
    "bert-base-fp16-b1", "resnet50-fp16-b1", "resnet50-fp32-b1", "bert-base-fp32-b1", "smoke", "inspector", "overhead",
    "resnet50-fp16-b32", "bert-base-fp16-b32", "resnet50-fp16-b128", "bert-base-fp16-b128",
    "resnet50-fp32-b32", "bert-base-fp32-b32", "resnet50-fp32-b128", "bert-base-fp32-b128",
)  # fmt: skip
QUICK = ("resnet18-quick-fp16-b1", "smoke", "inspector", "overhead", "bert-quick-fp32-b2", "resnet18-quick-fp32-b2")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python3 -m benchmarks.gpu_step1", description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="small networks, few samples: does the script work?")
    parser.add_argument("--only", nargs="+", metavar="PART", help=f"some of: {' '.join(ORDER)}")
    parser.add_argument("--skip-compile", action="store_true", help="leave torch.compile out (12-22 s each)")
    parser.add_argument("--budget", type=float, default=520, help="seconds after which no further part is begun")
    parser.add_argument("--out", type=Path, default=Path("out/gpu_step1"), help="folder for the log and the rest")
    return parser.parse_args(argv)


def command_line(options: argparse.Namespace) -> str:
    """What to type to measure the same again, without the folder that somebody's output went to."""
    words = ["python3", "-m", "benchmarks.gpu_step1"]
    words += ["--device", options.device] if options.device != "cuda" else []
    words += [flag for flag, given in (("--quick", options.quick), ("--skip-compile", options.skip_compile)) if given]
    words += ["--only", *options.only] if options.only else []
    return shlex.join(words)


def open_log(out: Path) -> None:
    """Everything into one file, at its end, for several processes write there; what libraries print goes there, too."""
    out.mkdir(parents=True, exist_ok=True)
    file = logging.FileHandler(out / "gpu_step1.log", mode="a")
    screen = logging.StreamHandler(sys.stdout)
    screen.addFilter(lambda entry: getattr(entry, "short", False))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", handlers=[file], force=True)
    log.addHandler(screen)
    for noisy in ("torch", "transformers", "httpx", "onnxscript"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def say(text: str) -> None:
    """A line for the screen and the log."""
    log.info(text, extra={"short": True})


def bundle(out: Path) -> None:
    """All records in one file, written anew after each part, so that what is brought back is never behind."""
    with tarfile.open(out / "records.tgz.part", "w:gz") as archive:
        archive.add(record.folder(), arcname="records")
    os.replace(out / "records.tgz.part", out / "records.tgz")


def settings(names: list[str], quick: bool) -> Iterator[Setting]:
    """The measurement settings among the names of parts: NETWORK-PRECISION-bBATCH."""
    make = {"resnet": networks.resnet, "bert": networks.bert}
    made: dict[str, networks.Network] = {}
    for name in names:
        network, precision, batch = name.rsplit("-", 2)
        kind = "resnet" if network.startswith("resnet") else "bert"
        if kind not in made:
            made[kind] = make[kind](quick)
        yield Setting(name, made[kind], precision, int(batch[1:]))


def guarded(name: str, part: Callable[[], object], out: Path) -> bool:
    """Run one part; a failure is logged and counted, and must not cost the parts after it."""
    begin = time.perf_counter()
    try:
        part()
    except Exception:  # noqa: BLE001 - whatever it was, it is in the log
        say(f"FAILED {name}: {traceback.format_exc(limit=-1).splitlines()[-1]}")
        log.error("%s failed\n%s", name, traceback.format_exc())
        return False
    finally:
        log.info("%s took %.1f s", name, time.perf_counter() - begin)
        bundle(out)
    return True


def alone(setting: str, name: str, form: str, options: argparse.Namespace) -> Result:
    """One form of one contender, in a process that was started for it."""
    open_log(options.out)
    best_footing()
    try:
        return make_runner(options, "").time(next(settings([setting], options.quick)), name, form)
    except Exception as error:
        log.exception("%s/%s as %s", setting, name, form)
        raise RuntimeError(f"{type(error).__name__}: {error}") from None  # not every exception can be sent home


@cache
def processes() -> BaseContext:
    """Processes split off from one that has done its imports, longer than many a measurement, and no more."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.contenders", "torchvision", "transformers"])
    return context


def in_a_process(options: argparse.Namespace, setting: Setting, name: str, form: str) -> Result:
    """`alone` in a new process: nothing else is in the GPU's memory, and nothing went on before in its context."""
    with ProcessPoolExecutor(1, mp_context=processes()) as pool:
        return pool.submit(alone, setting.key, name, form, options).result()


def make_runner(options: argparse.Namespace, command: str) -> Runner:
    return Runner(options.device, command, say, quick=options.quick, compile_peer=not options.skip_compile)


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    names = options.only or list(QUICK if options.quick else ORDER)
    (options.out / "gpu_step1.log").unlink(missing_ok=True)
    open_log(options.out)
    command = command_line(options)
    begin = time.perf_counter()
    log.info("%s", json.dumps(machine.provenance(command, options.device), indent=1))
    if "TRTKIT_RECORDS" not in os.environ:
        (Path(__file__).parent / "records").mkdir(exist_ok=True)
    best_footing()
    runner = make_runner(options, command)
    first = next(settings([n for n in [*names, (QUICK if options.quick else ORDER)[0]] if "-b" in n], options.quick))
    parts: dict[str, Callable[[], object]] = {
        "smoke": lambda: smoke.run(options.device, options.out / "smoke.json", say),
        "overhead": lambda: overhead.run(runner, first, command, say),
        "inspector": lambda: inspect_layers.run(runner, first, options.out / "inspector.json", say),
    }

    def measured(name: str) -> None:
        # at batch 1 microseconds count, and what else happened in a context costs some
        timer = partial(in_a_process, options) if name.endswith("-b1") else None
        runner.measure(next(settings([name], options.quick)), timer)

    failed = []
    for name in names:
        if time.perf_counter() - begin > options.budget:
            say(f"SKIPPED {name}: the budget of {options.budget:.0f} s is spent")
            continue
        part = parts.get(name) or partial(measured, name)
        if not guarded(name, part, options.out):
            failed.append(name)
    say(f"done in {time.perf_counter() - begin:.0f} s; failed: {', '.join(failed) or 'nothing'}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
