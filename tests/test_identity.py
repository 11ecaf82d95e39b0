"""A run is never another run's: what it reads counts by content, wherever it lies."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.folders import ON_FOLDER, OWN_NETWORK, make_folder
from helpers.quick import QUICK
from helpers.stopping import after_finetuning, stop_run
from PIL import Image
from safetensors.torch import save_file

from consensus_cli import data
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run, read_config
from consensus_cli.errors import UserError
from consensus_cli.experiment import inputs, pipeline
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.experiment.session import find_earlier
from consensus_cli.models.resnet import resnet
from consensus_cli.screen import Screen
from consensus_cli.storage.identity import Identity, find
from consensus_cli.storage.results import read_rows
from consensus_cli.storage.rundir import RunDir

#: 8 pixels of three channels, as in the folders
SHIFT = {"images": np.zeros((6, 8, 8, 3), np.uint8), "labels": np.arange(6) % 2}


def sweep(*words: str) -> int:
    return main(["run", "-m", *ON_FOLDER, *words])


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_two_folders_are_two_runs_with_a_baseline_each_and_a_copy_is_none(
    streaming: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Alike in everything but the pixels: a network trained on one is always wrong about the other.
    first = make_folder(tmp_path / "a", {"cat": "red", "dog": "blue"})
    second = make_folder(tmp_path / "b", {"cat": "blue", "dog": "red"})
    words = (f"dataset.streaming={streaming}", f"output_dir={tmp_path / 'out'}")
    assert sweep(f"dataset.root={first},{second}", *words) == 0
    rows = read_rows(tmp_path / "out" / "results.csv")
    assert list(rows["status"]) == ["done", "done"]
    assert rows["accuracy_base_pct"].min() > 90
    assert rows["images_hash"].str.fullmatch("[0-9a-f]{16}").all()
    assert rows["images_hash"].nunique() == 2
    assert len(list((tmp_path / "out" / "baselines").glob("*.safetensors"))) == 2

    capsys.readouterr()
    third = shutil.copytree(first, tmp_path / "elsewhere" / "c")
    assert sweep(f"dataset.root={third},{second}", *words) == 0
    assert capsys.readouterr().out.count("is done already") == 2
    assert len(read_rows(tmp_path / "out" / "results.csv")) == 2


def hashes(*words: str) -> dict[str, str]:
    return inputs.load(compose_run([*ON_FOLDER, *words]), Screen()).hashes


def of_folder(root: Path, streaming: str) -> str:
    return hashes(f"dataset.root={root}", f"dataset.streaming={streaming}", f"output_dir={root.parent / 'out'}")[
        "dataset"
    ]


@pytest.mark.parametrize("streaming", ["true", "false"])
def test_images_are_known_by_content_and_not_by_place(streaming: str, tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", {"cat": "red", "dog": "blue"})
    before = of_folder(root, streaming)
    assert of_folder(shutil.copytree(root, tmp_path / "b"), streaming) == before
    picture = root / "cat" / "00.png"
    Image.new("RGB", (8, 8)).save(picture)
    assert of_folder(root, streaming) != before
    shutil.copytree(tmp_path / "b", root, dirs_exist_ok=True)
    assert of_folder(root, streaming) == before
    (root / "cat").rename(root / "cow")
    assert of_folder(root, streaming) != before


def test_shifted_images_count_by_content(tmp_path: Path) -> None:
    root = make_folder(tmp_path / "a", {"cat": "red", "dog": "blue"})

    def of(path: Path) -> tuple[dict[str, str], str]:
        words = (f"dataset.root={root}", f"evaluate.shift.x={path}", f"output_dir={tmp_path / 'out'}")
        return hashes(*words), run_hash(compose_run([*ON_FOLDER, *words]))

    np.savez(tmp_path / "x.npz", **SHIFT)
    shutil.copy(tmp_path / "x.npz", tmp_path / "y.npz")
    assert of(tmp_path / "x.npz") == of(tmp_path / "y.npz")
    np.savez(tmp_path / "y.npz", images=SHIFT["images"] + np.uint8(1), labels=SHIFT["labels"])
    assert of(tmp_path / "x.npz")[0] != of(tmp_path / "y.npz")[0]

    # CIFAR-10.1: two files.
    for name in ("v6_data.npy", "w6_data.npy"):
        np.save(tmp_path / name, SHIFT["images"])
        np.save(tmp_path / name.replace("data", "labels"), SHIFT["labels"])
    assert of(tmp_path / "v6_data.npy") == of(tmp_path / "w6_data.npy")
    np.save(tmp_path / "w6_labels.npy", 1 - SHIFT["labels"])
    assert of(tmp_path / "v6_data.npy")[0] != of(tmp_path / "w6_data.npy")[0]

    # ImageNet-C: a folder of files.
    copies = [tmp_path / "c" / "noise" / "1", tmp_path / "d" / "noise" / "1"]
    make_folder(copies[0], {"cat": "red", "dog": "blue"})
    for picture in copies[0].rglob("*.png"):
        picture.rename(picture.with_suffix(".JPEG"))
    shutil.copytree(copies[0], copies[1])
    assert of(tmp_path / "c") == of(tmp_path / "d")
    (copies[1] / "cat" / "00.JPEG").touch()
    assert of(tmp_path / "c")[0] != of(tmp_path / "d")[0]


@pytest.fixture
def own_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file with a class of the user's, in a folder on the path."""
    file = tmp_path / "own_net_of_identity.py"
    file.write_text(OWN_NETWORK)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    sys.modules.pop(file.stem, None)


def test_an_edited_class_is_another_run_and_another_baseline(own_class: Path, tmp_path: Path) -> None:
    words = [word for word in ON_FOLDER if word != "dataset=imagefolder"]
    words += [
        "dataset.limit_train=100",
        "dataset.limit_test=20",
        "baseline.epochs=0.1",
        f"output_dir={tmp_path / 'out'}",
    ]
    words += ["model=custom", "model.name=own", f"model.target={own_class.stem}.Own"]
    for text, expected in ((OWN_NETWORK, 1), (OWN_NETWORK + "# edited", 2)):
        own_class.write_text(text)
        assert main(["run", *words, "if_done=skip"]) == 0
        assert len(read_rows(tmp_path / "out" / "results.csv")) == expected
        assert len(list((tmp_path / "out" / "baselines").glob("*.safetensors"))) == expected


def test_files_of_the_users_own_that_a_class_imports_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "own_package_of_identity"
    files = {
        "__init__.py": "",
        "net.py": f"import torch, json\nfrom . import widths\nfrom .deep.blocks import RELU\n{OWN_NETWORK}",
        "widths.py": "import own_settings_of_identity as settings\nWIDTHS = settings.WIDTHS",
        "deep/__init__.py": "",
        "deep/blocks.py": "from .. import widths\nfrom ..widths import *\nRELU = True",
        "beside.py": "WIDTHS = [1]",
        "../own_settings_of_identity.py": "WIDTHS = [16]",
    }
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    target = "own_package_of_identity.net.Own"
    known = [inputs.code_hash(target)]
    for name, text in files.items():
        (package / name).write_text(text + "\n# edited")
        known.append(inputs.code_hash(target))
    changed = [before != after for before, after in itertools.pairwise(known)]
    assert changed == [name != "beside.py" for name in files]
    copied = shutil.copytree(package, tmp_path / "elsewhere" / package.name)
    shutil.copy(tmp_path / "own_settings_of_identity.py", copied.parent)
    for name in [name for name in sys.modules if name.startswith("own_")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(copied.parent)
    assert inputs.code_hash(target) == known[-1]


def some_identity(**values: object) -> Identity:
    known: dict[str, object] = {
        "config_hash": "ab" * 32,
        "started_at": "2025-01-31T12:00:00+00:00",
        "overrides": ("x",),
    }
    return Identity(**(known | values))  # type: ignore[arg-type]


def begun(output_dir: Path, name: str, identity: Identity, status: str | None) -> Path:
    folder = RunDir(output_dir / "runs" / name)
    folder.make()
    folder.config.write_text("seed: 0\n")
    identity.write(folder)
    if status is not None:
        folder.write_row({"status": status})
    return folder.path


def test_only_a_run_on_the_same_inputs_is_found(tmp_path: Path) -> None:
    asked = {"dataset": "1" * 64, "model.target": "2" * 64}
    others: list[dict[str, str] | None] = [None, {}, {"dataset": "1" * 64}, asked | {"dataset": "3" * 64}]
    for number, other in enumerate(others):
        begun(tmp_path, f"20250101T00000{number}Z-abababab", some_identity(inputs=other), "done")
    assert find(tmp_path, "ab" * 32, asked) is None
    stopped = begun(tmp_path, "20250101T000010Z-abababab", some_identity(inputs=asked), "interrupted")
    found = find(tmp_path, "ab" * 32, asked)
    assert found is not None
    assert found.path == stopped
    assert find(tmp_path, "ab" * 31 + "cd", asked) is None


def test_runs_of_earlier_versions_keep_their_hash() -> None:
    # Where a setting is new: it changes no result (run_hash._NOT_IN_HASH), or its default is what was before (_LATER).
    words = [*QUICK, "ratio=0.17", "attacks=none", "metrics=[cka]", "evaluate.energy_window_s=0.05", "finetune=none"]
    assert run_hash(compose_run(words)) == "43d351202636ac8992fbb3f29c8b2a8ab5b85e46abc4636959e9d17f1befe0d0"
    assert run_hash(compose_run([*words, "dataset.workers=2", "threads=1"])).startswith("43d35120")
    assert not run_hash(compose_run([*words, "model.reset_head=true"])).startswith("43d35120")


def test_weights_count_by_content_in_however_many_files(tmp_path: Path) -> None:
    def of(path: Path) -> str:
        return run_hash(compose_run([*QUICK, f"model.weights={path}"]))

    for name, value in (("a", 1.0), ("b", 1.0), ("c", 2.0)):
        folder = tmp_path / name
        folder.mkdir()
        shards = {"x": "1-of-2.safetensors", "y": "2-of-2.safetensors"}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
        save_file({"x": torch.ones(1)}, folder / shards["x"])
        save_file({"y": torch.full((1,), value)}, folder / shards["y"])
    assert of(tmp_path / "a") == of(tmp_path / "b") == of(tmp_path / "b" / "model.safetensors.index.json")
    assert of(tmp_path / "a") != of(tmp_path / "c")
    single = tmp_path / "a" / "1-of-2.safetensors"
    assert of(single) == of(shutil.copy(single, tmp_path / "moved.safetensors"))
    save_file({"x": torch.zeros(1)}, tmp_path / "moved.safetensors")
    assert of(single) != of(tmp_path / "moved.safetensors")


def test_an_identity_reads_back_and_an_earlier_version_s_says_that_it_knows_no_inputs(tmp_path: Path) -> None:
    folder = RunDir(begun(tmp_path, "a", some_identity(inputs={"dataset": "0123456789abcdef9"}, folder="/x"), None))
    identity = Identity.read(folder)
    assert identity == some_identity(inputs={"dataset": "0123456789abcdef9"}, folder="/x")
    assert identity.images_hash == "0123456789abcdef"
    old = {
        key: value for key, value in json.loads(folder.identity.read_text()).items() if key not in ("inputs", "folder")
    }
    folder.identity.write_text(json.dumps(old))
    identity = Identity.read(folder)
    assert (identity.inputs, identity.folder, identity.images_hash) == (None, None, None)
    identity.check_inputs({"dataset": "1"}, folder)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a run that was stopped, with relative paths to all it reads."""
    here = tmp_path / "here"
    make_folder(here / "images", {"cat": "red", "dog": "blue"})
    torch.manual_seed(0)
    save_file(resnet(20, num_classes=2).state_dict(), here / "w.safetensors")
    np.savez(here / "x.npz", **SHIFT)
    monkeypatch.chdir(here)
    words = ("dataset.root=images", "model.weights=w.safetensors", "evaluate.shift.x=x.npz", "output_dir=out")
    asked = (*ON_FOLDER, "dataset.streaming=true", *words[:-1])
    assert stop_run(Path("out"), *asked, when=after_finetuning(1), number=signal.SIGTERM) == signal.SIGTERM
    (tmp_path / "away").mkdir()
    monkeypatch.chdir(tmp_path / "away")
    return here


def only_run(place: Path) -> Path:
    return next((place / "out" / "runs").iterdir())


def test_a_run_with_relative_paths_goes_on_from_another_folder(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = only_run(place)
    for name, key in (("images", "dataset.root"), ("w.safetensors", "model.weights"), ("x.npz", "evaluate.shift.x")):
        moved = (place / name).rename(tmp_path / name)
        assert main(["resume", str(run)]) == 2
        assert f"error: {key}={name} is not there; it is relative to '{place}', the folder" in capsys.readouterr().err
        moved.rename(place / name)

    picture = place / "images" / "cat" / "00.png"
    original = shutil.copy2(picture, tmp_path / "00.png")
    Image.new("RGB", (8, 8)).save(picture)
    assert main(["resume", str(run)]) == 2
    said = capsys.readouterr().err
    assert f"error: what dataset names is not what run '{run.name}' began with\nhint: put it back" in said
    shutil.copy2(original, picture)

    assert main(["resume", os.path.relpath(run)]) == 0
    rows = read_rows(place / "out" / "results.csv")
    assert list(rows["status"]) == ["done"]
    assert list((tmp_path / "away").iterdir()) == []
    # And of absolute paths the whole is the same run.
    words = (f"dataset.root={place / 'images'}", f"model.weights={place / 'w.safetensors'}")
    words = (*words, f"evaluate.shift.x={place / 'x.npz'}", f"output_dir={place / 'out'}", "dataset.streaming=true")
    capsys.readouterr()
    assert main(["run", *ON_FOLDER, *words, "if_done=skip"]) == 0
    assert "is done already" in capsys.readouterr().out


def test_a_run_of_an_earlier_version_is_resumed_but_never_taken_for_another(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = only_run(place)
    identity = RunDir(run).identity
    content = json.loads(identity.read_text())
    identity.write_text(json.dumps({key: content[key] for key in ("config_hash", "started_at", "overrides")}))
    assert main(["resume", str(run)]) == 2
    assert (
        "dataset.root=images is not there; it is relative to the folder in which the run began"
        in capsys.readouterr().err
    )
    monkeypatch.chdir(place)
    assert main(["resume", str(run)]) == 0
    assert list(read_rows(place / "out" / "results.csv")["status"]) == ["done"]
    config = read_config(run / "config.yaml")
    assert find_earlier(config, inputs.load(config, Screen()).hashes) is None


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (["dataset=hf", "dataset.name=cats"], "cats"),
        (["model=custom", "model.target=net_of_identity.Net"], "net_of_identity.py"),
    ],
)
def test_what_a_name_found_where_the_run_began_must_be_found_again(
    words: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, away = tmp_path / "began", tmp_path / "away"
    (began / name).mkdir(parents=True)
    away.mkdir()
    config = compose_run([*words, "ratio=0.5"])
    monkeypatch.chdir(began)
    assert inputs.located(config, str(began)) == config
    monkeypatch.chdir(away)
    with pytest.raises(UserError, match=rf"{words[1]} names what is in '{began}', where the run began, and not here"):
        inputs.located(config, str(began))


def test_a_file_with_a_class_is_found_again_and_counts_by_content(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "net.py").write_text(OWN_NETWORK)
    (tmp_path / "other.py").write_text(OWN_NETWORK)
    config, other = (
        compose_run(["model=custom", f"model.target={name}.py:Own", "ratio=0.5"]) for name in ("net", "other")
    )
    assert inputs.located(config, str(tmp_path)).model.target == f"{tmp_path / 'net.py'}:Own"
    assert run_hash(config) == run_hash(other) == run_hash(inputs.located(config, str(tmp_path)))
    monkeypatch.chdir(tmp_path)
    assert inputs.code_hash(config.model.target) == inputs.code_hash(other.model.target)
    (tmp_path / "other.py").write_text(OWN_NETWORK + "\n")
    assert inputs.code_hash(config.model.target) != inputs.code_hash(other.model.target)


def test_images_are_kept_until_others_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, load, kept = [], data.load, {}

    def noted(*words: Any, **more: Any) -> data.ImageData:
        held.append(len(kept))
        return load(*words, **more)

    monkeypatch.setattr(data, "load", noted)
    for limit in (100, 100, 50, 100):
        config = compose_run([*QUICK, f"output_dir={tmp_path}", f"dataset.limit_test={limit}"])
        assert len(inputs.load(config, Screen(), kept).images.test) == limit
    # Two large datasets may not fit into memory together.
    assert held == [0, 0, 0]


def test_runs_of_a_sweep_load_the_same_images_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded, load = [], data.load

    def noted(request: data.Request, *words: Any, **more: Any) -> data.ImageData:
        loaded.append(request.limit_test)
        return load(request, *words, **more)

    monkeypatch.setattr(data, "load", noted)
    monkeypatch.setattr(pipeline, "_line", lambda *_: {})
    words = (*QUICK, f"output_dir={tmp_path}", "ratio=0.17")
    assert main(["run", "-m", *words, "prune.step=1,2"]) == 0
    assert loaded == [100]
    # What a command has loaded is not kept for the next one: files may have changed.
    assert main(["run", *words]) == 0
    assert loaded == [100, 100]
