"""Metrics and criteria of another package, from the command line."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.plugins import offer
from helpers.quick import QUICK
from hydra.core.config_store import ConfigStore

from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.ranking.criteria import CRITERIA
from consensus_cli.storage.results import read_rows

SOURCE = """
from dataclasses import replace
from consensus_cli.scoring.metrics.cka import CKA
MEAN_SHIFT = replace(CKA, name="mean_shift", family="theirs")
def alternating(network, blocks, generator):
    return [i % 2 + i / 100 for i in range(len(blocks))]
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "theirs.py").write_text(SOURCE)
    offer(
        tmp_path,
        {
            "consensus_cli.metrics": {"mean_shift": "theirs:MEAN_SHIFT", "cka": "theirs:MEAN_SHIFT"},
            "consensus_cli.criteria": {"alternating": "theirs:alternating"},
        },
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for registry, name in ((METRICS, "mean_shift"), (CRITERIA, "alternating")):
        registry.data.pop(name, None)
    sys.modules.pop("theirs", None)
    for group, name in (("metrics", "mean_shift"), ("criterion", "mean_shift"), ("criterion", "alternating")):
        ConfigStore.instance().repo.get(group, {}).pop(f"{name}.yaml", None)


@pytest.mark.usefixtures("_installed")
def test_what_a_package_offers_is_listed_beside_our_own(capsys: pytest.CaptureFixture[str]) -> None:
    for what, names in (("metrics", ["mean_shift"]), ("criteria", ["mean_shift", "alternating"])):
        assert main(["list", what]) == 0
        lines = dict(line.split("  ", 1) for line in capsys.readouterr().out.splitlines())
        for name in names:
            described = {name.strip(): text.strip() for name, text in lines.items()}
            assert described[name] == "Of the package somebodys"
        # A name of ours stays ours.
        assert described["cka"].startswith("1 - CKA")


@pytest.mark.usefixtures("_installed")
def test_what_a_package_offers_can_be_chosen() -> None:
    assert compose_run(["metrics=mean_shift"]).metrics.weights == {"mean_shift": 1.0}
    assert set(compose_run(["metrics=fast", "metrics.weights.mean_shift=0.5"]).metrics.weights) > {"mean_shift", "cka"}
    criterion = compose_run(["criterion=alternating"]).criterion
    assert (criterion.name, criterion.aggregation) == ("alternating", "rank_sum")
    assert compose_run(["criterion=mean_shift"]).criterion.name == "mean_shift"


@pytest.mark.usefixtures("_installed")
def test_a_run_prunes_by_the_criterion_of_a_package(tmp_path: Path) -> None:
    words = ("finetune=none", "attacks=none", "criterion=alternating", "prune.step=2", f"output_dir={tmp_path / 'out'}")
    assert main(["run", "--quiet", *QUICK, *words]) == 0
    row = read_rows(tmp_path / "out" / "results.csv").iloc[0]
    assert (row["criterion"], row["removed_blocks"]) == ("alternating", "layer1.1;layer2.1")
