"""Checks the energy meter and the stopwatch on this machine, by the protocol and the settings of a default run.

    python scripts/check_energy.py [--rounds 5]

A network is measured against itself, and two forward passes against one. Passes when the median over the rounds is
below 5 % for energy, within 2.0 ± 0.1 for two passes, and below 3 % for latency; exit code 1 otherwise. Every round
is printed. Other work on the machine shows up here, so leave it alone meanwhile.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

from consensus_cli.config.composition import compose_run
from consensus_cli.evaluation.cost.complexity import latency_ms
from consensus_cli.evaluation.cost.energy import Energy, EnergyMeter, compare_energy
from consensus_cli.evaluation.statistics import paired_reduction_pct
from consensus_cli.models.resnet import resnet

LARGEST_ENERGY_DIFFERENCE_PCT = 5.0
LARGEST_RATIO_ERROR = 0.1
LARGEST_LATENCY_DIFFERENCE_PCT = 3.0
IMAGE_SHAPE = (3, 16, 16)


def main(arguments: list[str]) -> int:
    """Measures, prints and judges."""
    defaults = compose_run([]).evaluate
    parser = argparse.ArgumentParser(description="Check energy and latency: A against A, and two passes against one.")
    parser.add_argument("--rounds", type=int, default=5, help="how often the whole protocol is repeated")
    parser.add_argument("--window-s", type=float, default=defaults.energy_window_s, help="least seconds of one window")
    parser.add_argument("--repeats", type=int, default=defaults.energy_repeats, help="windows for each piece of work")
    parser.add_argument("--country", default=defaults.country, help="ISO 3166 alpha-3 code")
    parser.add_argument("--depth", type=int, default=56, help="depth of the ResNet")
    options = parser.parse_args(arguments)

    model, again = resnet(options.depth).eval(), resnet(options.depth).eval()
    again.load_state_dict(model.state_dict())
    images = torch.rand(64, *IMAGE_SHAPE)
    meter = EnergyMeter(options.country)
    print(f"source: {meter.source}{', an ESTIMATE' if meter.estimated else ''}; {torch.get_num_threads()} threads")
    print(f"idle power: {meter.idle_w(options.window_s):.2f} W")
    print(f"{options.rounds} rounds of {options.repeats} windows of {options.window_s:g} s")
    work = {"one": passes(model, images, 1), "one again": passes(again, images, 1), "two": passes(model, images, 2)}
    differences_pct, ratios, latencies_pct = [], [], []
    for number in range(1, options.rounds + 1):
        energy = compare_energy(work, meter=meter, window_s=options.window_s, repeats=options.repeats)
        differences_pct.append(abs(paired_reduction_pct(energy["one"].windows_kwh, energy["one again"].windows_kwh)))
        ratios.append(1 - paired_reduction_pct(energy["one"].windows_kwh, energy["two"].windows_kwh) / 100)
        timed = latency_ms({"a": model, "b": again}, IMAGE_SHAPE, 1, "cpu", defaults.latency_min_run_s)
        latencies_pct.append(abs(paired_reduction_pct(timed["a"].blocks_ms, timed["b"].blocks_ms)))
        print(
            f"round {number}: itself {differences_pct[-1]:.2f} %, two passes {ratios[-1]:.3f} times, latency "
            f"{latencies_pct[-1]:.2f} %; spread of the windows {', '.join(map(spread, energy.values()))}"
        )
    results = (
        judge("energy of a network against itself", differences_pct, 0, LARGEST_ENERGY_DIFFERENCE_PCT, "%"),
        judge("two passes against one", ratios, 2, LARGEST_RATIO_ERROR, "times"),
        judge("latency of a network against itself", latencies_pct, 0, LARGEST_LATENCY_DIFFERENCE_PCT, "%"),
    )
    return int(not all(results))


def passes(model: nn.Module, images: Tensor, count: int) -> Callable[[], None]:
    """Returns work that runs `count` forward passes."""

    @torch.inference_mode()
    def run() -> None:
        for _ in range(count):
            model(images)

    return run


def spread(energy: Energy) -> str:
    """Returns the interquartile range of the windows as a share of their median."""
    return f"{100 * energy.kwh_iqr / energy.kwh:.1f} %"


def judge(what: str, rounds: list[float], wanted: float, tolerance: float, unit: str) -> bool:
    """Prints the median over the rounds with its extremes, and says whether it is within the tolerance."""
    median = statistics.median(rounds)
    passed = abs(median - wanted) <= tolerance
    allowed = f"at most {tolerance:g}" if wanted == 0 else f"{wanted:g} ± {tolerance:g}"
    print(
        f"{what}: {median:.3g} {unit} (rounds {min(rounds):.3g} to {max(rounds):.3g}; allowed: {allowed}): "
        f"{'passed' if passed else 'FAILED'}"
    )
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
