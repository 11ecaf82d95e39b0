"""What all processes of a job do together: train, run the samples through the network, predict.

Each function is called on the leader, which has its followers do the same on their share; with one process there is
nobody to ask. `follow` is the followers' side.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

import torch
from rich.console import Console
from safetensors.torch import load

from consensus_cli import training
from consensus_cli.config.composition import from_plain
from consensus_cli.evaluation import accuracy
from consensus_cli.experiment.parallel import shards
from consensus_cli.experiment.parallel.team import Message, Team, messages, team
from consensus_cli.experiment.prepare import Prepared, prepare
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.copying import clone
from consensus_cli.models.weights import load_into, serialize
from consensus_cli.pruning.surgery import remove_blocks
from consensus_cli.scoring import score
from consensus_cli.scoring.score import Measured, chunks_for
from consensus_cli.scoring.statistics.moments import LATER_FORMS, PairStatistics
from consensus_cli.screen import QuietScreen, Report


def begin(members: Team, prepared: Prepared) -> None:
    """Has the followers prepare the same run, and waits until all of them are ready.

    Raises:
        UserError: what a run needs is wrong or missing where a follower runs.
    """
    if members.world > 1:
        with members.together(lambda: Message("begin", {"config": asdict(prepared.config)})):
            members.gather(lambda: 0, prepared.device)


def train(
    members: Team,
    prepared: Prepared,
    model: Classifier,
    recipe: training.Recipe,
    *,
    removed: Sequence[str],
    seed: int,
    teacher: Classifier | None,
    report: Callable[[training.Progress], None],
) -> training.TrainingResult:
    """Trains `model` in place, every process on its share of each update.

    Args:
        members: the processes of the job.
        prepared: data, device, precision.
        model: the network, the unpruned one without the blocks `removed`.
        recipe: hyperparameters.
        removed: names of the blocks that are gone.
        seed: of shuffling and augmentation.
        teacher: the unpruned network where the recipe distils.
        report: told about the progress, on the leader.

    Raises:
        TrainingDivergedError: the loss is no number any more.
    """
    values = {"removed": list(removed), "recipe": asdict(recipe), "seed": seed}
    with members.together(lambda: _message("train", values, model, teacher), training.TrainingDivergedError):
        return shards.train(members.share, prepared, model, recipe, seed=seed, teacher=teacher, report=report)


def measure(
    members: Team,
    prepared: Prepared,
    network: Classifier,
    original: Classifier | None,
    *,
    removed: Sequence[str],
    candidates: Sequence[str],
    batch_size: int,
    report: Report,
) -> Measured:
    """Runs the samples through the network and computes the metrics, of what one process would have gathered.

    Args:
        members: the processes of the job; each takes a contiguous share of the samples.
        prepared: samples, device, metrics.
        network: the network to score.
        original: what it is compared with; None: itself.
        removed: names of the blocks that are gone.
        candidates: names of the blocks that may go.
        batch_size: images in one batch of a process.
        report: told about the progress.

    Raises:
        UserError: representations that are not finite.
    """
    scoring = prepared.config.scoring
    shared = shards.shares_samples(members.share, len(prepared.samples), chunks_for(scoring.bootstrap))
    passes = shards.passes(
        members.share, prepared, network, original, candidates=candidates, batch_size=batch_size, report=report
    )

    def carry_out(number: int) -> list[PairStatistics]:
        values = {
            "removed": list(removed),
            "candidates": list(candidates),
            "batch_size": batch_size,
            "number": number,
        }
        # A message for each pass: where one fails, nobody waits for the next.
        with members.together(lambda: _message("score", values, network, original)):
            gathered = members.gather(passes[number], prepared.device, also=LATER_FORMS)
        # Where the samples are too few to be shared, every process has run all of them.
        if len(gathered) == 1 or not shared:
            return gathered[0]
        return [PairStatistics.combine(parts, [1] * len(parts)) for parts in zip(*gathered, strict=True)]

    return score.measure(
        [functools.partial(carry_out, number) for number in range(len(passes))],
        list(prepared.votes),
        resamples=scoring.bootstrap,
        seed=prepared.config.seed,
    )


def predict(members: Team, prepared: Prepared, network: Classifier, removed: Sequence[str]) -> accuracy.Predictions:
    """Returns the network's answers to all test images in their order, each image answered by one process."""
    with members.together(lambda: _message("predict", {"removed": list(removed)}, network)):
        parts = members.gather(lambda: shards.predict(members.share, prepared, network), torch.device("cpu"))
    answered = [part for part in parts if part is not None]
    return accuracy.Predictions(torch.cat([p.logits for p in answered]), torch.cat([p.labels for p in answered]))


def lead(command: Callable[[], int]) -> int:
    """Runs a command in a launched job: on the leader itself, on the others what the leader asks for.

    Returns:
        The exit code of this process.
    """
    members = team()
    try:
        if members.leads:
            return command()
        follow(members)
        return 0
    finally:
        members.dismiss()


def follow(members: Team) -> None:
    """Does what the leader asks for until it dismisses the team."""
    prepared: Prepared | None = None
    for message in messages(members):
        if message.kind == "begin":
            prepared = _begin(members, message)
        elif prepared is not None:
            _JOBS[message.kind](members, prepared, message)


def _message(kind: str, values: Mapping[str, object], *networks: Classifier | None) -> Message:
    return Message(kind, values, tuple(serialize(model.network, {}) for model in networks if model is not None))


def _begin(members: Team, message: Message) -> Prepared | None:
    made: list[Prepared] = []

    def make() -> int:
        made.append(prepare(from_plain(message.values["config"]), QuietScreen(Console(quiet=True))))
        return 0

    members.gather(make, torch.device("cpu"))
    return made[0] if made else None


def _follow_training(members: Team, prepared: Prepared, message: Message) -> None:
    values = dict(message.values["recipe"])
    recipe = training.Recipe(**values | {"milestones": tuple(values["milestones"]), "span": tuple(values["span"])})
    model = _rebuilt(prepared, message.values["removed"], message.blobs[0])
    teacher = _rebuilt(prepared, [], message.blobs[1]) if len(message.blobs) > 1 else None
    with suppress(training.TrainingDivergedError):
        shards.train(members.share, prepared, model, recipe, seed=message.values["seed"], teacher=teacher, report=None)


def _follow_scoring(members: Team, prepared: Prepared, message: Message) -> None:
    values = message.values
    network = _rebuilt(prepared, values["removed"], message.blobs[0])
    original = _rebuilt(prepared, [], message.blobs[1]) if len(message.blobs) > 1 else None
    passes = shards.passes(
        members.share,
        prepared,
        network,
        original,
        candidates=values["candidates"],
        batch_size=values["batch_size"],
        report=lambda *_: None,
    )
    members.gather(passes[values["number"]], prepared.device)


def _follow_prediction(members: Team, prepared: Prepared, message: Message) -> None:
    network = _rebuilt(prepared, message.values["removed"], message.blobs[0])
    members.gather(lambda: shards.predict(members.share, prepared, network), prepared.device)


_JOBS: dict[str, Callable[[Team, Prepared, Message], None]] = {
    "train": _follow_training,
    "score": _follow_scoring,
    "predict": _follow_prediction,
}


def _rebuilt(prepared: Prepared, removed: Sequence[str], weights: bytes) -> Classifier:
    """Returns the leader's network on this process's device."""
    model = clone(prepared.fresh)
    remove_blocks(model.network, removed)
    load_into(model.network, load(weights), "the leader's network")
    return model
