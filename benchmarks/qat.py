"""What quantisation-aware training brings back, with three seeds: a small MobileNetV2 on MNIST, weights of few bits.

    python3 -m benchmarks.qat                     # 2 minutes on one core
    python3 -m benchmarks.qat --epochs 3 --bits 2

Weights and activations of every layer are rounded, depthwise ones, too; activations have 8 bits. "PTQ" is calibrated
as `trtkit.quantize` does it, "best PTQ" has weight steps of least squared error. The recovered part
is of what the best PTQ loses. Prints the table of README.
"""

from __future__ import annotations

import argparse

import torch

from trtkit.course import rescue

SETTINGS = ((2, True), (3, False), (4, False))  # bits, one step a channel


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    net, (learn, judge) = rescue.mobilenet(), rescue.handwriting()
    print("| weights | seed | float | PTQ | best PTQ | QAT | recovered | seconds |\n|---|" + "---:|" * 7)
    for bits, per_channel in SETTINGS:
        if bits not in options.bits:
            continue
        plain = rescue.accuracy(rescue.few_bits(net, learn, bits, per_channel), judge)
        for seed in options.seeds:
            found = rescue.rescue(net, learn, judge, bits=bits, per_channel=per_channel, epochs=options.epochs,
                                  rate=options.rate, seed=seed)  # fmt: skip
            how = f"{bits} bits, one step a {'channel' if per_channel else 'tensor'}"
            print(f"| {how} | {seed} | {found.whole:.1%} | {plain:.1%} | {found.quantized:.1%} | {found.trained:.1%} | "
                  f"{found.recovered:.0%} | {found.seconds:.0f} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
