"""The library as a stranger uses it: `import consensus_cli as cc`."""

import copy
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers.quick import QUICK
from rich.console import Console
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import consensus_cli as cc
from consensus_cli import api
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment.prepare import prepare
from consensus_cli.models.resnet import resnet
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.ranking.criteria import CRITERIA
from consensus_cli.screen import QuietScreen
from consensus_cli.storage.rundir import RunDir

DOCS = Path(__file__).parents[1] / "docs" / "python.md"


def test_every_public_name_is_there_and_has_a_docstring() -> None:
    names = set(cc.__all__) - {"__version__"}
    assert {name for name in vars(api) if not name.startswith("_")} == names == set(dir(cc)) - {"__version__"}
    for name in names:
        assert getattr(cc, name) is getattr(api, name)
        assert getattr(cc, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'rank_block'"):
        _ = cc.rank_block


def test_the_import_does_not_wait_for_what_is_not_used() -> None:
    script = (
        "import sys; import consensus_cli as cc; assert 'torch' not in sys.modules; cc.rank_blocks, cc.prune;"
        "assert not {'hydra', 'torchattacks', 'codecarbon', 'matplotlib', 'accelerate'} & set(sys.modules), sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_run_refuses_what_is_not_a_list_of_settings_or_a_screen() -> None:
    with pytest.raises(cc.UserError, match="texts, one by one"):
        cc.run(["model=resnet20"])  # type: ignore[arg-type]
    with pytest.raises(cc.UserError, match="unknown screen 'quite'"):
        cc.run("model=resnet20", screen="quite")


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (cc.Recipe, {"epochs": -1}, "epochs=-1 is out of range"),
        (cc.Recipe, {"ema_decay": 1.0}, "ema_decay=1.0 is out of range"),
        (cc.Recipe, {"span": (0.5, 1.5)}, r"span=\(0.5, 1.5\) is out of range"),
        (cc.Recipe, {"batch_size": "16"}, "batch_size=16 is out of range"),
        (cc.Recipe, {"schedule": "cosin"}, "unknown schedule 'cosin'"),
        (cc.Augmentation, {"min_area": 0.0}, "min_area=0.0 is out of range"),
        (cc.Attack, {"name": "pgd", "steps": 0}, "steps=0 is out of range"),
    ],
)
def test_what_is_out_of_range_is_refused_where_it_is_said(kind: type, values: dict[str, object], message: str) -> None:
    needed = {"epochs": 1, "learning_rate": 0.1, "schedule": "constant"} if kind is cc.Recipe else {}
    with pytest.raises(cc.UserError, match=message):
        kind(**needed | values)


def test_a_resnet20_is_pruned_with_a_training_loop_of_ones_own() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(80) % 2
    images = (torch.rand(80, 3, 8, 8, generator=generator) + 0.5 * labels[:, None, None, None]) / 1.5
    loader = DataLoader(TensorDataset(images, labels), batch_size=40)
    torch.manual_seed(0)
    model = resnet(20, num_classes=2)
    original = copy.deepcopy(model)
    for removal in cc.prune(model, loader, ratio=0.5, metrics=["cka", "permutation"]):
        optimizer = torch.optim.SGD(removal.model.parameters(), lr=0.05)
        for x, y in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(removal.model.train()(x), y).backward()
            optimizer.step()
    comparison = cc.compare(original, model, loader, cost=False)
    assert comparison["accuracy_pruned_pct"] > comparison["accuracy_base_pct"]


@pytest.mark.parametrize("words", [("metrics=fast", "scoring.precision=fp32"), ("criterion=random", "prune.step=2")])
def test_the_same_blocks_go_as_through_the_command(tmp_path: Path, words: tuple[str, ...]) -> None:
    words = (*QUICK, "finetune=none", "attacks=none", "ratio=0.6", "seed=3", f"output_dir={tmp_path}", *words)
    logger = logging.getLogger("consensus_cli")
    logging_before = logger.level, logger.propagate, logger.handlers[:]
    result = cc.run(*words)
    assert (logger.level, logger.propagate, logger.handlers) == logging_before
    config = compose_run(words)
    prepared = prepare(config, QuietScreen(Console(quiet=True)))
    model = prepared.original
    model.network.load_state_dict(load_file(RunDir(result.path).baseline_checkpoint))
    samples = cc.Samples.of_split(prepared.samples, num_classes=len(prepared.images.classes))
    removals = cc.prune(
        model,
        samples,
        ratio=0.6,
        step=config.prune.step,
        criterion=config.criterion.name,
        metrics=config.metrics.weights,
        seed=config.seed,
    )
    removed = [name for removal in removals for name in removal.removed]
    assert ";".join(removed) == result.row["removed_blocks"]
    images = torch.rand(2, *prepared.images.train.image_shape)
    torch.testing.assert_close(result.pruned()(images), model.eval()(images), rtol=1e-4, atol=1e-5)


def test_the_code_of_the_docs_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of it, in one session; only the run's folder is another."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL))
    try:
        exec(compile(code, str(DOCS), "exec"), {"__name__": "docs"})
    finally:
        METRICS.data.pop("mean_shift", None)
        CRITERIA.data.pop("spread", None)
    assert (tmp_path / "outputs" / "results.csv").is_file()
