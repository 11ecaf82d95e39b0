"""What a pruned network learns from, where that is not the original."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from helpers.quick import QUICK
from safetensors.torch import load_file

from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.storage.results import read_rows

WORDS = (*QUICK, "ratio=0.17", "attacks=none", "criterion=first", "evaluate.energy_window_s=0.05", "threads=1")
DISTILLED = ("finetune.final_epochs=0.2", "finetune.distill=0.5")


def run(folder: Path, *words: str) -> dict[str, Path]:
    """Carries out a run; returns the pruned network's file, by the control that it is ("" for the run itself)."""
    assert main(["run", "--quiet", *WORDS, *words, f"output_dir={folder}"]) == 0
    rows = read_rows(folder / "results.csv")
    files = (next(Path(place).glob("checkpoints/pruned*.safetensors")) for place in rows["run_dir"])
    return dict(zip(rows["control"].fillna("") if "control" in rows else [""] * len(rows), files, strict=True))


def test_a_network_learns_from_the_weights_it_is_given(tmp_path: Path) -> None:
    trained = run(tmp_path / "first", "controls=[more_training]", "finetune.final_epochs=1")
    (original,) = (tmp_path / "first" / "baselines").glob("*.safetensors")
    given = (*DISTILLED, f"model.weights={original}")
    plain = load_file(run(tmp_path / "plain", *given)[""])
    same = load_file(run(tmp_path / "same", *given, f"finetune.teacher={original}")[""])
    other = load_file(run(tmp_path / "other", *given, f"finetune.teacher={trained['more_training']}")[""])
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    assert not all(torch.equal(plain[name], other[name]) for name in plain)

    # The teacher is known by its content, wherever it lies.
    copied = shutil.copy(original, tmp_path / "copy.safetensors")
    hashes = {run_hash(compose_run([*WORDS, *DISTILLED, f"finetune.teacher={file}"])) for file in (original, copied)}
    assert len(hashes) == 1
    more = run_hash(compose_run([*WORDS, *DISTILLED, f"finetune.teacher={trained['more_training']}"]))
    assert len({*hashes, more, run_hash(compose_run([*WORDS, *DISTILLED]))}) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("finetune.teacher={tmp}/none.safetensors", "finetune.distill=0.5"), "none.safetensors"),
        (("finetune.teacher={tmp}/none.safetensors",), "finetune.distill=0"),
        (("finetune.teacher={tmp}/text.safetensors", "finetune.distill=0.5"), "text.safetensors"),
    ],
)
def test_a_teacher_that_cannot_teach_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], message: str
) -> None:
    (tmp_path / "text.safetensors").write_text("not a network", encoding="utf-8")
    filled = [word.format(tmp=tmp_path) for word in words]
    assert main(["run", *WORDS, "finetune.final_epochs=0.2", *filled, f"output_dir={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert "hint:" in said
    assert not list((tmp_path / "out").glob("**/row.json"))
