"""How far our fusion groups are TensorRT's kernels: a table over real architectures, and every disagreement by name.

    python3 -m benchmarks.agreement                      # all networks of the zoo, full size (some minutes)
    python3 -m benchmarks.agreement resnet18 vit --list  # some of them, with every disagreement

The graph is optimised at the default level, its groups are marked (`trtkit.passes.groups`), and an engine for batch 1
is built from it, in FP32, on this machine. With `--out FILE` the table and all disagreements are also written as JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

import trtkit
from benchmarks import zoo
from trtkit.bench.machine import provenance
from trtkit.engine.agreement import Agreement, agreement, table
from trtkit.errors import TrtkitError
from trtkit.graph.groups import check_groups
from trtkit.passes.groups import fuse_groups

TARGET = 0.9  # of TensorRT's kernels of two nodes or more, on convolutional networks


def compare(name: str, *, small: bool = False) -> Agreement:
    """One network of the zoo: optimise, group, build for batch 1, compare."""
    model = fuse_groups(trtkit.optimize(zoo.model(name, small=small, dynamic_batch=False)))
    check_groups(model)
    return agreement(model, trtkit.build(model, verify=False).layers)


def as_json(found: Agreement) -> dict[str, Any]:
    """The numbers of one network and its disagreements in words."""
    shares = {"recall": found.recall, "precision": found.precision, "pair_jaccard": found.pair_jaccard}
    return {
        "kernels": len(found.kernels),
        "groups": len(found.groups),
        **found.counts,
        **{name: None if math.isnan(share) else round(share, 4) for name, share in shares.items()},
        "disagreements": [str(each) for each in found.disagreements],
    }


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="benchmarks.agreement", description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"networks, by default all: {', '.join(zoo.ZOO)}")
    parser.add_argument("--small", action="store_true", help="the small variants, for trying things")
    parser.add_argument("--list", action="store_true", help="print every disagreement")
    parser.add_argument("--out", type=Path, help="a JSON file for table and disagreements")
    options = parser.parse_args(arguments)
    found: dict[str, Agreement] = {}
    for name in options.names or zoo.ZOO:
        try:
            found[name] = compare(name, small=options.small)
        except TrtkitError as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", flush=True)
            continue
        print(found[name], flush=True)
        if options.list:
            print(*(f"    {each}" for each in found[name].disagreements), sep="\n", flush=True)
    Console(width=140).print(table(list(found.values())))
    cnns = {name: one.recall for name, one in found.items() if zoo.ZOO[name].kind == "cnn"}
    below = [name for name, recall in cnns.items() if not recall >= TARGET]
    print(f"{len(cnns) - len(below)} of {len(cnns)} convolutional networks at {TARGET:.0%} or more; below: {below}")
    if options.out:
        command = "python3 -m benchmarks.agreement " + " ".join(options.names)
        record = {
            "provenance": provenance(command, "cpu"),
            "networks": {name: as_json(one) for name, one in found.items()},
        }
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
