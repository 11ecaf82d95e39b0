"""Image classifiers of transformers: from a folder with weights or a configuration, by labels, through a whole run."""

from __future__ import annotations

import importlib
import json
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from helpers.stopping import in_phase, stop_run
from torch import Tensor
from torchvision.io import read_image, write_png

import consensus_cli
from consensus_cli.cli.main import main
from consensus_cli.config.composition import compose_run
from consensus_cli.errors import UserError
from consensus_cli.experiment.run_hash import run_hash
from consensus_cli.models import hf, hub, pretrained, zoo
from consensus_cli.models.spec import ModelSpec

transformers: Any = pytest.importorskip("transformers", reason="transformers is an extra")

CLASSES = ("ant", "bee", "great white shark")
TRANSFORMER = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32}
PATCHES = {"image_size": 32, "patch_size": 8}
STAGES = {"hidden_sizes": [8, 16, 16, 16], "depths": [2, 2, 3, 2]}
WINDOWS = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 4], "num_heads": [2, 2], "window_size": 4}

#: class of a configuration, its values -> how many of its blocks can go, counted by hand: the first of a stage stays
NETWORKS: dict[str, tuple[str, dict[str, Any], int]] = {
    "vit": ("ViTConfig", TRANSFORMER | PATCHES, 3),
    "deit": ("DeiTConfig", TRANSFORMER | PATCHES, 3),
    "distilled": (
        "DeiTConfig",
        TRANSFORMER | PATCHES | {"architectures": ["DeiTForImageClassificationWithTeacher"]},
        3,
    ),
    "beit": ("BeitConfig", TRANSFORMER | PATCHES | {"use_relative_position_bias": True}, 3),
    "beit_shared": ("BeitConfig", TRANSFORMER | PATCHES | {"use_shared_relative_position_bias": True}, 3),
    "swin": ("SwinConfig", WINDOWS, 4),
    "swinv2": ("Swinv2Config", WINDOWS, 4),
    "convnext": ("ConvNextConfig", STAGES, 5),
    "resnet": ("ResNetConfig", STAGES | {"embedding_size": 8, "layer_type": "basic"}, 5),
    "mobilenet_v2": ("MobileNetV2Config", {"image_size": 32, "depth_multiplier": 0.25}, 10),
    "segformer": (
        "SegformerConfig",
        STAGES | {"num_attention_heads": [1, 2, 2, 2], "decoder_hidden_size": 16},
        5,
    ),
}


def configured(name: str, labels: tuple[str, ...] = CLASSES, **values: Any) -> Any:
    kind, arguments, _ = NETWORKS[name]
    numbered = dict(enumerate(labels))
    return getattr(transformers, kind)(
        **(arguments | values), id2label=numbered, label2id={label: i for i, label in numbered.items()}
    )


def saved(folder: Path, name: str = "vit", labels: tuple[str, ...] = CLASSES, **values: Any) -> Any:
    """Writes a network with random weights and its image processor into a folder."""
    torch.manual_seed(0)
    network = transformers.AutoModelForImageClassification.from_config(configured(name, labels, **values))
    network.save_pretrained(folder)
    processor(folder)
    return network.eval()


def processor(folder: Path, **values: Any) -> Any:
    given = {"size": {"height": 32, "width": 32}, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.25, 0.3]} | values
    made = transformers.ViTImageProcessor(**given)
    made.save_pretrained(folder)
    return made


def loaded(folder: Path, classes: tuple[str, ...], *, reset_head: bool = False) -> tuple[Any, list[str]]:
    """Returns what `model=hf model.name=FOLDER` makes for images of some classes, and what is said of it."""
    known = hf.normalization(str(folder))
    assert known is not None
    mean, std = map(list, known)
    spec = ModelSpec("hf", str(folder), "pretrained", reset_head, num_classes=len(classes), mean=mean, std=std)
    spec.kwargs = zoo.arguments(spec)
    model = zoo.build(spec, 3).eval()
    given = pretrained.load_weights(model.network, spec, 3, classes)
    return model, given.notes


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes that differ in colour, in an order of names that is not the networks'."""
    root, draw = tmp_path_factory.mktemp("images"), torch.Generator().manual_seed(0)
    for part, count in (("train", 16), ("test", 8)):
        for number, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            colour = torch.eye(3)[number].view(3, 1, 1) / 2
            for i in range(count):
                pixels = torch.rand(3, 40, 40, generator=draw) / 2 + colour
                write_png((255 * pixels).byte(), str(root / part / name / f"{i}.png"))
    return root


def words(folder: Path, images: Path, output: Path) -> list[str]:
    return [
        *("experiment=smoke", "model=hf", f"model.name={folder}"),
        *("dataset=imagefolder", f"dataset.root={images}", f"output_dir={output}", "dataset.workers=0"),
        *("attacks=none", "metrics=fast", "metrics.samples_per_class=8", "finetune=none", "ratio=0.5", "prune.step=1"),
        *("evaluate.energy_window_s=0.01", "evaluate.latency_min_run_s=0.01", "evaluate.batch_sizes=[1]"),
    ]


def test_images_reach_the_network_as_its_own_processor_makes_them(tmp_path: Path) -> None:
    network = saved(tmp_path)
    model, notes = loaded(tmp_path, CLASSES)
    pixels = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    for values in ({}, {"rescale_factor": 1 / 127.5}, {"do_normalize": False}, {"do_rescale": False}):
        own: Tensor = processor(tmp_path, **values)(list(pixels), return_tensors="pt")["pixel_values"]
        model, notes = loaded(tmp_path, CLASSES)
        assert notes == []
        torch.testing.assert_close(model.inputs(pixels / 255), own)
    with torch.no_grad():
        torch.testing.assert_close(model(pixels / 255), network(own).logits)


@pytest.mark.parametrize(
    ("values", "size"),
    [
        ({}, 32),
        ({"size": {"shortest_edge": 48}}, 48),
        ({"size": {"shortest_edge": 48}, "do_center_crop": True, "crop_size": {"height": 40, "width": 40}}, 40),
        ({"size": {"shortest_edge": 48}, "do_center_crop": False, "crop_size": {"height": 40, "width": 40}}, 48),
    ],
)
def test_the_size_of_images_is_the_processors(tmp_path: Path, values: dict[str, Any], size: int) -> None:
    configured("vit").save_pretrained(tmp_path)
    assert hf.image_size(str(tmp_path), {}) == 32
    assert hf.normalization(str(tmp_path)) is None
    processor(tmp_path, **values)
    assert hf.image_size(str(tmp_path), {}) == size
    assert hf.image_size(str(tmp_path), {"image_size": 64}) == 64


@pytest.mark.parametrize("name", ["vit", "distilled", "convnext"])
@pytest.mark.parametrize(
    "labels",
    [
        ("bee", "Great_White-Shark", "ant"),
        ("crane, bird", "bee", "ant, emmet, pismire", "crane, machine", "great white shark, white shark", "tench"),
    ],
)
def test_rows_of_the_head_are_put_into_the_order_of_the_classes_by_name(
    tmp_path: Path, name: str, labels: tuple[str, ...]
) -> None:
    network = saved(tmp_path, name, labels)
    model, notes = loaded(tmp_path, CLASSES)
    others = " of 6" if len(labels) == 6 else ""
    assert notes == [f"{tmp_path}: its 3{others} labels are put into the order of the classes, by name"]
    order = [next(i for i, label in enumerate(labels) if word in label) for word in ("ant", "bee", "hark")]
    batch = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(batch), network(model.inputs(batch)).logits[:, order])


def test_labels_of_other_names_are_taken_in_their_order_and_said(tmp_path: Path) -> None:
    network = saved(tmp_path, labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    model, (note,) = loaded(tmp_path, CLASSES)
    assert "its labels (LABEL_0, LABEL_1, LABEL_2) are not the names of the classes (ant, bee, great white" in note
    assert torch.equal(model.network.classifier.weight, network.classifier.weight)


def test_another_number_of_labels_needs_a_fresh_head(tmp_path: Path) -> None:
    network = saved(tmp_path, labels=("a", "b", "c", "d"))
    with pytest.raises(
        UserError, match=r"but for its head: classifier.weight \(4, 16\) instead of \(3, 16\)"
    ) as caught:
        loaded(tmp_path, CLASSES)
    assert "model.reset_head=true" in caught.value.hint
    model, (note,) = loaded(tmp_path, CLASSES, reset_head=True)
    assert "the head starts fresh" in note
    assert torch.equal(model.network.vit.layernorm.weight, network.vit.layernorm.weight)


def test_outputs_that_were_asked_for_by_number_stay_as_they_are(tmp_path: Path) -> None:
    network = saved(tmp_path, labels=("bee", "other", "great white shark", "ant"))
    spec = ModelSpec("hf", str(tmp_path), "pretrained", num_classes=4, kwargs=hf.arguments(str(tmp_path), {}))
    built = zoo.build(spec, 3).network
    assert pretrained.load_weights(built, spec, 3, CLASSES).notes == []
    assert torch.equal(built.classifier.weight, network.classifier.weight)


def test_a_backbone_without_a_head_needs_a_fresh_one(tmp_path: Path) -> None:
    transformers.ViTModel(configured("vit"), add_pooling_layer=False).save_pretrained(tmp_path)
    processor(tmp_path)
    with pytest.raises(UserError, match=r"but for its head: classifier.weight is missing"):
        loaded(tmp_path, CLASSES)


@pytest.mark.parametrize("name", NETWORKS)
def test_blocks_of_every_kind_are_found(name: str, tmp_path: Path) -> None:
    configured(name).save_pretrained(tmp_path)
    spec = ModelSpec("hf", str(tmp_path), num_classes=3, kwargs=hf.arguments(str(tmp_path), {}))
    torch.manual_seed(0)
    model = zoo.build(spec, 3).eval()
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 3)
    blocks = consensus_cli.find_blocks(model, torch.rand(2, 3, 32, 32))
    assert sum(block.removable for block in blocks) == NETWORKS[name][2]


@pytest.mark.parametrize("name", ["vit", "swin", "resnet"])
def test_a_whole_run_and_its_network_without_the_folder_it_came_from(name: str, tmp_path: Path, images: Path) -> None:
    saved(tmp_path / "network", name, ("bee", "ant", "great white shark"))
    assert main(["run", *words(tmp_path / "network", images, tmp_path / "out")]) == 0
    row = pd.read_csv(tmp_path / "out" / "results.csv").iloc[0]
    shutil.rmtree(tmp_path / "network")
    model = consensus_cli.load_pruned(row["run_dir"])
    assert model.classes == CLASSES
    assert sum(parameter.numel() for parameter in model.parameters()) == row["params_pruned"] < row["params_base"]
    assert model(torch.rand(2, 3, 32, 32)).shape == (2, 3)


@pytest.mark.parametrize("labels", [("great white shark", "ant", "bee"), ("bee", "Great_White-Shark", "cat", "ant")])
def test_accuracy_is_of_labels_in_another_order_than_the_class_folders(
    tmp_path: Path, images: Path, labels: tuple[str, ...]
) -> None:
    network = saved(tmp_path / "network", labels=labels)
    folders = ["great white shark" if "hark" in label else label for label in labels]
    files = {file: folders.index(file.parent.name) for file in sorted(images.glob("t*/*/*.png"))}
    pixels = processor(tmp_path / "network")([read_image(str(file)) for file in files], return_tensors="pt")
    with torch.no_grad():
        features = network.vit(**pixels).last_hidden_state[:, 0]
        targets = torch.nn.functional.one_hot(torch.tensor([*files.values()]), len(labels)).float()
        # Colours are told apart by what the head is fitted to, not by training.
        network.classifier.weight.copy_(torch.linalg.lstsq(features, targets - 0.5).solution.T)
        assert (network(**pixels).logits.argmax(1) == targets.argmax(1)).all()
    network.save_pretrained(tmp_path / "network")
    assert main(["run", *words(tmp_path / "network", images, tmp_path / "out")]) == 0
    assert pd.read_csv(tmp_path / "out" / "results.csv").iloc[0]["accuracy_base_pct"] == 100


def test_a_configuration_alone_is_trained(tmp_path: Path, images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configured("vit", ("one", "two")).save_pretrained(tmp_path / "network")
    line = ["run", *words(tmp_path / "network", images, tmp_path / "out")]
    assert main(line) == 2
    assert "is a folder; it holds config.json" in capsys.readouterr().err
    assert main([*line, "model.weights=null", "baseline.epochs=1", "model.kwargs={num_hidden_layers: 3}"]) == 0
    row = pd.read_csv(tmp_path / "out" / "results.csv").iloc[0]
    assert (row["blocks_candidates"], row["baseline_s"] > 0) == (2, True)


def test_a_run_goes_on_in_another_folder_and_not_with_another_network(
    tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "network")
    monkeypatch.chdir(tmp_path)
    line = words(Path("network"), images, tmp_path / "out")
    assert stop_run(tmp_path / "out", *line[:-1], when=in_phase("evaluate"), number=signal.SIGTERM)
    (run_dir,) = (tmp_path / "out" / "runs").iterdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    kept = (tmp_path / "network" / "config.json").read_text()
    saved(tmp_path / "network", hidden_dropout_prob=0.1)
    assert main(["resume", str(run_dir)]) == 2
    assert "what model.name names is not what run" in capsys.readouterr().err
    (tmp_path / "network" / "config.json").write_text(kept)
    assert main(["resume", str(run_dir)]) == 0


def test_the_same_folder_elsewhere_is_the_same_run(tmp_path: Path) -> None:
    saved(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    first, second = (compose_run(["model=hf", f"model.name={tmp_path / name}"]) for name in "ab")
    assert run_hash(first) == run_hash(second)


#: what a folder holds -> what is said of it
REFUSED = {
    "nothing": ({}, "has no config.json; it holds nothing"),
    "no JSON": ({"config.json": "{"}, "is not a valid JSON file"),
    "no type": ({"config.json": "{}"}, "Should have a `model_type` key in its config.json"),
    "a language model": ({"config.json": '{"model_type": "bert"}'}, "is of type bert, of which transformers has no"),
    "another library": ({"config.json": '{"model_type": "mine"}'}, "does not recognize this architecture"),
    "wrong values": ({"config.json": '{"model_type": "vit", "hidden_size": "x"}'}, "hidden_size"),
    "code": (
        {
            "config.json": json.dumps({"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}),
            "code.py": "1 / 0",
        },
        "contains custom code",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_folder_without_an_image_classifier_is_one_line(kind: str, tmp_path: Path) -> None:
    files, message = REFUSED[kind]
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as caught:
        zoo.check(ModelSpec("hf", str(tmp_path)))
    assert message in caught.value.message
    assert "\n" not in caught.value.message


def test_names_that_lead_nowhere_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for path in ("./vit", "/vit", "~/no/such", "a/b/c"):
        with pytest.raises(UserError, match="there is no such folder"):
            zoo.check(ModelSpec("hf", path))

    def fail(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub.\nCheck your connection.")

    monkeypatch.setattr(hub, "reachable", lambda: True)
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", fail)
    with pytest.raises(
        UserError, match=r"model.name=google/vit cannot be read: We couldn't connect to the hub.$"
    ) as caught:
        zoo.check(ModelSpec("hf", "google/vit"))
    assert "a folder that holds config.json" in caught.value.hint


def test_without_a_connection_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client of the hub would try for half a minute."""
    constants = importlib.import_module("huggingface_hub").constants
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    before = time.monotonic()
    message = "http://127.0.0.1:9 cannot be reached, and it is not on this machine"
    with pytest.raises(UserError, match=f"model.name=nobody/vit cannot be read: {message}") as caught:
        zoo.check(ModelSpec("hf", "nobody/vit"))
    assert "a folder that holds config.json will do: model.name=PATH" in caught.value.hint
    network = ModelSpec("timm", "resnet18", "pretrained", num_classes=3)
    with pytest.raises(UserError, match=f"weights pretrained of resnet18 cannot be fetched: {message}"):
        pretrained.load_weights(torch.nn.Linear(1, 1), network, 3)
    assert time.monotonic() - before < 15
    assert not constants.HF_HUB_OFFLINE


def test_without_a_connection_what_was_fetched_before_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "models--somebody--vit"
    saved(place / "snapshots" / ("0" * 40))
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0" * 40)
    monkeypatch.setattr(importlib.import_module("huggingface_hub").constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "reachable", lambda: False)
    assert hf.image_size("somebody/vit", {}) == 32
    tensors, _ = hf.published_weights("somebody/vit", hf.arguments("somebody/vit", {})["config"], CLASSES)
    assert tensors["classifier.weight"].shape == (3, 16)


def test_a_value_that_the_configuration_lacks_is_one_line(tmp_path: Path) -> None:
    configured("vit").save_pretrained(tmp_path)
    with pytest.raises(UserError, match="'num_hiden_layers'") as caught:
        hf.arguments(str(tmp_path), {"num_hiden_layers": 2})
    assert "did you mean 'num_hidden_layers'" in caught.value.hint
