"""The screens: what each shows of the same run, and that a terminal is left as it was found."""

from __future__ import annotations

import io
import json
import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import pandas as pd
import pytest
from helpers.quick import QUICK
from rich.console import Console

from consensus_cli.cli.main import main
from consensus_cli.screen import Screen, events, open_screen
from consensus_cli.screen.json_lines import JsonScreen
from consensus_cli.screen.live import BLOCK, LiveScreen, TimePlan, View
from consensus_cli.screen.plain import QuietScreen

SHOW_CURSOR, HIDE_CURSOR = "\x1b[?25h", "\x1b[?25l"
STARTED = events.Started(
    version="1", run_dir="outputs/runs/a", model="resnet20", dataset="digits", seed=0, criterion="cka",
    metrics=("cka",), train_images=9, test_images=9, image_shape=(1, 16, 16), classes=10,
    class_names=tuple("0123456789"), macs=10**7,
    blocks=("layer1.0", "layer1.1", "layer2.0", "layer2.1"), candidates=("layer1.1", "layer2.1"), removed=(),
    goal="1 of 2 candidate blocks", device="cpu", threads=2, precision="fp32", scoring_precision="fp32",
    planned={"score": 1}, least_s={},
)  # fmt: skip
REMOVED = events.BlockRemoved("layer1.1", 1, 2, importance=8.0, unit="rank sum", next_importance=16.0)


def printed_by(view: View) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(view.render())
    return console.file.getvalue()  # type: ignore[attr-defined]


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=120)


def text_of(console: Console) -> str:
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def written(outputs: Path) -> list[dict[str, object]]:
    """The JSON lines of the second run of the shared outputs."""
    return [json.loads(line) for line in (outputs / "events.jsonl").read_text().splitlines()]


def of_kind(written: list[dict[str, object]], name: str) -> list[dict[str, object]]:
    return [event for event in written if event["event"] == name]


def test_json_lines_hold_the_whole_run(written: list[dict[str, object]], outputs: Path) -> None:
    row = pd.read_csv(outputs / "results.csv").iloc[1]
    assert [written[0]["event"], written[-1]["event"]] == ["started", "ended"]
    assert written[-1]["status"] == "done"
    assert {event["run_id"] for event in written} == {row["run_id"]}
    assert [event["block"] for event in of_kind(written, "removed")] == row["removed_blocks"].split(";")
    assert (of_kind(written, "row")[0]["row"] or {})["accuracy_pruned_pct"] == row["accuracy_pruned_pct"]  # type: ignore[index]
    started = [event["stage"] for event in of_kind(written, "stage_started")]
    assert started == [event["stage"] for event in of_kind(written, "stage_ended")]
    planned = of_kind(written, "started")[0]["planned"]
    assert planned == {stage: started.count(stage) for stage in started}
    # The baseline, three steps, and the last fine-tuning.
    assert len(of_kind(written, "accuracy")) == 5
    assert of_kind(written, "loss")[-1]["step"] == of_kind(written, "loss")[-1]["steps"]


def test_json_scores_are_those_of_the_file(written: list[dict[str, object]], outputs: Path) -> None:
    (first, *_) = of_kind(written, "scores")
    scores = pd.read_csv(outputs / "runs" / str(first["run_id"]) / "scores.csv")
    at_step = scores[scores["step"] == 1]
    assert first["importance"] == at_step.set_index("block")["sum"].groupby(level=0).first().to_dict()
    assert first["order"][0] == of_kind(written, "removed")[0]["block"]  # type: ignore[index]
    assert set(first["ranks"]) == set(at_step["metric"])  # type: ignore[call-overload]


def test_quiet_prints_the_result_and_warnings_only(outputs: Path) -> None:
    shown = (outputs / "quiet.txt").read_text()
    assert "accuracy" in shown
    assert "removed, in order: " in shown
    assert "removed  1" not in shown
    assert "scoring" not in shown
    assert not [line for line in shown.splitlines() if line.startswith(("consensus", "  ", "baseline"))]
    # What was not shown is in the log.
    (first, *_) = sorted((outputs / "runs").iterdir())
    assert "removed  1 of 3" in (first / "run.log").read_text()


def test_every_event_is_in_the_docs_with_its_fields() -> None:
    documented = (Path(__file__).parents[1] / "docs" / "output.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (.*?) \|", documented, re.MULTILINE)
    listed = {name: re.findall(r"`(\w+)`", cells) for name, cells in rows}
    assert listed == {kind.name: [f.name for f in fields(kind)] for kind in events.Event.__subclasses__()}


def test_the_right_screen_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert type(open_screen("json")) is JsonScreen
    assert type(open_screen("quiet")) is QuietScreen
    assert type(open_screen()) is Screen
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert type(open_screen()) is LiveScreen
    assert type(open_screen(alone=False)) is Screen


def test_a_failure_is_the_last_json_line() -> None:
    stream = io.StringIO()

    def fail() -> None:
        with JsonScreen(stream) as screen:
            screen.warning("look out")
            raise ValueError("no\nmore")

    with pytest.raises(ValueError, match="no"):
        fail()
    warned, ended = map(json.loads, stream.getvalue().splitlines())
    assert (warned["event"], warned["text"]) == ("warning", "look out")
    assert (ended["status"], ended["error"]) == ("failed", "ValueError: no more")


def test_json_has_no_nan_and_leaves_most_of_the_progress_out() -> None:
    stream = io.StringIO()
    with JsonScreen(stream) as screen, screen.progress("counting") as report:
        for i in range(1, 1001):
            report("counting", i, 1000)
            screen.show(events.TrainingLoss(float("nan"), i, 1000))
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    counted = [line["done"] for line in lines if line["event"] == "progress"]
    assert (counted[0], counted[-1]) == (1, 1000)
    assert len(counted) < 20
    assert [line["loss"] for line in lines if line["event"] == "loss"] == [None] * len(counted)


def test_the_view_loses_a_block_when_one_goes() -> None:
    view = View()
    view.take(STARTED)
    assert f"{BLOCK * 2} {BLOCK * 2}  4 of 4 blocks" in printed_by(view)
    view.take(REMOVED)
    assert f"{BLOCK} {BLOCK * 2}  3 of 4 blocks" in printed_by(view)


def test_the_view_shows_loss_accuracy_work_and_time() -> None:
    view = View()
    view.take(STARTED)
    view.take(events.TrainingLoss(0.25, 5, 10))
    view.take(events.AccuracyChecked(98.5, 256, "validation"))
    view.begin("fine-tuning")
    view.take(events.Progressed("fine-tuning", 5, 10))
    shown = printed_by(view)
    assert "loss 0.250, accuracy 98.50 % of 256 validation images" in shown
    assert re.search(r"fine-tuning .* 5/10", shown)
    assert "0:00:00 so far, at least 0:00:00 left" in shown
    view.finish()
    assert "fine-tuning" not in printed_by(view)


def test_blocks_are_coloured_by_importance() -> None:
    view = View()
    view.take(STARTED)
    importance = {"layer1.1": 1.0, "layer2.1": 2.0}
    view.take(events.Scored(1, ("layer1.1", "layer2.1"), importance, {"cka": importance}, {"cka": importance}))
    console = Console(file=io.StringIO(), force_terminal=True, width=120, color_system="standard")
    console.print(view.render())
    colours = re.findall(rf"\x1b\[(\d+)m{BLOCK}", text_of(console))
    dim, blue, yellow = "2", "34", "33"
    assert colours == [dim, blue, dim, yellow]


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_the_cursor_comes_back_however_it_ends(error: type[BaseException]) -> None:
    console = terminal()
    before = sys.stdout

    def fail() -> None:
        with LiveScreen(console) as screen:
            screen.show(STARTED)
            with screen.progress("working") as report:
                report("working", 1, 2)
                raise error

    with pytest.raises(error):
        fail()
    shown = text_of(console)
    assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR) >= 0
    assert sys.stdout is before


def test_time_left_counts_what_is_to_come() -> None:
    plan = TimePlan({"score": 3, "finetune": 2, "evaluate": 1}, {"evaluate": 20.0})
    assert plan.left(0.0) == (20.0, False)
    plan.start("score", 0.0)
    plan.end("score", 10.0)
    plan.start("finetune", 10.0)
    plan.end("finetune", 4.0)
    # Two scorings and a fine-tuning as long as the last, and an evaluation of at least 20 s.
    assert plan.left(14.0) == (2 * 10 + 4 + 20, False)
    plan.start("score", 14.0)
    assert plan.left(17.0) == (7 + 10 + 4 + 20, False)
    # A stage that overruns does not eat into the time of those after it.
    assert plan.left(40.0) == (10 + 4 + 20, False)
    plan.end("score", 26.0)
    plan.end("score", 8.0)
    plan.end("finetune", 3.0)
    plan.start("evaluate", 60.0)
    assert plan.left(65.0) == (15, False)
    plan.end("evaluate", 21.0)
    assert plan.left(90.0) == (0, True)


def test_on_a_terminal_scoring_is_live(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leader, follower = os.openpty()
    monkeypatch.setenv("TERM", "xterm")
    with ThreadPoolExecutor(1) as reader:
        reading = reader.submit(read_terminal, leader)
        with os.fdopen(follower, "w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, "stdout", stream)
            words = ["criterion=weight_norm", "baseline.epochs=1", "dataset.limit_train=100"]
            done = main(["score", *QUICK, *words, "metrics.samples_per_class=5", f"output_dir={tmp_path}"])
        shown = reading.result()
    assert done == 0
    assert "9 of 9 blocks" in shown
    assert "whole run" in shown
    assert shown.rfind(SHOW_CURSOR) > shown.rfind(HIDE_CURSOR) >= 0


def read_terminal(leader: int) -> str:
    """Everything that was printed, read at once: a terminal that nobody reads from blocks who writes."""
    read = bytearray()
    while True:
        try:
            read += os.read(leader, 65536)
        except OSError:
            # How Linux reports that the other end is closed.
            os.close(leader)
            return read.decode()


def test_what_other_code_prints_stays_out_of_the_json(capsys: pytest.CaptureFixture[str]) -> None:
    with JsonScreen():
        print("shape of x: (2, 3)")
    print("later")
    printed = capsys.readouterr()
    ended, later = printed.out.splitlines()
    assert (json.loads(ended)["event"], later, printed.err) == ("ended", "later", "shape of x: (2, 3)\n")
