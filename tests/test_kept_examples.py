"""Attacks on the original network are run once, wherever nothing that their result depends on differs."""

from __future__ import annotations

import logging
from pathlib import Path

import pandas as pd
import pytest
import torch
from helpers.quick import QUICK

from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment import kept_examples
from consensus_cli.experiment.kept_examples import KeptExamples
from consensus_cli.experiment.prepare import Prepared, prepare
from consensus_cli.screen import open_screen
from consensus_cli.storage.results import read_rows

WORDS = (
    *QUICK, "model=custom", "model.target=helpers.odd_networks.Plain", "dataset=synthetic", "dataset.image_size=16",
    "metrics=[cka]", "attacks.images=8", "evaluate.energy_window_s=0.01", "threads=1",
)  # fmt: skip


def against(prepared: Prepared) -> str:
    kept = KeptExamples.of(prepared, prepared.original)
    assert kept is not None
    return kept.against


def run(output_dir: Path, *words: str) -> pd.DataFrame:
    assert main(["run", *WORDS, *words, f"output_dir={output_dir}"]) == 0
    return read_rows(output_dir / "results.csv")


def files(output_dir: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (output_dir / "cache").glob("examples-*")}


def attacked(rows: pd.DataFrame) -> list[dict[str, object]]:
    columns = [name for name in rows if name.startswith(("fgsm", "pgd"))]
    return rows[columns].fillna("none").to_dict("records")


def test_rows_are_those_of_attacks_made_anew(tmp_path: Path) -> None:
    shared = run(tmp_path / "kept", "ratio=[0.25,0.5]")
    known = files(tmp_path / "kept")
    assert len(known) == 2  # FGSM and PGD, one batch each, once for two networks
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cache").write_text("a file, no folder")
    anew = run(tmp_path / "none", "ratio=[0.25,0.5]")
    logs = [path.read_text() for path in (tmp_path / "none" / "runs").glob("*/run.log")]
    # Once for each of the two evaluations, not for each of their two attacks.
    assert max(text.count("is not kept for the next run") for text in logs) == 2
    assert attacked(shared) == attacked(anew)
    assert attacked(shared)[0]["pgd_base_pct"] == attacked(shared)[1]["pgd_base_pct"]
    another = run(tmp_path / "kept", "criterion=random", "ratio=0.25")
    assert files(tmp_path / "kept") == known
    assert attacked(another)[-1]["pgd_base_pct"] == attacked(shared)[0]["pgd_base_pct"]


def test_examples_belong_to_one_network_and_its_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_screen("none") as screen:
        prepared = prepare(compose_run([*WORDS, f"output_dir={tmp_path}"]), screen)
    original = prepared.original
    expected = against(prepared)
    assert against(prepared) == expected
    with torch.no_grad():
        weight = next(original.parameters())
        before = weight.clone()
        weight += 1e-6
        assert against(prepared) != expected
        weight.copy_(before)
    assert against(prepared) == expected
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert against(prepared) != expected
    finally:
        torch.set_num_threads(threads)
    # Eight images of 3×16×16 under two attacks.
    monkeypatch.setattr(kept_examples, "LARGEST_BYTES", 2 * 8 * 3 * 16 * 16 * 4 - 1)
    assert KeptExamples.of(prepared, original) is None


def test_only_the_same_attack_on_the_same_images_finds_them(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    kept = KeptExamples(tmp_path / "cache", "a network")
    images, labels = torch.rand(4, 3, 8, 8).contiguous(memory_format=torch.channels_last), torch.arange(4)
    examples, attack = (images + 0.01).clamp(0, 1), Attack("pgd", seed=3)
    assert kept.read(attack, images, labels) is None
    kept.write(attack, images, labels, examples)
    found = kept.read(attack, images, labels)
    assert found is not None
    assert torch.equal(found, examples)
    assert found.stride() == images.stride()
    others = [
        (kept, Attack("pgd", seed=4), images, labels),
        (kept, Attack("pgd", eps255=4, seed=3), images, labels),
        (kept, attack, images.flip(0), labels),
        (kept, attack, images, labels.flip(0)),
        (KeptExamples(tmp_path / "cache", "another network"), attack, images, labels),
    ]
    assert [one.read(*rest) for one, *rest in others] == [None] * len(others)
    (file,) = (tmp_path / "cache").iterdir()
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        assert kept.read(attack, images, labels) is None
    assert "is damaged: what it held is made again" in caplog.text
