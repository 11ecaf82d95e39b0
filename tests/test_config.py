"""Every YAML file under conf/ composes into the schema, and the registries and the files name the same things."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from consensus_cli import data
from consensus_cli.config import conf_files, launchers, schema
from consensus_cli.config.composition import compose_run, from_plain
from consensus_cli.evaluation.robustness.attacks import ATTACKS, check_attacks
from consensus_cli.experiment import checks
from consensus_cli.models.zoo import SOURCES
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.ranking.criteria import CRITERIA

OPTIONS = [(group, option) for group in schema.GROUPS for option in conf_files.choices(group)]
LAUNCHERS = [(launchers.GROUP, option) for option in launchers.PLUGINS]


def test_every_file_is_an_option_of_a_known_group() -> None:
    files = [path for path in conf_files.config_dir().rglob("*.yaml") if path.name != "config.yaml"]
    assert len(files) == len({*OPTIONS, *LAUNCHERS}) == 101


@pytest.mark.parametrize(("group", "option"), OPTIONS, ids=str)
def test_every_option_composes_to_valid_values(group: str, option: str) -> None:
    needed = {"custom": ["model.target=package.Class"], "torchvision": ["model.name=resnet18"]}
    needed |= {"timm": ["model.name=resnet18"], "hf": ["dataset.name=somebody/images", "model.name=somebody/network"]}
    run = compose_run([f"{group}={option}", *needed.get(option, [])])
    assert checks.value_problems(run) == []
    assert run.model.source in SOURCES
    assert run.dataset.source in data.DATASETS
    for attack in run.attacks.suite.values():
        check_attacks([attack])


@pytest.mark.parametrize(("group", "option"), OPTIONS + LAUNCHERS, ids=str)
def test_every_option_says_what_it_is(group: str, option: str) -> None:
    assert len(conf_files.choices(group)[option]) > 10


def test_every_metric_and_criterion_of_the_registries_has_a_file() -> None:
    assert set(conf_files.choices("criterion")) == {"consensus", "kl", *METRICS, *CRITERIA}
    assert set(conf_files.choices("metrics")) == {"paper", "fast", "families", "scale_free", *METRICS}


def test_metric_sets_name_known_metrics() -> None:
    for option in conf_files.choices("metrics"):
        assert set(compose_run([f"metrics={option}"]).metrics.weights) <= set(METRICS)
    assert len(compose_run(["metrics=paper"]).metrics.weights) == 8


def test_the_full_suite_holds_every_attack() -> None:
    assert {attack.name for attack in compose_run(["attacks=full"]).attacks.suite.values()} == set(ATTACKS)


def test_a_list_of_metrics_is_their_union() -> None:
    run = compose_run(["metrics=[cka,wasserstein]", "metrics.weights.cka=2"])
    assert run.metrics.weights == {"cka": 2.0, "wasserstein": 1.0}


def test_datasets_bring_their_baseline_recipe_and_the_command_line_has_the_last_word() -> None:
    assert compose_run(["dataset=cifar10"]).baseline.batch_size == 128
    assert compose_run(["dataset=cifar10", "baseline.batch_size=48"]).baseline.batch_size == 48
    assert compose_run(["dataset=cifar10", "baseline=quick"]).baseline.batch_size == 32


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("ratio=0", "ratio"),
        ("ratio=-1", "ratio"),
        ("ratio=1.5", "ratio"),
        ("ratio=nan", "ratio"),
        ("seed=-1", "seed"),
        ("threads=0", "threads"),
        ("precision=fp8", "precision"),
        ("scoring.against=before", "scoring.against"),
        ("scoring.precision=fp16", "scoring.precision"),
        ("scoring.memory_gb=0", "scoring.memory_gb"),
        ("prune.unit=layers", "prune.unit"),
        ("prune.step=0", "prune.step"),
        ("prune.min_blocks_per_stage=0", "prune.min_blocks_per_stage"),
        ("finetune.schedule=cosin", "finetune.schedule"),
        ("finetune.epochs_per_step=-1", "finetune.epochs_per_step"),
        ("finetune.momentum=0", "finetune.momentum"),
        ("finetune.batch_size=1", "finetune.batch_size"),
        ("finetune.distill=1.5", "finetune.distill"),
        ("finetune.ema_decay=1", "finetune.ema_decay"),
        ("finetune.span=all", "finetune.span"),
        ("baseline.accumulate_batches=0", "baseline.accumulate_batches"),
        ("finetune.accumulate_batches=64", "finetune.accumulate_batches"),
        ("compile=maybe", "compile"),
        ("baseline.epochs=0", "baseline.epochs"),
        ("baseline.learning_rate=-0.1", "baseline.learning_rate"),
        ("baseline.milestones=[0.5,2]", "baseline.milestones"),
        ("metrics.samples_per_class=1", "metrics.samples_per_class"),
        ("metrics.weights.cka=-1", "metrics.weights"),
        ("attacks.images=0", "attacks.images"),
        ("evaluate.energy_window_s=0", "evaluate.energy_window_s"),
        ("evaluate.batch_sizes=[1,0]", "evaluate.batch_sizes"),
        ("evaluate.batch_sizes=[8,8]", "evaluate.batch_sizes"),
        ("evaluate.batch_sizes=[]", "evaluate.batch_sizes"),
        ("evaluate.shift_images=0", "evaluate.shift_images"),
    ],
)
def test_a_value_out_of_range_is_one_problem_that_names_the_key(override: str, key: str) -> None:
    (problem,) = checks.value_problems(compose_run([override]))
    assert key in problem.message
    assert problem.hint


def test_all_values_out_of_range_are_told_at_once() -> None:
    run = compose_run(["ratio=2", "seed=-1", "prune.step=0"])
    assert [problem.message.split("=")[0] for problem in checks.value_problems(run)] == ["ratio", "seed", "prune.step"]


def test_a_ratio_is_a_number_or_an_increasing_list() -> None:
    assert compose_run(["ratio=[0.25,0.5]"]).ratios == [0.25, 0.5]
    assert compose_run(["ratio=1"]).ratios == [1.0]
    assert compose_run(["ratio=0.30000000000000004"]).ratio == 0.3
    assert compose_run(["ratio=[0.5]"]).ratio == compose_run(["ratio=0.5"]).ratio == 0.5
    for ratio in ("[0.5,0.5]", "[0.5,1.5]", "[0,0.5]", "[nan,0.5]"):
        assert "ratio" in checks.value_problems(compose_run([f"ratio={ratio}"]))[0].message


def test_a_consensus_of_nobody_is_a_problem() -> None:
    (problem,) = checks.value_problems(compose_run(["metrics=cka", "metrics.weights.cka=0"]))
    assert "no metric" in problem.message


def test_dictionaries_that_are_open_take_new_keys() -> None:
    run = compose_run(
        ["model=resnet18", "model.kwargs={width: 64}", "metrics.weights.bures=2", "evaluate.shift.cifar101=data.npy"]
    )
    assert run.model.kwargs == {"width": 64}
    assert run.metrics.weights["bures"] == 2
    assert run.evaluate.shift == {"cifar101": "data.npy"}


def test_a_schedule_over_the_run_needs_to_know_its_steps() -> None:
    (problem,) = checks.value_problems(compose_run(["prune=macs", "finetune.span=run"]))
    assert "prune.unit=blocks" in problem.message


def test_a_schedule_over_the_run_fits_one_ratio() -> None:
    (problem,) = checks.value_problems(compose_run(["ratio=[0.25,0.5]", "finetune.span=run"]))
    assert "one ratio" in problem.message


def test_compilation_is_asked_for_in_yaml_s_own_words() -> None:
    assert [compose_run([f"compile={word}"]).compile for word in ("auto", "true", "false")] == ["auto", True, False]


def test_a_group_chosen_beside_an_experiment_is_what_it_is_alone() -> None:
    run = compose_run(["experiment=smoke", "finetune=none", "attacks=none"])
    assert (run.finetune.epochs_per_step, run.finetune.final_epochs, run.attacks.suite) == (0, 0, {})


def test_an_attack_of_ones_own_joins_the_suite() -> None:
    run = compose_run(["attacks.suite.pgd50={name: pgd, steps: 50}", "attacks.suite.pgd.steps=20"])
    steps = {name: (attack.name, attack.steps) for name, attack in run.attacks.suite.items()}
    assert steps == {"fgsm": ("fgsm", 10), "pgd": ("pgd", 20), "pgd50": ("pgd", 50)}
    assert from_plain(asdict(run)) == run
