"""The page of networks that can be pruned, and the counts by hand that it is checked against."""

from __future__ import annotations

import json
import re
from importlib.metadata import version
from pathlib import Path

import coverage
import pytest
import torch
from packaging.version import Version

from consensus_cli.pruning import candidates, find_blocks

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"

#: by what they have: convolutions, windows of channels-last features, maps between tokens, parameters that blocks share
QUICK = ["timm/cspnext_tiny", "timm/resnetv2_18", "timm/efficientformer_l1", "timm/starnet_s050"]

EVERY = 10


@pytest.fixture(scope="module")
def makers():
    return {name: make for family in coverage.families().values() for name, make in family.items()}


def need(makers, name: str) -> None:
    if name not in makers:
        pytest.skip(f"this version of timm has no {name}")


def test_what_was_counted_by_hand_exists(makers) -> None:
    older = Version(version("timm")) < Version("1.0.31")
    assert older or not set(coverage.EXPECTED) - set(makers)
    assert len({name for name, expected in coverage.EXPECTED.items() if any(expected)}) >= 60


@pytest.mark.parametrize("name", QUICK)
def test_candidates_are_those_counted_by_hand(makers, name: str) -> None:
    """On the device meta, where tensors have a shape only."""
    need(makers, name)
    network, size = coverage.built(name, makers[name])
    blocks = find_blocks(network.to("meta"), torch.empty(2, 3, size, size, device="meta"))
    assert len(candidates(blocks)) == coverage.EXPECTED[name][0]


@pytest.mark.parametrize(("name", "size"), [("transformers/vit", 64), ("timm/deepseek_vit_412m", 112)])
def test_images_are_as_small_as_a_network_takes_them(makers, name: str, size: int) -> None:
    need(makers, name)
    assert coverage.built(name, makers[name])[1] == size


def test_a_shortcut_for_a_part_of_the_channels_makes_no_candidate(makers) -> None:
    network, size = coverage.built("timm/rexnet_100", makers["timm/rexnet_100"])
    assert not candidates(find_blocks(network, torch.rand(2, 3, size, size)))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(coverage.EXPECTED)[::EVERY])
def test_a_tenth_of_the_page(makers, name: str) -> None:
    need(makers, name)
    found = coverage.tried(name, makers[name], limit=300)
    assert coverage.verdict(found) == "right", json.dumps(found)
    assert not (found["error"] and any(coverage.EXPECTED[name])), json.dumps(found)
    assert {found.get(key, "yes") for key in ("removal", *coverage.EXPORTS)} == {"yes"}, json.dumps(found)
    for scored in (found[kind] for kind in coverage.SCORED if kind in found):
        assert scored["way"] in coverage.ONE_PASS, json.dumps(found)
        assert 1 < scored["passes"] < scored["in_turn"], json.dumps(found)


def test_the_page_says_when_something_is_wrong() -> None:
    found = {"name": "timm/resnet18", "candidates": 3, "branches": 3, "blocks": 8, "seconds": 1.0}
    assert coverage.verdict(found) == "wrong"
    assert "| no: 4 |" in coverage.row("timm/resnet", found)
    assert coverage.verdict(found | {"candidates": 4}) == "right"
    assert coverage.verdict({"name": "timm/resnet18", "error": "more than 9 s"}) == "wrong"
    assert coverage.verdict({"name": "timm/vgg11", "error": "VGG has no residual blocks"}) == "right"
    assert not coverage.verdict({"name": "timm/unheard_of", "candidates": 3})


def test_the_page_says_how_and_at_what_cost_a_network_is_scored() -> None:
    ways = {"scored": {"way": "forked", "passes": 5.5, "in_turn": 12}, "scored_branches": {"way": "in turn"}}
    ways["scored_branches"] |= {"passes": 23.0, "in_turn": 23}
    found = {"name": "timm/x", "candidates": 11, "branches": 22, "blocks": 12, "seconds": 1.0}
    assert "| forked 5.5 of 12 / in turn 23.0 of 23 |" in coverage.row("timm/vit", found | ways)
    page = coverage.page({"timm/x": "timm/vit", "timm/y": "timm/vit"}, {"timm/x": found | ways, "timm/y": found}, 9)
    assert "One pass scores all blocks in 1 of 1 networks" in page
    assert "others than the blocks, in 0 of 1:" in page
    assert "In turn (0 of 1 and 1 of 1)" in page


def test_what_an_interrupted_run_found_with_the_same_libraries_is_kept(tmp_path: Path) -> None:
    one, other = {"name": "a/b", "versions": coverage.VERSIONS}, {"name": "a/c", "versions": "timm 0.4.12"}
    lines = tmp_path / "networks.jsonl"
    lines.write_text(f'{json.dumps(other)}\n{json.dumps(one)}\n{{"name": "a/d", "ver')
    assert coverage.found_before(lines) == {"a/b": one}
    assert lines.read_text() == f"{json.dumps(other)}\n{json.dumps(one)}\n"


def test_one_pass_scores_the_candidates_of_every_network_on_the_committed_page() -> None:
    ways = re.findall(r"(forked|resumed|in turn) [\d.]+ of \d+", PAGE.read_text())
    assert len(ways) >= 200
    assert "in turn" not in ways


def test_at_least_97_of_100_networks_with_identity_shortcuts_are_right_on_the_committed_page() -> None:
    right, library = {}, ""
    for line in PAGE.read_text().splitlines():
        library = line.removeprefix("## ") if line.startswith("## ") else library
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 8 and any(coverage.EXPECTED.get(f"{library}/{cells[2]}", ())):
            right[f"{library}/{cells[2]}"] = cells[7] == "yes"
    assert len(right) >= 60
    assert sum(right.values()) >= 0.97 * len(right), [name for name, is_right in right.items() if not is_right]
