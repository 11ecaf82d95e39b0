"""Everything a run measures of its two networks, each with its arguments taken from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from torch import Tensor

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.share import Share
from consensus_cli.data.source import Progress
from consensus_cli.evaluation.accuracy import accuracy_columns, predict_both
from consensus_cli.evaluation.cost.cost_comparison import complexity_columns, energy_columns, latency_columns
from consensus_cli.evaluation.cost.energy import EnergyMeter, readable_window_s
from consensus_cli.evaluation.pair import Columns, Pair
from consensus_cli.evaluation.robustness.adversarial import attack_columns
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.corruption import corruption_columns
from consensus_cli.evaluation.robustness.shift import shift_columns
from consensus_cli.evaluation.robustness.shortcut import shortcut_columns
from consensus_cli.experiment.kept_examples import KeptExamples
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.experiment.threads import Load
from consensus_cli.models.classifier import Classifier

#: idle power is read once, over a stretch as long as so many energy windows
IDLE_WINDOWS = 3


@dataclass(frozen=True)
class Training:
    """Work that trains a copy of the network `base` or `pruned` for `epoch_share` of an epoch; none if it cannot be."""

    work: Mapping[str, Callable[[], None]]
    epoch_share: float


def measure(
    prepared: Prepared,
    original: Classifier,
    network: Classifier,
    *,
    training: Training | None,
    meter: EnergyMeter,
    progress: Progress,
    share: Share,
) -> tuple[Columns, dict[str, Tensor]]:
    """Measures both networks by the pieces that `evaluation.compare` is made of; processes share the images.

    Rank 0 measures cost, with `training` on copies of the networks; None: the cost is counted and not timed.

    Returns:
        The columns, and of `base` and `pruned` whether they are right about each test image, (n,) bool; of
        `<attack>_base` and `<attack>_pruned` the same under attack.
    """
    config, test = prepared.config, prepared.images.test
    settings = config.evaluate
    suite = {key: Attack(**asdict(attack), seed=config.seed) for key, attack in config.attacks.suite.items()}
    pair = Pair(
        original,
        network,
        test,
        config.seed,
        prepared.device,
        share,
        prepared.threads.ticking(progress),
        KeptExamples.of(prepared, original),
    )
    original_answers, pruned_answers = predict_both(pair)
    columns = accuracy_columns(original_answers, pruned_answers, pair.seed)
    columns |= share.lead(lambda: _cost_columns(prepared, pair, training, meter))
    attacked, standing = attack_columns(pair, suite, config.attacks.images)
    columns |= attacked
    columns |= corruption_columns(pair, settings.corruptions, settings.corruption_images)
    for name, archive in prepared.shift.items():
        columns |= shift_columns(pair, name, archive, settings.shift_images)
    if config.dataset.cue.kind is not None and isinstance(test, ImageTensors):
        columns |= shortcut_columns(pair, test, config.dataset.cue, len(prepared.images.classes))
    return columns, {"base": original_answers.correct, "pruned": pruned_answers.correct} | standing


def _cost_columns(prepared: Prepared, pair: Pair, training: Training | None, meter: EnergyMeter) -> Columns:
    if training is None:
        return complexity_columns(pair.original, pair.pruned, pair.test.image_shape)
    settings, before = prepared.config.evaluate, Load.now()
    window_s = readable_window_s(settings.energy_window_s, meter.device)
    columns: Columns = {"idle_w": meter.idle_w(IDLE_WINDOWS * window_s)}
    columns |= complexity_columns(pair.original, pair.pruned, pair.test.image_shape)
    columns |= latency_columns(pair, settings.batch_sizes, settings.latency_min_run_s)
    columns |= energy_columns(
        pair,
        meter,
        window_s=window_s,
        repeats=settings.energy_repeats,
        training=training.work,
        epoch_share=training.epoch_share,
    )
    other_load_pct = Load.now().used_since_pct(before)
    return columns if other_load_pct is None else columns | {"other_load_pct": other_load_pct}
