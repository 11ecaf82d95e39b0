"""Hints that say how to write a setting: what they show is what Hydra reads as it was meant."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from consensus_cli.cli.main import main
from consensus_cli.config import mistakes, schema
from consensus_cli.config.composition import compose_run
from consensus_cli.config.options import find, keys
from consensus_cli.errors import ConfigError, RunFailedError, UserError
from consensus_cli.experiment import pipeline

NAMES = [
    "~/a (1)",
    "~",
    "été=2024",
    "it's",
    "a'b\"c",
    "[x]{y}",
    "(1)",
    "a, b",
    "a: b (c)",
    "C:\\x (1)\\",
    "\\\\server\\share (d)",
    "tab\there, (x)",
    "100 % (é)",
    "日本/写真",
    "$HOME (1)",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("key", ["evaluate.shift.new", "output_dir"])
def test_the_quoting_that_a_hint_shows_is_read_as_it_was_typed(key: str, name: str) -> None:
    word = f"{key}={name}"
    with pytest.raises(UserError) as told:
        compose_run([word])
    shown = told.value.hint[told.value.hint.index("quote it for Hydra as well: ") :].split(": ", 1)[1]
    (typed,) = shlex.split(shown)
    override = mistakes.parsed(typed)
    assert override is not None
    assert override.value() == name
    found = compose_run([typed])
    read = found.output_dir if key == "output_dir" else found.evaluate.shift["new"]
    assert read == (str(Path(name).expanduser()) if key == "output_dir" else name)


@pytest.mark.parametrize("name", ["007", "1e3", "2024_01", "1_000", "true", "0x10", "+5", "nan"])
def test_a_name_that_looks_like_a_number_stays_as_it_was_typed(name: str) -> None:
    assert compose_run([f"output_dir={name}"]).output_dir == name
    assert compose_run([f"evaluate.shift.new={name}"]).evaluate.shift == {"new": name}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["ratio", "=", "0.5"], "ratio = 0.5"),
        (["ratio", "=0.5", "seed=1"], "ratio =0.5"),
        (["ratio=", "0.5"], "0.5"),
        (["seed=1", "0.5"], "0.5"),
    ],
)
def test_blanks_around_the_equals_sign_are_one_mistake(words: list[str], told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(words)
    (problem,) = caught.value.problems
    assert problem.message == f"cannot read '{told}'"
    assert "without blanks" in problem.hint


def test_words_apart_that_cannot_be_read_are_mistakes_of_their_own() -> None:
    with pytest.raises(ConfigError) as caught:
        compose_run(["model", "seed=1", "ratio==2"])
    assert [problem.message for problem in caught.value.problems] == ["cannot read 'model'", "cannot read 'ratio==2'"]


def test_every_key_has_a_form() -> None:
    for key in keys():
        takes = find(key)
        assert takes is not None, key
        assert takes.words
        assert takes.form
    assert find("nonsense") is None
    assert find("model.name.further") is None


@pytest.mark.parametrize(
    ("override", "environment", "meant"),
    [
        ("ratio=${oc.env:VALUE}", "0.5", 0.5),
        ("ratio=${oc.env:VALUE}", "[0.25, 0.5]", [0.25, 0.5]),
        ("seed=${oc.env:VALUE}", "7", 7),
        ("compile=${oc.env:VALUE}", "true", True),
        ("threads=${oc.env:VALUE}", "2", 2),
        ("output_dir=${oc.env:VALUE}/runs", "a=b (é)", "a=b (é)/runs"),
    ],
)
def test_what_the_environment_gives_is_what_the_key_takes(
    override: str, environment: str, meant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VALUE", environment)
    found = getattr(compose_run([override]), override.partition("=")[0])
    assert found == meant
    assert type(found) is type(meant)


def test_lists_and_settings_come_from_the_environment_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZES", "[1,64]")
    monkeypatch.setenv("WIDTH", "{width: 64}")
    run = compose_run(["evaluate.batch_sizes=${oc.env:SIZES}", "model.kwargs=${oc.env:WIDTH}"])
    assert (run.evaluate.batch_sizes, run.model.kwargs) == ([1, 64], {"width": 64})


@pytest.mark.parametrize("flags", [[], ["-m"]], ids=["a run", "a sweep"])
def test_the_tilde_of_an_output_folder_is_the_home_folder(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def run(asked: schema.RunConfig, *_: object) -> None:
        seen.append(asked.output_dir)
        raise RunFailedError("enough", "")

    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(pipeline, "run", run)
    assert main(["run", *flags, 'output_dir="~/out puts"', "seed=1"]) == 1
    assert seen == [str(tmp_path / "out puts")]
    assert not any((tmp_path / "here").iterdir())


def test_a_mistake_found_late_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: object) -> None:
        raise UserError("the network does not fit", "")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pipeline, "run", run)
    assert main(["run"]) == 2
    assert not any(tmp_path.iterdir())
    assert main(["run", "--quiet", "--cfg", "job"]) == 0
