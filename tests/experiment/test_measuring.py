"""What the study measures, and that it is measured once."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from study import __main__ as command
from study import oneshot
from study.bench import right_answers
from study.iterative import COLUMNS, collect, named
from study.plan import METRICS
from study.rows import FILES, Rows, joined, pack, split, unpack

from consensus_cli import Samples, rank_blocks
from consensus_cli.data.sampling import stratified_indices
from consensus_cli.errors import UserError
from consensus_cli.evaluation.accuracy import predict
from consensus_cli.screen import Screen

ROOT = Path(__file__).parents[2]


def test_parts_hold_every_test_image_once(bench):
    assert {name: len(part) for name, part in bench.parts.items()} == {"selection": 50, "report": 60}
    together = torch.cat([part.images for part in bench.parts.values()]).flatten(1).tolist()
    assert sorted(together) == sorted(bench.images.test.images.flatten(1).tolist())


@pytest.mark.slow
def test_scores_are_those_of_the_tool(bench, measured):
    train = bench.images.train
    samples = train.subset(stratified_indices(train.labels, 8, 1))
    ranking = rank_blocks(bench.model, Samples.of_split(samples, 10), metrics=METRICS, blocks=bench.candidates)
    rows = Rows(measured, "scores").read().query("draw == 1 and samples_per_class == 8")
    assert rows["block"].tolist() == [block.name for block in bench.candidates]
    for name, distances in ranking.distances.items():
        np.testing.assert_allclose(rows[name], distances, rtol=1e-4, err_msg=name)


def test_answers_are_those_of_networks_without_the_block(bench):
    right = right_answers(bench.model, bench.parts["report"], bench.device, "fp32", bench.candidates)
    assert right.shape == (1 + 6, 60)
    for row, removed in zip(right, [(), *((block.name,) for block in bench.candidates)], strict=True):
        model = bench.without(removed, "none")
        expected = predict(model, bench.parts["report"], "cpu").correct.numpy()
        assert (row != expected).sum() <= 1  # two logits may be equal up to rounding


def test_recalibration_changes_statistics_only(bench):
    plain, recalibrated = (bench.without(("layer2.1",), treatment) for treatment in ("none", "recalibrated"))
    statistics = plain.state_dict().keys() - dict(plain.named_parameters()).keys()
    changed = {k for k, v in plain.state_dict().items() if not torch.equal(v, recalibrated.state_dict()[k])}
    assert changed
    assert changed <= statistics


@pytest.mark.slow
def test_a_second_call_measures_nothing_and_an_interrupted_one_continues(bench, measured, tmp_path):
    before = {path.name: path.read_text() for path in measured.glob("*.csv")}
    oneshot.measure(bench, measured, Screen())
    assert {path.name: path.read_text() for path in measured.glob("*.csv")} == before
    shutil.copytree(measured, tmp_path / "rows")
    for name in ("accuracy", "paths"):
        lines = before[f"{name}.csv"].splitlines(keepends=True)
        (tmp_path / "rows" / f"{name}.csv").write_text("".join(lines[:-1]) + lines[-1][:9])
    oneshot.measure(bench, tmp_path / "rows", Screen())
    for name, text in before.items():
        assert sorted((tmp_path / "rows" / name).read_text().splitlines()) == sorted(text.splitlines())


def test_answers_survive_packing():
    right = np.random.default_rng(0).random(77) < 0.8
    assert (unpack(pack(right), 77) == right).all()


def test_rows_keep_whole_lines_and_refuse_other_columns(tmp_path):
    rows = Rows(tmp_path, "orders")
    rows.add({"criterion": "first", "draw": 0, "order": joined(("a", "b"))})
    with rows.path.open("a") as file:
        file.write("last,0,")
    assert [split(field) for field in Rows(tmp_path, "orders").read()["order"]] == [("a", "b")]
    with pytest.raises(ValueError, match="draw"):
        rows.add({"criterion": "first", "order": ""})
    rows.path.write_text("x,y\n")
    with pytest.raises(UserError, match="has other columns"):
        Rows(tmp_path, "orders")


@pytest.mark.parametrize("name", FILES)
def test_committed_rows_are_whole_and_measured_once(name):
    rows = Rows(ROOT / "docs" / "study", name).read()
    if rows.empty:
        pytest.skip(f"no rows of {name} have been committed")
    numbers = {
        "accuracy": ["treatment", "part", "removed"],
        "robustness": ["removed", "measure"],
        "targets": ["network", "way", "seed"],
        "costs": ["removed"],
        "healing": ["draw", "images", "order", "method", "blocks"],
        "healing_tuned": ["blocks", "method", "epochs"],
        "healing_robustness": ["blocks", "method", "measure"],
        "healing_vit": ["granularity", "replace", "refit", "blocks_removed", "seed"],
    }
    key = numbers[name] if name in numbers else [c for c in ("criterion", "against", "draw", "step") if c in rows]
    key += [c for c in ("samples_per_class", "block") if c in rows]
    assert not rows.duplicated(key).any()


def test_mistakes_cost_one_line(tmp_path, capsys):
    assert command.main(["one-shot", "--root", str(tmp_path), "--weights", "none", "--rows", str(tmp_path)]) == 2
    assert command.main(["collect", str(tmp_path), "--rows", str(tmp_path)]) == 2
    assert command.main(["figures", "--rows", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.count("error: ") == said.count("hint: ") == 3
    assert "holds no finished run" in said
    assert "run scripts/study.sh one-shot first" in said
    assert not list(tmp_path.iterdir())


def test_collect_keeps_finished_runs_and_names_aggregations(tmp_path):
    (tmp_path / "results.csv").write_text(
        "run_id,status,criterion,aggregation,ratio,seed,accuracy_delta_pp\n"
        "a,done,consensus,family_rank_sum,0.5,0,-1.25\nb,failed,cka,rank_sum,0.5,0,\nc,done,cka,rank_sum,0.5,0,-2\n"
    )
    collect(tmp_path, tmp_path / "rows")
    lines = (tmp_path / "rows" / "iterative.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS)
    assert len(lines) == 3
    assert named(pd.read_csv(tmp_path / "rows" / "iterative.csv"))["name"].tolist() == ["cka", "family_rank_sum"]


def test_collected_rows_name_no_path_of_a_machine(tmp_path):
    (tmp_path / "results.csv").write_text(
        "run_id,status,overrides,criterion,aggregation,ratio,seed,run_dir\n"
        "a,done,dataset.root=/data/x model.weights=/w/r.pt seed=0,cka,rank_sum,0.5,0,/data/out/runs/a\n"
    )
    collect(tmp_path, tmp_path / "rows")
    assert pd.read_csv(tmp_path / "rows" / "iterative.csv")["overrides"].tolist() == ["model.weights=r.pt seed=0"]


def test_no_committed_row_names_a_path_of_a_machine():
    files = sorted((ROOT / "docs").rglob("*.csv"))
    assert len(files) >= 7
    for file in files:
        # A packed answer in base 64 has slashes, too, but none behind a blank or a sign.
        assert not re.findall(r"(?:^|[\s='\",])(?:~|[A-Za-z]:)?[/\\]\w[^,]*", file.read_text(), re.MULTILINE), file
