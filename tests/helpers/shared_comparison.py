"""Measures two small networks on all processes of a job; rank 0 writes the columns: shared_comparison.py FILE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import distributed

from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Cue
from consensus_cli.data.share import Share
from consensus_cli.evaluation.comparison import compare
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.evaluation.robustness.shift import open_archive, shift_columns
from consensus_cli.evaluation.robustness.shortcut import shortcut_columns
from helpers.evaluation_networks import small_conv_net


def main(file: Path, archive: Path) -> None:
    torch.set_num_threads(1)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world > 1:
        distributed.init_process_group("gloo")
    share = Share(distributed.get_rank(), world) if world > 1 else Share()
    pixels = torch.randint(0, 256, (600, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    test = ImageTensors(pixels, torch.arange(600) % 4)
    original, pruned = small_conv_net(seed=0), small_conv_net(seed=1)
    attacks = {name: Attack(name, eps255=2, steps=10, seed=3) for name in ("pgd", "square", "apgd")}
    columns = compare(
        original, pruned, test, cost=False, attacks=attacks, corruptions=["fog", "shot_noise"], images=500, share=share
    ).columns
    pair = Pair(original, pruned, test, share=share)
    columns |= shift_columns(pair, "c10", open_archive("c10", archive), None)
    columns |= shortcut_columns(pair, test, Cue("patch", size_pct=30), 4)
    small_batches = attack_accuracy(pair, {"pgd": attacks["pgd"]}, images=100, batch_size=7)["pgd"]
    columns |= {f"small_batches_{name}": value for name, value in small_batches.items()}
    columns |= share.lead(lambda: {"lead": share.rank})
    columns.pop("attacks_s")
    every = share.merge(lambda: columns, list)
    if share.leads:
        file.write_text(json.dumps(every))
    if world > 1:
        distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
