"""The typed schema of `conf/`: Hydra composes the YAML files into `RunConfig`, field by field and type by type.

The range of a value stands beside its field, in the words of `models/ranges.py`; what needs a registry, a file or a
device is found by `experiment/checks.py`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from consensus_cli.config.conf_files import offered
from consensus_cli.data.request import Request
from consensus_cli.evaluation.cost.quantities import QUANTITIES, Amount
from consensus_cli.evaluation.robustness.attacks import AttackSettings
from consensus_cli.models.spec import ModelSpec
from consensus_cli.training.recipe import Hyperparameters, RecoveryHyperparameters

#: config groups, in the order in which `conf/config.yaml` lists them
GROUPS = (
    "model",
    "dataset",
    "baseline",
    "metrics",
    "criterion",
    "prune",
    "finetune",
    "attacks",
    "evaluate",
    "experiment",
    "budget",
)

PRECISIONS = ("auto", "fp32", "bf16")

#: more than these is a slip of the pen: the machine would be busy for years
MOST_EPOCHS = 100_000
LONGEST_S = 3600


@dataclass(kw_only=True)
class BaselineConfig(Hyperparameters):
    """How the original network is trained when no weights are given."""

    epochs: float = field(metadata={"above": 0, "range": (0, MOST_EPOCHS)})


@dataclass(kw_only=True)
class FinetuneConfig(RecoveryHyperparameters):
    """How the network recovers: after every step, and once more at the end.

    Attributes:
        epochs_per_step, final_epochs: passes over the training images; fractions are allowed.
        recalibration_images: training images on which the statistics of batch norm are measured anew right after
            each removal; 0: they are not.
        span: `step`: every fine-tuning walks through the whole schedule; `run`: all of them together walk through it
            once.
        teacher: weights of the original's architecture to learn from where `distill` is above 0; None: the original.
    """

    epochs_per_step: float = field(metadata={"range": (0, MOST_EPOCHS)})
    final_epochs: float = field(metadata={"range": (0, MOST_EPOCHS)})
    recalibration_images: int = field(default=0, metadata={"range": (0, math.inf), "but": 1})
    span: str = field(default="step", metadata={"choices": ("step", "run")})
    teacher: str | None = None


@dataclass
class MetricsConfig:
    """Which metrics vote, with which weight, on how many samples.

    Attributes:
        weights: metric name -> weight of its ranks in the consensus.
        samples_per_class: training images per class that the metrics see.
    """

    weights: dict[str, float] = field(default_factory=dict, metadata={"range": (0, math.inf)})
    samples_per_class: int = field(default=64, metadata={"range": (2, math.inf)})


@dataclass
class CriterionConfig:
    """What decides which block goes.

    Attributes:
        name: `consensus`, a metric, or a baseline (`random`, `uniform`, `weight_norm`, `first`,
            `last`).
        aggregation: how consensus combines ranks: `rank_sum` (the paper), `family_rank_sum`, `median_rank`, `kemeny`.
        per: what importance is weighed against: `nothing` (the least important block goes), or what the network saves
            without each block: of the sets that save enough, the one of least importance goes.
    """

    name: str = MISSING
    aggregation: str = "rank_sum"
    per: str = field(default="nothing", metadata={"choices": ("nothing", *QUANTITIES)})


@dataclass
class ScoringConfig:
    """How representations are compared.

    Attributes:
        against: `current` network or the `original`.
        precision: `fp32` or `bf16` autocast for the forward pass, `auto` for that of training; the metrics are float64
            in any case.
        memory_gb: GiB for the statistics (half at most) and for activations and the metrics' matrices beside them;
            blocks whose statistics do not fit together are scored in several passes.
        bootstrap: resamples for the interval of each block's rank; 0: none.
        repair: judge each block with what `prune.replace` would put in its place.
    """

    against: str = field(default="current", metadata={"choices": ("current", "original")})
    precision: str = field(default="auto", metadata={"choices": PRECISIONS})
    memory_gb: float = field(default=2.0, metadata={"above": 0})
    bootstrap: int = field(default=0, metadata={"range": (0, 1_000_000)})
    repair: bool = False


@dataclass
class PruneConfig:
    """How much goes, and how fast.

    Attributes:
        unit: what ratio is a share of: `blocks` (of the candidates), or what the network costs, of which so much is to
            be saved: `macs` and `params` are counted, `latency`, `energy` and `memory` measured.
        target: what the pruned network may cost at most, in place of a ratio, such as `8 ms` or `40 MMACs`.
        overshoot: with `criterion.per`: sets that save at most so much more than asked for, as a share of what the
            original costs, go before others; null: whatever they save.
        confidence: with which the intervals of what is measured hold; a saving is reached where its lower end is.
        batch_size, runtime, precision: images per forward pass, what runs it (`torch`, `torch-compile`, `onnxruntime`)
            and in which precision, where something is measured to decide.
        step: blocks removed between two fine-tunings.
        min_blocks_per_stage: residual blocks every stage keeps.
        granularity: `block`, or `branch` for attention and MLP of a transformer layer on their own.
        replace: what stands where a block stood: `nothing`, or the map that fits best on the scoring's images, without
            training: `scale` (a factor and a shift per channel) or `linear` (a 1×1 convolution, on tokens a linear
            layer).
        refit: fit the layers that are left behind the first removed block anew, on the scoring's images, without
            training; once per ratio, before the final fine-tuning.
    """

    unit: str = field(default="blocks", metadata={"choices": ("blocks", *QUANTITIES)})
    target: str | None = None
    overshoot: float | None = field(default=None, metadata={"range": (0, 1)})
    confidence: float = field(default=0.95, metadata={"above": 0, "below": 1})
    batch_size: int = field(default=1, metadata={"range": (1, 65_536)})
    runtime: str = field(default="torch", metadata={"choices": ("torch", "torch-compile", "onnxruntime")})
    precision: str = field(default="fp32", metadata={"choices": PRECISIONS[1:]})
    step: int = field(default=1, metadata={"range": (1, math.inf)})
    min_blocks_per_stage: int = field(default=1, metadata={"range": (1, math.inf)})
    granularity: str = field(default="block", metadata={"choices": ("block", "branch")})
    replace: str = field(default="nothing", metadata={"choices": ("nothing", "scale", "linear")})
    refit: bool = False

    @property
    def amount(self) -> Amount | None:
        """The target; None where a ratio is given. Raises UserError where it is not an amount."""
        return None if self.target is None else Amount.parse("prune.target", self.target)

    @property
    def quantity(self) -> str:
        """What decides whether enough is gone: `blocks`, or one of `QUANTITIES`."""
        amount = self.amount
        return self.unit if amount is None else amount.quantity


@dataclass
class AttacksConfig:
    """The adversarial suite, run on the same test images for the original and the pruned network.

    Attributes:
        suite: column name -> attack. Plain settings in a file or on the command line, `AttackSettings` in a
            `RunConfig`: OmegaConf refuses new keys in a dictionary of typed values.
        images: test images attacked, stratified.
    """

    suite: dict[str, Any] = field(default_factory=dict, metadata={"entries": AttackSettings})
    images: int = field(default=200, metadata={"range": (1, math.inf)})


@dataclass
class EvaluateConfig:
    """What is measured beside accuracy, and for how long.

    Attributes:
        country: ISO 3166 alpha-3 code whose carbon intensity turns energy into CO2.
        energy_window_s: least length of one energy window, on a GPU 2 s in any case; energy_repeats windows per
            network, alternating.
        batch_sizes: images per forward pass at which latency, throughput and peak memory are measured.
        latency_min_run_s: measuring time per network and batch size.
        corruptions: names of the corruptions, each at five severities.
        corruption_images: test images that are corrupted, stratified.
        shift: what columns begin with -> published test images: folder of CIFAR-10-C or ImageNet-C, `.npy` or `.npz`.
        shift_images: images of each of their sets that are shown, stratified; null: all.
    """

    country: str = MISSING
    energy_window_s: float = field(default=MISSING, metadata={"above": 0, "range": (0, LONGEST_S)})
    energy_repeats: int = field(default=MISSING, metadata={"range": (1, math.inf)})
    batch_sizes: list[int] = field(
        default_factory=lambda: [1, 128], metadata={"range": (1, 65_536), "order": "distinct"}
    )
    latency_min_run_s: float = field(default=MISSING, metadata={"above": 0, "range": (0, LONGEST_S)})
    corruptions: list[str] = field(default_factory=list)
    corruption_images: int = field(default=500, metadata={"range": (1, math.inf)})
    shift: dict[str, str] = field(default_factory=dict, metadata={"own": True})
    shift_images: int | None = field(default=None, metadata={"range": (1, math.inf)})


@dataclass
class TransferConfig:
    """On which other images the networks are fine-tuned at the end, and measured.

    Attributes:
        source: registry name of the loader; null: on those of `dataset`. All else is as `dataset` says.
        name: what the results call it.
        root: folder of the data.
    """

    source: str | None = None
    name: str | None = field(default=None, metadata={"own": True})
    root: str | None = field(default=None, metadata={"own": True})


@dataclass
class RunConfig:
    """Everything that determines a run.

    Attributes:
        ratio: share of the candidates, or of the MACs, that goes: a float, or a list of them in increasing order. A
            list gives a row at each: the pruning passes through the smaller ones.
        seed: the one seed of baseline training, sampling, augmentation, criteria and attacks.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        precision: of training: `auto` is bf16 autocast where the device has it, else fp32.
        compile: compile the repeated blocks for training with torch.compile: true, false, or `auto`: on a GPU, for
            images of 64 pixels a side or more.
        tracker: where losses, scores and the row are logged beside the run directory's own files: `none`,
            `tensorboard`, `mlflow` or `wandb`.
        threads: CPU threads of PyTorch; null: its own choice, less what other programs take of the machine.
        output_dir: folder of `results.csv`, run directories and cached baselines.
        if_done: where there is a run of the same configuration already: `skip` it if it is finished, or continue it;
            or `rerun`, start another one. null: skip in a sweep, else rerun.
        controls: networks with rows of their own beside each of the run's, trained as much as the pruned one was by the
            same recipe: `more_training`, the original; `scratch`, the pruned shape from fresh weights, and once more
            for the original's epochs besides.
    """

    # OmegaConf has no union with a list; `composition.to_run_config` checks the type.
    ratio: Any = field(
        default=MISSING,
        metadata={
            "above": 0,
            "range": (0, 1),
            "order": "increasing",
            "takes": ("a number or a list of numbers", "0.5, or [0.25,0.5] in brackets"),
        },
    )
    seed: int = field(default=MISSING, metadata={"range": (0, 2**32 - 1)})
    device: str = MISSING
    precision: str = field(default="auto", metadata={"choices": PRECISIONS})
    compile: Any = field(
        default="auto", metadata={"choices": ("auto", "true", "false"), "takes": ("auto, true or false", "auto")}
    )
    tracker: str = "none"
    threads: int | None = field(default=None, metadata={"range": (1, 1024)})
    output_dir: str = field(default=MISSING, metadata={"own": True})
    if_done: str | None = field(default=None, metadata={"choices": ("skip", "rerun")})
    controls: list[str] = field(default_factory=list, metadata={"choices": ("more_training", "scratch")})
    model: ModelSpec = field(default_factory=ModelSpec)
    dataset: Request = field(default_factory=Request)
    transfer: TransferConfig = field(default_factory=TransferConfig)
    baseline: BaselineConfig = MISSING
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    criterion: CriterionConfig = field(default_factory=CriterionConfig)
    scoring: ScoringConfig = field(default_factory=ScoringConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    finetune: FinetuneConfig = MISSING
    attacks: AttacksConfig = field(default_factory=AttacksConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)

    @property
    def ratios(self) -> list[float]:
        """The ratios at which the run leaves a row, in increasing order."""
        return list(self.ratio) if isinstance(self.ratio, list) else [self.ratio]


def register() -> None:
    """Makes the schema known to Hydra, as the entry `schema` of the defaults list in `conf/config.yaml`."""
    store = ConfigStore.instance().store
    store(name="schema", node=RunConfig)
    # What other packages offer has no file.
    for name in offered("metrics"):
        store(group="metrics", name=name, node={"weights": {name: 1}})
    for name in offered("criterion"):
        store(group="criterion", name=name, node={"name": name})
