"""The beginning and the end of a run on screen: what will happen, and original, pruned network and change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from consensus_cli import __version__
from consensus_cli.config.schema import EvaluateConfig
from consensus_cli.errors import enumerated
from consensus_cli.evaluation.cost.block_costs import Costs
from consensus_cli.evaluation.cost.cost_comparison import DISTURBING_PCT, EVERYTHING_COUNTED
from consensus_cli.evaluation.cost.energy import GPU_READ, readable_window_s
from consensus_cli.evaluation.cost.quantities import COUNTED, MEASURED, written
from consensus_cli.experiment.controls import asked
from consensus_cli.experiment.measuring import IDLE_WINDOWS
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.session import Session
from consensus_cli.models.macs import MacCount
from consensus_cli.pruning.block import Block
from consensus_cli.pruning.schedule import block_costs
from consensus_cli.report import certificates, robustness
from consensus_cli.report.attribution import sentences
from consensus_cli.report.comparison import run_changes
from consensus_cli.report.formatting import NONE
from consensus_cli.scoring.ranking.consensus import Ranking, kendall_tau
from consensus_cli.screen import Screen, events
from consensus_cli.storage.certificate import read_certificate
from consensus_cli.storage.rundir import RunDir

_NAMES = {"macs": "MACs", "params": "parameters"}


def show_header(screen: Screen, prepared: Prepared, session: Session) -> None:
    """Shows what will run, and how often each phase will."""
    config, removed = prepared.config, session.state.removed
    quantity = config.prune.quantity
    if quantity == "blocks":
        goal = f"{prepared.target_blocks} of {prepared.candidates} candidate blocks"
        planned = _planned(prepared, removed, resumed=session.saved is not None)
    else:
        much = f"{config.ratios[-1]:.1%} of the {_NAMES.get(quantity, quantity)}"
        if config.prune.target is not None:
            much = f"blocks until it needs {config.prune.target} at most"
        how = f"batch {config.prune.batch_size}, {config.prune.runtime}, " if quantity in MEASURED else ""
        goal, planned = f"{much} ({how}{prepared.candidates} candidate blocks)", {}
    goal += f", {config.prune.step} per step"
    if len(config.ratios) > 1:
        goal += f", a row at each of {', '.join(f'{ratio:g}' for ratio in config.ratios)}"
    screen.show(_started(prepared, session.files.path, goal=goal, removed=removed, planned=planned))
    if session.saved is not None:
        gone = "1 block is gone" if len(removed) == 1 else f"{len(removed)} blocks are gone"
        screen.line(f"resumed: {gone}, {session.clock.earlier_s:.0f} s of work are kept")
    if session.state.scorings and session.state.scores.empty:
        screen.warning("the earlier scores are lost (scores.csv is missing or damaged): it goes on with the next ones")


def show_score_header(screen: Screen, prepared: Prepared, run_dir: Path) -> None:
    """Shows what will be scored."""
    planned = _baseline_phase(prepared) | {"score": 1}
    screen.show(_started(prepared, run_dir, goal="", removed=(), planned=planned))


def _started(
    prepared: Prepared, run_dir: Path, *, goal: str, removed: Sequence[str], planned: Mapping[str, int]
) -> events.Started:
    config, images = prepared.config, prepared.images
    return events.Started(
        version=__version__,
        run_dir=str(run_dir),
        model=config.model.name,
        dataset=config.dataset.name,
        seed=config.seed,
        criterion=config.criterion.name,
        metrics=tuple(prepared.votes),
        train_images=len(images.train),
        test_images=len(images.test),
        image_shape=images.train.image_shape,
        classes=len(images.classes),
        class_names=images.classes,
        macs=prepared.macs_base,
        blocks=tuple(block.name for block in prepared.blocks),
        candidates=tuple(block.name for block in prepared.blocks if block.removable),
        removed=tuple(removed),
        goal=goal,
        device=str(prepared.device),
        threads=torch.get_num_threads(),
        precision=prepared.precision,
        scoring_precision=prepared.scoring_precision,
        planned=planned,
        least_s={"evaluate": _least_evaluation_s(config.evaluate, prepared.device)} if "evaluate" in planned else {},
    )


def _planned(prepared: Prepared, removed: Sequence[str], *, resumed: bool) -> dict[str, int]:
    """Returns how often each phase of a run will run, where the number of blocks to remove is known."""
    config = prepared.config
    steps = math.ceil((prepared.target_blocks - len(removed)) / config.prune.step)
    per_step = config.finetune.recalibration_images > 0 or config.finetune.epochs_per_step > 0
    rows, made = len(config.ratios), len(config.ratios) * len(asked(config.controls))
    transferred = config.transfer.source is not None
    finetunings = transferred + steps * per_step + rows * (config.finetune.final_epochs > 0) + made
    # A resumed run has its original network.
    baseline = {} if resumed else _baseline_phase(prepared)
    healings = steps * (config.prune.replace != "nothing") + rows * config.prune.refit
    heal = {"heal": healings} if healings else {}
    return baseline | {"score": steps} | heal | {"finetune": finetunings, "evaluate": rows + made}


def _baseline_phase(prepared: Prepared) -> dict[str, int]:
    return {} if prepared.is_trained else {"baseline": 1}


def _least_evaluation_s(settings: EvaluateConfig, device: torch.device) -> float:
    """Returns the seconds of all windows: energy of inference and training, and latency, of two networks each."""
    window_s = readable_window_s(settings.energy_window_s, device)
    energy_s = 2 * (1 + settings.energy_repeats) * window_s
    idle_s = IDLE_WINDOWS * window_s
    return idle_s + 2 * (energy_s + len(settings.batch_sizes) * settings.latency_min_run_s)


def show_comparison(screen: Screen, row: Mapping[str, Any]) -> None:
    """Shows baseline, pruned network and change, and where the row is."""
    screen.show(events.RowWritten(row))
    title = f"{row['model']} without {row['blocks_removed']} of {row['blocks_candidates']} blocks"
    after = "pruned"
    if row.get("control"):
        title, after = f"control {row['control']}: {title}", "control"
    measured, changes = run_changes(row)
    rows = [(change.label, change.before, change.after, change.change) for change in changes]
    if row.get("control"):
        # Its cost is counted and not timed.
        rows = [line for line in rows if set(line[1:]) != {NONE}]
    screen.table(title, ("", "original", after, "change"), rows)
    for sentence in robustness.warnings(measured.to_frame().T.infer_objects()):
        screen.warning(sentence.removesuffix("."))
    # A row of an older version does not say what its MACs leave out.
    if row.get("macs_uncounted") not in (None, EVERYTHING_COUNTED):
        screen.warning(f"MACs leave out: {row['macs_uncounted']}")
    if row["energy_estimated"] and GPU_READ in row["energy_source"]:
        screen.warning(
            "no energy counter of the processor found: its part is estimated from CPU time, the GPU's is read"
        )
    elif row["energy_estimated"]:
        screen.warning("no energy counter found: energy is estimated from CPU time and adds little beyond the run time")
    if (row.get("other_load_pct") or 0.0) > DISTURBING_PCT:
        screen.warning(
            f"other programs used {row['other_load_pct']:.0f} % of the processor while latency and energy were "
            "measured: the change holds, the values do not compare with other runs'"
        )
    if row["removed_blocks"]:
        screen.result(f"removed, in order: {row['removed_blocks'].replace(';', ' ')}")
    for sentence in (*sentences(row), certificates.sentence(read_certificate(RunDir(Path(row["run_dir"]))))):
        if sentence:
            screen.result(sentence)
    if row.get("control"):
        return
    screen.result(f"run {row['run_id']} took {row['duration_s']:.0f} s; its files: {row['run_dir']}")


def show_scores(screen: Screen, ranking: Ranking, path: Path) -> None:
    """Shows one scoring: blocks × metrics (distance and rank), the sum, intervals, and how far the metrics agree."""
    stability = ranking.stability
    columns = ["block", *ranking.distances, "sum"]
    if stability is not None:
        columns += ["place, 95 %", "first in"]
    rows = []
    for i in ranking.order:
        cells = [f"{ranking.distances[m][i]:.4g} ({ranking.ranks[m][i]:g})" for m in ranking.distances]
        row = [ranking.blocks[i], *cells, f"{ranking.importance[i]:g}"]
        if stability is not None:
            row += [f"{stability.low[i]:g}–{stability.high[i]:g}", f"{100 * stability.least_share[i]:.0f} %"]
        rows.append(row)
    screen.table("distance (rank) without each block, least important first", columns, rows)
    if len(ranking.distances) > 1:
        tau = kendall_tau(ranking.distances)
        agreement = [[name, *(f"{tau.loc[name, other]:.2f}" for other in tau.columns)] for name in tau.index]
        screen.table("Kendall's tau between the metrics", ["", *tau.columns], agreement)
    screen.result(f"scores: {path}")


def show_costs(screen: Screen, network: str, costs: Costs, path: Path) -> None:
    """Shows what the network saves without each block, as measured, and where the table is."""
    line = costs.table.iloc[0]
    head, rows = costs.rows()
    screen.table(f"{network} without each block", head, rows)
    totals = {quantity: line[f"{quantity}_base"] for quantity in COUNTED}
    totals |= {quantity: line[f"{quantity}_base_{MEASURED[quantity].lower()}"] for quantity in costs.measured}
    of_whole = ", ".join(f"{quantity} {written(quantity, value)}" for quantity, value in totals.items())
    how = f"batch {line['batch_size']}, {line['runtime']}, {line['precision']}, {line['threads']} threads"
    screen.result(f"the whole network: {of_whole} ({line['device']}, {how})")
    for quantity in costs.measured:
        if bool(costs.is_noise(quantity).any()):
            noise = enumerated(costs.table["block"][costs.is_noise(quantity)])
            screen.result(f"within the noise of {quantity}: {noise}")
        for blocks in costs.disagreeing(quantity):
            screen.warning(f"these blocks are the same work, and differ in {quantity} all the same: {blocks}")
    screen.result(f"intervals hold all at once with {line['confidence']:.4g} confidence; table: {path}")


def show_blocks(screen: Screen, network: str, blocks: Sequence[Block], count: MacCount) -> None:
    """Shows every residual block, in order of execution, with its MACs and their share of the whole network's."""
    macs = block_costs(count, blocks)
    rows = [
        (
            block.name,
            str(block.stage + 1),
            "×".join(map(str, block.shape)),
            f"{macs[block.name] / 1e6:.2f}",
            f"{100 * macs[block.name] / count.total:.4g} %" if count.total else "",
            "yes" if block.removable else f"no: {block.reason}",
        )
        for block in blocks
    ]
    screen.table(f"residual blocks of {network}", ("block", "stage", "shape", "M MACs", "share", "removable"), rows)
    removable = sum(block.removable for block in blocks)
    screen.result(f"{removable} of {len(blocks)} can be removed; {count.total / 1e6:.2f} M MACs in all")
    if count.uncounted:
        screen.warning(f"MACs leave out: {', '.join(count.uncounted)}")
