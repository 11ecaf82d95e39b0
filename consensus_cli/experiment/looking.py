"""What a network is like before anything is pruned: its scores, and its blocks."""

from __future__ import annotations

from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path

import torch

from consensus_cli.config.schema import RunConfig
from consensus_cli.experiment import announce, checks, distributed, inputs, limits
from consensus_cli.experiment.prepare import build_model, few_images, prepare, try_out, with_classes
from consensus_cli.experiment.session import log_into, new_run_dir
from consensus_cli.experiment.steps import Steps
from consensus_cli.experiment.threads import restored
from consensus_cli.models.macs import count_macs
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
    config = inputs.with_images_there_are(config, screen)
    checks.check(config)
    device = checks.pick_device(config.device)
    images = inputs.read_images(config)
    built = build_model(config, images, device)
    _, blocks = try_out(config, with_classes(images, built), built, device, screen, training_is="none", attacked=False)
    model = built.model
    with torch.no_grad():
        example = model.inputs(few_images(images, device)[0])
    announce.show_blocks(screen, config.model.name, blocks, count_macs(model.network, example[:1]))
