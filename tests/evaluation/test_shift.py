"""Published test images: every form is read, every defect is reported, and the columns are those worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.evaluation_networks import Brightness, Fixed
from helpers.quick import QUICK
from helpers.shift_archives import cifar_c, flat, imagenet_c
from torchvision.io import write_png

from consensus_cli.cli.main import main
from consensus_cli.data.memory import ImageTensors
from consensus_cli.errors import UserError
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.shift import open_archive, shift_columns

LABELS = np.array([0, 0, 1, 1])
#: four images a severity: with each, one more image of class 0 becomes bright
LEVELS = np.array([[10, 20, 200, 210], [10, 130, 200, 210], [140, 130, 200, 210], [140, 130, 200, 210], [0, 0, 0, 0]])


def columns(name, path, base, pruned, *, image_size=8, images=None, progress=None):
    test = ImageTensors(torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8), torch.arange(2))
    return shift_columns(Pair(base, pruned, test, progress=progress), name, open_archive(name, path), images)


def test_cifar_c_has_a_column_per_severity_and_the_mean(tmp_path):
    folder, seen = cifar_c(tmp_path / "c", LABELS, LEVELS, ("fog", "snow")), []
    constant = Fixed(torch.tensor([1.0, 0.0]))
    row = columns("c10", folder, Brightness(), constant, progress=lambda *step: seen.append(step))
    base = [100, 75, 50, 50, 50]
    assert [row[f"c10_fog_s{severity}_base_pct"] for severity in range(1, 6)] == base
    assert [row[f"c10_snow_s{severity}_pruned_pct"] for severity in range(1, 6)] == [50] * 5
    assert (row["c10_accuracy_base_pct"], row["c10_accuracy_pruned_pct"]) == (65, 50)
    assert row["c10_accuracy_delta_pp"] == -15
    assert row["c10_accuracy_ci95_low"] <= -15 <= row["c10_accuracy_ci95_high"]
    assert row["c10_images"] == 2 * 5 * 4
    assert seen[-1] == ("testing on c10", 10, 10)


def test_a_set_may_be_shown_in_part(tmp_path):
    row = columns("c10", cifar_c(tmp_path / "c", LABELS, LEVELS), Brightness(), Brightness(), images=2)
    assert row["c10_images"] == 5 * 2
    assert row["c10_fog_s1_base_pct"] == 100
    assert (row["c10_accuracy_ci95_low"], row["c10_accuracy_ci95_high"]) == (0, 0)


def test_test_sets_collected_anew_are_one_set_each(tmp_path):
    images = flat(np.array([10, 200, 140, 210]))
    np.save(tmp_path / "cifar10.1_v6_data.npy", images)
    np.save(tmp_path / "cifar10.1_v6_labels.npy", LABELS.astype(np.int32))
    np.savez(tmp_path / "cifar102_test.npz", images=images, labels=LABELS)
    for path in (tmp_path / "cifar10.1_v6_data.npy", tmp_path / "cifar102_test.npz"):
        row = columns("anew", path, Brightness(), Brightness(threshold=0.6))
        assert row == {
            "anew_accuracy_base_pct": 75,
            "anew_accuracy_pruned_pct": 50,
            "anew_accuracy_delta_pp": -25,
            "anew_images": 4,
            "anew_accuracy_ci95_low": pytest.approx(-75, abs=26),
            "anew_accuracy_ci95_high": 0,
        }


def test_imagenet_c_is_read_in_the_order_of_its_class_folders(tmp_path):
    folder = imagenet_c(tmp_path / "c", {"n01": 1, "n02": 2}, ("fog", "snow"))
    row = columns("inc", folder, Brightness(), Fixed(torch.tensor([0.0, 1.0])), image_size=64)
    assert (row["inc_fog_s3_base_pct"], row["inc_snow_s3_pruned_pct"]) == (100, pytest.approx(200 / 3))
    assert row["inc_accuracy_delta_pp"] == pytest.approx(-100 / 3)
    assert row["inc_images"] == 6
    assert "inc_accuracy_ci95_low" in row


def test_there_is_no_interval_where_sets_hold_other_images(tmp_path):
    folder = imagenet_c(tmp_path / "c", {"n01": 1, "n02": 2}, ("fog",))
    imagenet_c(folder, {"n01": 2, "n02": 1}, ("snow",))
    row = columns("inc", folder, Brightness(), Brightness(), image_size=64)
    assert row["inc_accuracy_delta_pp"] == 0
    assert not any("ci95" in name for name in row)


@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("c10", "nowhere", "there is nothing at"),
        ("C-10", "cifar", "cannot begin a column's name"),
        ("c10", "lonely", "holds no corrupted images"),
        ("c10", "four_labels", "holds 4 labels"),
        ("c10", "sizes", "images of 2 sizes"),
        ("c10", "planes", r"holds images of shape \(5, 3, 2, 2\)"),
        ("c10", "torn", "cannot be read as an array"),
        ("c10", "pair_data.npy", "pair_labels.npy cannot be read"),
        ("c10", "whole_data.npy", "with labels of shape"),
        ("c10", "cifar/labels.npy", "holds images of shape"),
        ("c10", "text.npz", "not an archive of images and labels"),
        ("c10", "empty_tree", "holds 0 different sets of classes"),
        ("c10", "uneven_tree", "holds 2 different sets of classes"),
        ("c10", "hollow_tree", "there are no images in"),
    ],
)
def test_defects_are_reported(tmp_path, name, path, message):
    cifar_c(tmp_path / "cifar", LABELS, LEVELS)
    for folder, labels, images in (
        ("lonely", 5, {}),
        ("four_labels", 4, {"fog": flat(np.zeros(4))}),
        ("sizes", 5, {"fog": flat(np.zeros(5)), "snow": flat(np.zeros(5), 16)}),
        ("planes", 5, {"fog": np.zeros((5, 3, 2, 2), np.uint8)}),
    ):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "labels.npy", np.zeros(labels, np.uint8))
        for corruption, array in images.items():
            np.save(tmp_path / folder / f"{corruption}.npy", array)
    cifar_c(tmp_path / "torn", LABELS, LEVELS)
    (tmp_path / "torn" / "fog.npy").write_bytes(b"\x93NUMPY")
    np.save(tmp_path / "pair_data.npy", flat(np.zeros(3)))
    np.save(tmp_path / "whole_data.npy", flat(np.zeros(3)))
    np.save(tmp_path / "whole_labels.npy", np.zeros(4, np.int64))
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty_tree").mkdir()
    imagenet_c(imagenet_c(tmp_path / "uneven_tree", {"n01": 1}), {"n01": 1, "n02": 1}, ("snow",))
    imagenet_c(tmp_path / "hollow_tree", {"n01": 0, "n02": 0})
    with pytest.raises(UserError, match=message) as caught:
        open_archive(name, tmp_path / path)
    assert caught.value.hint


def test_images_that_do_not_suit_the_network_are_refused(tmp_path):
    arrays = open_archive("c10", cifar_c(tmp_path / "c", LABELS, LEVELS))
    files = open_archive("inc", imagenet_c(tmp_path / "i", {"n01": 1, "n02": 1}))
    arrays.check_fits((3, 8, 8), 2)
    arrays.check_fits((3, 8, 8), 10)
    files.check_fits((3, 224, 224), 2)
    for archive, shape, classes in ((arrays, (1, 8, 8), 10), (arrays, (3, 8, 8), 1), (files, (3, 64, 64), 3)):
        with pytest.raises(UserError, match=f"dataset's images are {shape[0]}×.* of {classes} classes"):
            archive.check_fits(shape, classes)
    with pytest.raises(UserError, match="colour images of 2 classes"):
        files.check_fits((1, 64, 64), 2)


def dark_and_bright(root: Path) -> Path:
    """An image folder of two classes, 16×16 and grey."""
    for part, count in (("train", 40), ("test", 10)):
        for label, name in enumerate(("bright", "dark")):
            folder = root / part / name
            folder.mkdir(parents=True)
            for number in range(count):
                level = (200, 40)[label] + number
                write_png(torch.full((3, 16, 16), level, dtype=torch.uint8), str(folder / f"{number}.png"))
    return root


@pytest.mark.slow
def test_a_run_has_columns_for_each_archive(tmp_path):
    np.savez(tmp_path / "new.npz", images=flat(np.array([190, 30, 20, 210]), 16), labels=np.array([0, 1, 1, 0]))
    words = ["dataset=imagefolder", f"dataset.root={dark_and_bright(tmp_path / 'images')}", "dataset.image_size=16"]
    words += ["criterion=first", "finetune=none", "attacks=none", "ratio=0.17", "metrics.samples_per_class=8"]
    words += [f"evaluate.shift.new={tmp_path / 'new.npz'}", f"output_dir={tmp_path / 'outputs'}"]
    assert main(["run", *QUICK, *words]) == 0
    row = pd.read_csv(tmp_path / "outputs" / "results.csv").iloc[-1]
    assert row["new_images"] == 4
    assert row["new_accuracy_delta_pp"] == row["new_accuracy_pruned_pct"] - row["new_accuracy_base_pct"]
    assert row["new_accuracy_ci95_low"] <= row["new_accuracy_delta_pp"] <= row["new_accuracy_ci95_high"]
