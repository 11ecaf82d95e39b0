"""Checks the energy meter on this machine: a network against itself, and two forward passes against one.

    python scripts/check_energy.py [--window-s 4] [--repeats 15]

Passes when a network against itself differs by less than 5 %, and two forward passes take 2.0 ± 0.1 times the
energy of one. Exit code 1 otherwise. Other work on the machine shows up here, so leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from consensus_cli.evaluation.energy import EnergyMeter, compare_energy
from consensus_cli.models.resnet import resnet

LARGEST_DIFFERENCE_PCT = 5.0
LARGEST_RATIO_ERROR = 0.1


def main(arguments: list[str]) -> int:
    """Measures, prints and judges."""
    parser = argparse.ArgumentParser(description="Check the energy meter: A against A, and two passes against one.")
    parser.add_argument("--window-s", type=float, default=4.0, help="least seconds of one window")
    parser.add_argument("--repeats", type=int, default=15, help="windows for each piece of work")
    parser.add_argument("--country", default="BRA", help="ISO 3166 alpha-3 code")
    parser.add_argument("--depth", type=int, default=56, help="depth of the ResNet")
    options = parser.parse_args(arguments)

    model = resnet(options.depth).eval()
    images = torch.rand(64, 3, 16, 16)
    meter = EnergyMeter(options.country)
    print(f"source: {meter.source}{', an ESTIMATE' if meter.estimated else ''}")
    print(f"idle power: {meter.idle_w(options.window_s):.2f} W")
    work = {"one": passes(model, images, 1), "one again": passes(model, images, 1), "two": passes(model, images, 2)}
    energy = compare_energy(work, meter=meter, window_s=options.window_s, repeats=options.repeats)
    for name, used in energy.items():
        print(f"{name:>10}: {used.kwh:.3e} kWh (IQR {used.kwh_iqr:.1e}), {1000 * used.duration_s:.1f} ms per call")
    difference_pct = 100 * abs(energy["one again"].kwh / energy["one"].kwh - 1)
    ratio = 2 * energy["two"].kwh / (energy["one"].kwh + energy["one again"].kwh)
    print(f"a network against itself: {difference_pct:.2f} % apart (allowed: {LARGEST_DIFFERENCE_PCT:g} %)")
    print(f"two passes against one: {ratio:.3f} times (allowed: 2 ± {LARGEST_RATIO_ERROR:g})")
    return int(difference_pct >= LARGEST_DIFFERENCE_PCT or abs(ratio - 2) > LARGEST_RATIO_ERROR)


def passes(model: nn.Module, images: Tensor, count: int) -> Callable[[], None]:
    """Returns work that runs `count` forward passes."""

    @torch.inference_mode()
    def run() -> None:
        for _ in range(count):
            model(images)

    return run


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
