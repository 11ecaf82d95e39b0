"""What the network saves without each block: measured once for a network, a machine and a way to run it, and kept."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from consensus_cli.config.schema import RunConfig
from consensus_cli.evaluation.cost.block_costs import Costs, measure_blocks
from consensus_cli.evaluation.cost.cost_comparison import DISTURBING_PCT
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.savings import Conditions
from consensus_cli.experiment.inputs import code_hash
from consensus_cli.experiment.threads import Load, ThreadWatch
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.spec import ModelSpec
from consensus_cli.pruning.block import Block
from consensus_cli.screen import Screen
from consensus_cli.storage.atomic import write_atomic
from consensus_cli.storage.rundir import config_hash


def conditions(
    config: RunConfig, image_shape: Sequence[int], device: torch.device, meter: EnergyMeter | None, threads: ThreadWatch
) -> Conditions:
    """Returns what a run measures with where a measurement decides; the time for it is that of the evaluation."""
    prune, evaluate = config.prune, config.evaluate
    return Conditions(
        image_shape=tuple(image_shape),
        device=device,
        batch_size=prune.batch_size,
        runtime=prune.runtime,
        precision=prune.precision,
        confidence=prune.confidence,
        latency_s=evaluate.latency_min_run_s,
        window_s=evaluate.energy_window_s,
        windows=evaluate.energy_repeats,
        meter=meter,
        tick=threads.tick,
    )


def kept_path(output_dir: Path, spec: ModelSpec, blocks: Sequence[Block], under: Conditions) -> Path:
    """Returns where the table of a network is kept, for this machine and these conditions."""
    plain = {name: value for name, value in vars(under).items() if name not in ("meter", "tick", "device")}
    name = torch.cuda.get_device_name(under.device) if under.device.type == "cuda" else "cpu"
    determined_by = {
        # The numbers of the normalisation, which differ from draw to draw of the images, cost nothing.
        "model": {name: value for name, value in spec.construction().items() if name not in ("mean", "std")},
        "target": code_hash(spec.target),
        "blocks": [block.name for block in blocks],
        "machine": [platform.node(), platform.machine(), name],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        **plain,
        "image_shape": list(under.image_shape),
    }
    return output_dir / "costs" / f"{config_hash(determined_by)[:16]}.csv"


def measured(
    model: Classifier, blocks: Sequence[Block], under: Conditions, quantities: Sequence[str], screen: Screen
) -> Costs:
    """Returns the table of a network, measured now; says so where others kept the machine busy."""
    before = Load.now()
    image = torch.zeros(1, *under.image_shape, device=under.device)
    with screen.progress("measuring what the network saves without each block") as report:
        found = measure_blocks(model, blocks, image, under, quantities, progress=report)
    busy_pct = Load.now().used_since_pct(before)
    if busy_pct is not None and busy_pct > DISTURBING_PCT:
        screen.warning(f"other programs used {busy_pct:.0f} % of the processor meanwhile, which widens the intervals")
    return found


def read(path: Path, quantities: Sequence[str] = ()) -> Costs | None:
    """Returns a table that `write` left; None where it is missing or damaged, or one of these was not measured."""
    try:
        costs = Costs(pd.read_csv(path, dtype={"block": str, "shape": str}, float_precision="round_trip"))
    except (OSError, ValueError):
        return None
    whole = {"block", "stage", "shape", "macs", "params"} <= set(costs.table) and set(quantities) <= set(costs.measured)
    return costs if whole else None


def write(costs: Costs, *paths: Path) -> None:
    """Writes a table as CSV."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, costs.table.to_csv(index=False))
