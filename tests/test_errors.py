"""What is behind an error, and where a command may be started: no home directory, no UTF-8, no reader, no memory."""

from __future__ import annotations

import getpass
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from consensus_cli.cli import fast_imports
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.errors import ConfigError, RunFailedError, UserError, did_you_mean, memory_told, nearest, tell
from consensus_cli.experiment import checks, pipeline, tracking

ROOT = Path(__file__).parents[1]

NETS = """
from torch import nn

class Raises(nn.Module):
    def __init__(self):
        self.width_of(7)

    def width_of(self, width):
        raise ValueError("width must divide by 8")
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "nets_behind.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("place", "command"), [("first", ["list", "blocks"]), ("behind the command", ["score"]), ("last", ["run"])]
)
def test_debug_shows_what_is_behind_an_error(
    place: str, command: list[str], nets: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [*command, "model=custom", "model.target=nets_behind.Raises"]
    words.insert({"first": 0, "behind the command": len(command), "last": len(words)}[place], "--debug")
    assert main(words) == 2
    told = capsys.readouterr().err
    assert 'raise ValueError("width must divide by 8")' in told
    assert "self.width_of(7)" in told
    assert "error: nets_behind.Raises raised ValueError: width must divide by 8" in told
    assert main([word for word in words if word != "--debug"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_runs_of_a_sweep_show_it_too(
    nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        try:
            raise KeyError("behind")
        except KeyError as error:
            raise RunFailedError("it failed", "try again") from error

    monkeypatch.setattr(pipeline, "run", run)
    assert main(["run", "-m", "--debug", "seed=0,1"]) == 1
    told = capsys.readouterr().err
    assert told.count("KeyError: 'behind'") == told.count("error: it failed") == 2


def test_what_from_none_hides_is_shown_once(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        try:
            int("seven")
        except ValueError:
            raise UserError("no number", "write 7") from None
    except UserError as error:
        tell(ConfigError([error, UserError("another", "mend it")]), debug=True)
    told = capsys.readouterr().err
    assert told.count("invalid literal for int") == 1
    assert told.endswith("error: no number\nhint: write 7\nerror: another\nhint: mend it\n")


def test_a_bug_of_ours_keeps_its_traceback_and_the_environment_stays(
    nets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.setattr(pipeline, "run", run)
    with pytest.raises(ZeroDivisionError, match="ours"):
        main(["run"])
    assert "HYDRA_FULL_ERROR" not in os.environ


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_before_a_run_has_begun_is_one_line(
    error: Exception, nets: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(*_: object) -> None:
        raise error

    monkeypatch.setattr(pipeline, "run", run)
    assert main(["run"]) == 1
    assert "error: out of memory\nhint: use smaller images" in capsys.readouterr().err
    with pytest.raises(RuntimeError, match="ours"), memory_told("hint"):
        raise RuntimeError("ours")


@pytest.mark.parametrize("world", ["two", "", "-1", "2.0", "²"])
def test_a_number_of_processes_that_is_none_is_one_line(
    world: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", world)
    assert main(["list", "models"]) == 2
    assert capsys.readouterr().err.startswith(f"error: WORLD_SIZE={world} in the environment is not a number\n")


def test_names_are_meant_whatever_their_case() -> None:
    assert nearest("RESNET57", ["resnet56", "vit"]) == ["resnet56"]
    assert did_you_mean([]) == ""
    assert did_you_mean(["a", "b", "c"]) == "did you mean 'a', 'b' or 'c'? "


def test_a_missing_compiler_is_found_before_the_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    words = [f"output_dir={tmp_path}", "device=cpu"]
    checks.check(compose_run([*words, "compile=auto"]))
    with pytest.raises(UserError, match=r"compile=True needs a C\+\+ compiler"):
        checks.check(compose_run([*words, "compile=true"]))


def test_what_the_images_decide_to_compile_needs_its_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consensus_cli.evaluation.cost.runtime.find_spec", lambda _: None)
    config, gpu = compose_run(["compile=auto"]), torch.device("cuda")
    assert not checks.compiles(config, gpu, (3, 32, 32))
    with pytest.raises(UserError, match="compile=auto needs triton, which is not installed"):
        checks.compiles(config, gpu, (3, 224, 224))


def test_a_tracker_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def start(*_: object) -> None:
        exec("raise LookupError('no account')")

    monkeypatch.setattr(tracking, "_start", start)
    with pytest.raises(UserError, match="no account") as told:
        tracking.Tracker("wandb", tmp_path, {})
    assert "WANDB_MODE=offline" in told.value.hint


def test_a_folder_is_not_a_tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "aim").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(tracking, "TRACKERS", ("none", "aim"))
    with pytest.raises(UserError, match="needs the library aim"):
        tracking.check_tracker("aim")


def test_a_user_without_a_name_and_a_home_gets_both(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unknown(number: int) -> None:
        raise KeyError(number)

    for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(fast_imports.tempfile, "gettempdir", lambda: str(tmp_path))
    fast_imports.fit_environment()
    assert getpass.getuser() == f"uid{os.getuid()}"
    assert Path.home().is_dir()
    assert Path.home().parent == tmp_path
    assert Path.home().stat().st_mode & 0o077 == 0


def test_a_folder_of_somebody_else_is_no_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fast_imports.tempfile, "gettempdir", lambda: str(tmp_path))
    first = fast_imports._own_folder()
    assert fast_imports._own_folder() == first
    first.chmod(0o777)
    assert fast_imports._own_folder() != first


def as_nobody(words: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a command as a user of whom nothing is known, and asks at its end what libraries ask."""
    code = (
        "import getpass, pathlib, pwd, sys\n"
        "def unknown(number): raise KeyError(f'getpwuid(): uid not found: {number}')\n"
        "pwd.getpwuid = unknown\n"
        "from consensus_cli.cli.main import main\n"
        "code = main(sys.argv[1:])\n"
        "assert getpass.getuser() and pathlib.Path.home().is_dir()\n"
        "sys.exit(code)"
    )
    paths = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    temporary = folder / "temporary"
    temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_no_home_and_an_unknown_user_are_no_obstacle(tmp_path: Path) -> None:
    listed = as_nobody(["list", "models"], tmp_path)
    assert (listed.returncode, listed.stderr) == (0, "")
    assert "resnet56" in listed.stdout
    told = as_nobody(["run", 'model.weights="~/nowhere.pt"'], tmp_path)
    assert told.returncode == 2
    assert told.stderr.startswith("error: ")
    assert "nowhere.pt does not exist" in told.stderr


def test_a_terminal_without_our_characters_and_a_reader_that_leaves() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    command = [sys.executable, "-m", "consensus_cli", "--help"]
    plain = subprocess.run(command, capture_output=True, check=False, env=environment)
    assert (plain.returncode, plain.stderr) == (0, b"")
    assert b"\\u2192 prune" in plain.stdout
    reading, writing = os.pipe()
    os.close(reading)
    left = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False, env=environment)
    os.close(writing)
    assert left.returncode == 128 + 13
    assert left.stderr == b""
