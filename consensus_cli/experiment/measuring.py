"""Everything a run measures of its two networks, each with its arguments taken from the configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from consensus_cli.data.memory import ImageTensors
from consensus_cli.evaluation import comparison
from consensus_cli.evaluation.accuracy import Predictions
from consensus_cli.evaluation.comparison import Columns
from consensus_cli.evaluation.cost import cost_comparison
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.mode import Progress
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment.prepare import Prepared, planted_cue
from consensus_cli.experiment.threads import Load
from consensus_cli.models.classifier import Classifier

#: idle power is read once, over a stretch as long as so many energy windows
IDLE_WINDOWS = 3


@dataclass(frozen=True)
class Training:
    """How the two networks are trained where its energy is measured.

    Attributes:
        work: `base` and `pruned`: functions that train a copy of the network for a share of an epoch; empty where it
            cannot be trained.
        epoch_share: that share, in (0, 1].
    """

    work: Mapping[str, Callable[[], None]]
    epoch_share: float


def measure(
    prepared: Prepared,
    original: Classifier,
    network: Classifier,
    *,
    answers: tuple[Predictions, Predictions],
    training: Training,
    meter: EnergyMeter,
    progress: Progress,
) -> Columns:
    """Measures both networks on the same data and the same device.

    Args:
        prepared: what the run works on.
        original: the network before pruning.
        network: the network after pruning.
        answers: what they answer to the test images.
        training: trains copies of them.
        meter: reads the energy.
        progress: told what is being measured.
    """
    progress = prepared.threads.ticking(progress)
    test = prepared.images.test
    columns = comparison.accuracy_columns(*answers)
    columns |= _cost_columns(prepared, original, network, training, meter=meter, progress=progress)
    columns |= _robustness_columns(prepared, original, network, progress)
    columns |= _shift_columns(prepared, original, network, progress)
    cue = planted_cue(prepared.config, len(prepared.images.classes))
    if cue is not None and isinstance(test, ImageTensors):
        columns |= comparison.shortcut_columns(
            original, network, test, cue, seed=prepared.config.seed, device=prepared.device
        )
    return columns


def _cost_columns(
    prepared: Prepared,
    original: Classifier,
    network: Classifier,
    training: Training,
    *,
    meter: EnergyMeter,
    progress: Progress,
) -> Columns:
    settings, test = prepared.config.evaluate, prepared.images.test
    before = Load.now()
    columns: Columns = {"idle_w": meter.idle_w(IDLE_WINDOWS * settings.energy_window_s)}
    columns |= cost_comparison.complexity_columns(original, network, test.image_shape)
    columns |= cost_comparison.latency_columns(
        original,
        network,
        test.image_shape,
        batch_sizes=settings.batch_sizes,
        device=prepared.device,
        min_run_time_s=settings.latency_min_run_s,
        progress=progress,
    )
    columns |= cost_comparison.energy_columns(
        original,
        network,
        test,
        training.work,
        epoch_share=training.epoch_share,
        meter=meter,
        window_s=settings.energy_window_s,
        repeats=settings.energy_repeats,
        progress=progress,
    )
    other_load_pct = Load.now().used_since_pct(before)
    return columns if other_load_pct is None else columns | {"other_load_pct": other_load_pct}


def _robustness_columns(prepared: Prepared, original: Classifier, network: Classifier, progress: Progress) -> Columns:
    config = prepared.config
    if not config.attacks.suite:
        return {}
    return comparison.robustness_columns(
        original,
        network,
        prepared.images.test,
        {key: Attack(**asdict(attack), seed=config.seed) for key, attack in config.attacks.suite.items()},
        images=config.attacks.images,
        seed=config.seed,
        device=prepared.device,
        progress=progress,
    )


def _shift_columns(prepared: Prepared, original: Classifier, network: Classifier, progress: Progress) -> Columns:
    settings, seed, columns = prepared.config.evaluate, prepared.config.seed, Columns()
    if settings.corruptions:
        columns |= comparison.corruption_columns(
            original,
            network,
            prepared.images.test,
            settings.corruptions,
            images=settings.corruption_images,
            seed=seed,
            device=prepared.device,
            progress=progress,
        )
    for name, archive in prepared.shift.items():
        columns |= comparison.shift_columns(
            original,
            network,
            name,
            archive,
            image_size=prepared.images.test.image_shape[-1],
            images=settings.shift_images,
            seed=seed,
            device=prepared.device,
            progress=progress,
        )
    return columns
