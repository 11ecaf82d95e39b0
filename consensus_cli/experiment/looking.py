"""What a network is like before anything is pruned: its scores, its blocks, and what each of them costs."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch

from consensus_cli.config.schema import RunConfig
from consensus_cli.data import ImageData
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.runtime import check_runtime
from consensus_cli.experiment import announce, checks, distributed, inputs, kept_costs, limits
from consensus_cli.experiment.building import Built, build_model
from consensus_cli.experiment.prepare import prepare, try_out
from consensus_cli.experiment.run_images import few_images, with_classes
from consensus_cli.experiment.session import log_into, new_run_dir
from consensus_cli.experiment.steps import Steps
from consensus_cli.experiment.threads import ThreadWatch, restored
from consensus_cli.models.macs import count_macs
from consensus_cli.pruning.blocks import Block, check_candidates
from consensus_cli.screen import Screen
from consensus_cli.storage.scores import write_scores
from consensus_cli.storage.state import RunState


@restored()
def score(config: RunConfig, screen: Screen) -> Path:
    """Scores the original network without pruning it; returns the run directory with the scores.

    Args:
        config: as for `run`; `ratio`, `prune` and `finetune` have no effect.
        screen: where progress and scores are shown.

    Raises:
        UserError: the configuration, or a file it names, is wrong; nothing has been written then.
        RunFailedError: memory, disk, training or the network's code gave out.
    """
    share = distributed.join()
    config = inputs.with_images_there_are(config, screen)
    prepared = share.agree(lambda: prepare(config, screen, finetunes=False))
    state = RunState()
    steps = Steps(prepared, state, share, screen)
    files = share.lead(lambda: new_run_dir(config, datetime.now(UTC)))
    log = log_into(files) if share.leads else nullcontext()
    with limits.explained(files.path, resumable=False), log, steps.tracking(files.path):
        announce.show_score_header(screen, prepared, files.path)
        original = steps.original()
        ranking = steps.score(original, original)
        if share.leads:
            write_scores(files.scores, state.scores)
        announce.show_scores(screen, ranking, files.scores)
    return files.path


def show_blocks(config: RunConfig, screen: Screen) -> None:
    """Shows every residual block of the configured network: shape, MACs, share, and why it stays if it does.

    Raises:
        UserError: the configuration is wrong, or the network has no residual blocks.
    """
    built, images, device, blocks = _looked_at(inputs.with_images_there_are(config, screen), screen)
    with torch.no_grad():
        example = built.model.inputs(few_images(images, device)[0])
    announce.show_blocks(screen, config.model.name, blocks, count_macs(built.model.network, example[:1]))


@restored()
def costs(config: RunConfig, screen: Screen) -> Path:
    """Measures what the configured network saves without each block; returns the run directory with the table.

    With `if_done=skip` a table that was measured before under the same conditions is shown again.

    Args:
        config: as for `run`; nothing is pruned or trained.
        screen: where progress and the table are shown.

    Raises:
        UserError: the configuration is wrong, no block can be removed, or the runtime cannot take the network.
    """
    config = inputs.with_images_there_are(config, screen)
    built, images, device, blocks = _looked_at(config, screen)
    check_candidates(blocks)
    check_runtime(config.prune.runtime, device, config.prune.precision)
    threads = ThreadWatch(config.threads, screen.warning, watched=device.type == "cpu")
    threads.look()
    meter = EnergyMeter(config.evaluate.country, device=device)
    under = kept_costs.conditions(config, images.test.image_shape, device, meter, threads)
    kept = kept_costs.kept_path(Path(config.output_dir), built.spec, blocks, under)
    found = kept_costs.read(kept, under.measurable) if config.if_done == "skip" else None
    if found is None:
        found = kept_costs.measured(built.model, blocks, under, under.measurable, screen)
    files = new_run_dir(config, datetime.now(UTC))
    kept_costs.write(found, kept, files.costs)
    announce.show_costs(screen, config.model.name, found, files.costs)
    return files.path


def _looked_at(config: RunConfig, screen: Screen) -> tuple[Built, ImageData, torch.device, list[Block]]:
    checks.check(config)
    device = checks.pick_device(config.device)
    images = inputs.read_images(config)
    built = build_model(config, images, device)
    images = with_classes(images, built.spec.num_classes)
    _, blocks = try_out(config, images, built, device, screen, training_is="none", attacked=False)
    return built, images, device, blocks
