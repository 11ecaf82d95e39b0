"""Representations of a network and of the network without each candidate block, in one pass.

Removing a block changes nothing before it. So the network runs once: at every candidate the images fork into one more
stream, which takes the block's shortcut, and all streams go on together as one larger batch. A block at depth p of the
network costs the share 1 − p of a forward pass, about half a pass per candidate instead of a whole one.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack

import torch
from torch import Tensor, nn

from consensus_cli.errors import UserError, unknown_name
from consensus_cli.pruning.blocks import Block
from consensus_cli.pruning.surgery import bypassed
from consensus_cli.scoring.folding import fold_batch_norms
from consensus_cli.torch_modes import evaluating

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}

PROBE_IMAGES = 3

#: Largest relative difference between two ways to the same features: rounding, TF32 included, stays far below.
PROBE_TOLERANCE = 1e-3

#: Tensors of the largest size that live at once: a block's input, its output, a temporary and the forked batch.
LIVE_TENSORS = 4

#: More images at once do not make a pass faster, on CPU or GPU.
MAX_BATCH_SIZE = 1024

#: On a CPU a pass is fastest while the largest tensor of all streams stays in the cache nearest to the cores.
CACHE_BYTES = 4 * 2**20


class AblationEngine:
    """Computes the representations of a network and of the network without each candidate block.

    The representation is the input of the classifier, the last linear layer that the network executes. The engine
    works on a copy of the network, in eval mode and with batch norms folded into convolutions, so the network itself
    is never touched. On construction a few random images go through both ways; where one pass over the network does
    not give what one bypassed forward per candidate gives (blocks that do not lie one after the other), the engine
    takes the slow way.

    Attributes:
        candidates: names of the c candidate blocks, in the order of the rows.
        features: length d of a representation.
        one_pass: whether one pass over the network serves all candidates.
        batch_size: images per call of `representations` that keep it within the memory budget.

    Args:
        network: takes images as `example`; left as it is.
        blocks: the candidates; removable blocks of `network`.
        example: (n, c, h, w) or other images as the network takes them; only shape, type and device matter.
        precision: `fp32`, or `bf16` for autocast to bfloat16, whose 8 bits of mantissa change close ranks.
        memory_gb: budget for the activations in GiB.

    Raises:
        UserError: unknown precision, or a network without a linear classifier.
    """

    def __init__(
        self,
        network: nn.Module,
        blocks: Sequence[Block],
        example: Tensor,
        *,
        precision: str = "fp32",
        memory_gb: float = 2.0,
    ) -> None:
        if precision not in PRECISIONS:
            raise unknown_name("precision", precision, PRECISIONS)
        self.candidates = tuple(block.name for block in blocks)
        self._blocks = tuple(blocks)
        self._dtype = PRECISIONS[precision]
        self._channels_last = example.ndim == 4
        probe = torch.rand((PROBE_IMAGES, *example.shape[1:]), generator=torch.Generator().manual_seed(0))
        probe = self._laid_out(probe.to(example))
        self._network, self._classifier = _scoring_copy(network, probe)
        with torch.inference_mode():
            expected = self._bypassing(probe)
            self.one_pass = self._one_pass_gives(expected, probe)
            self.features = expected.shape[-1]
            bytes_per_image = self._largest_tensor_bytes(probe) / PROBE_IMAGES
        result_bytes = expected[:, 0].numel() * expected.element_size()
        budget = memory_gb * 2**30 / (LIVE_TENSORS * bytes_per_image + LIVE_TENSORS * result_bytes)
        self.batch_size = int(min(max(budget, 1), MAX_BATCH_SIZE))
        in_cache = int(CACHE_BYTES / bytes_per_image) if example.device.type == "cpu" else self.batch_size
        self._images_per_pass = min(max(in_cache, 1), self.batch_size)

    def representations(self, images: Tensor) -> Tensor:
        """Returns (1 + c, b, d) float32: row 0 of the network, row 1 + j of the network without candidate j.

        Args:
            images: (b, ...) as the network takes them, any number.
        """
        result = torch.empty(1 + len(self.candidates), len(images), self.features, device=images.device)
        forward = self._forking if self.one_pass else self._bypassing
        images = self._laid_out(images)
        with (
            torch.inference_mode(),
            torch.autocast(images.device.type, self._dtype, enabled=self._dtype != torch.float32),
        ):
            for start in range(0, len(images), self._images_per_pass):
                chunk = slice(start, start + self._images_per_pass)
                result[:, chunk] = forward(images[chunk])
        return result

    def _forking(self, images: Tensor) -> Tensor:
        """One pass: each candidate appends the stream that skips it."""
        forks: list[str] = []

        def fork(name: str, x: Tensor, output: Tensor) -> Tensor:
            forks.append(name)
            return torch.cat([output, x[: len(images)]])

        with ExitStack() as hooks:
            for name in self.candidates:
                block = self._network.get_submodule(name)
                hooks.enter_context(block.register_forward_hook(lambda _m, args, out, n=name: fork(n, args[0], out)))
            streams = self._representation(images).unflatten(0, (1 + len(self.candidates), len(images)))
        return streams[[0, *(1 + forks.index(name) for name in self.candidates)]]

    def _bypassing(self, images: Tensor) -> Tensor:
        """One forward pass per candidate, which goes around it."""
        rows = [self._representation(images)]
        for block in self._blocks:
            with bypassed(self._network, block):
                rows.append(self._representation(images))
        return torch.stack(rows)

    def _representation(self, images: Tensor) -> Tensor:
        return _classifier_input(self._network, self._classifier, images)

    def _one_pass_gives(self, expected: Tensor, images: Tensor) -> bool:
        try:
            return _same(self._forking(images), expected)
        except (RuntimeError, ValueError, TypeError, AttributeError, IndexError, AssertionError):
            # Whatever code of the network's the streams upset, the other way has just worked.
            return False

    def _largest_tensor_bytes(self, images: Tensor) -> int:
        """Returns the size of the largest tensor that a module puts out in the pass that the engine will run."""
        largest = 0

        def note_size(_module: nn.Module, _args: object, output: object) -> None:
            nonlocal largest
            if isinstance(output, Tensor):
                largest = max(largest, output.numel() * output.element_size())

        with ExitStack() as hooks:
            for module in self._network.modules():
                hooks.enter_context(module.register_forward_hook(note_size))
            (self._forking if self.one_pass else self._representation)(images)
        return largest

    def _laid_out(self, images: Tensor) -> Tensor:
        return images.contiguous(memory_format=torch.channels_last) if self._channels_last else images


def representation_size(network: nn.Module, example: Tensor) -> int:
    """Returns the length d of the input of the classifier.

    Args:
        network: takes images as `example`; left as it is.
        example: (n, c, h, w) or other images as the network takes them.

    Raises:
        UserError: a network without a linear classifier.
    """
    with evaluating(network):
        return _classifier_input(network, _find_classifier(network, example), example).shape[1]


def _scoring_copy(network: nn.Module, images: Tensor) -> tuple[nn.Module, str]:
    """Returns a copy made for speed and the name of its classifier."""
    copied = _laid_out_copy(network, images)
    classifier = _find_classifier(copied, images)
    with torch.inference_mode():
        expected = _classifier_input(copied, classifier, images)
    fold_batch_norms(copied, images)
    with torch.inference_mode():
        same = _same(_classifier_input(copied, classifier, images), expected)
    return (copied if same else _laid_out_copy(network, images)), classifier


def _laid_out_copy(network: nn.Module, images: Tensor) -> nn.Module:
    copied = copy.deepcopy(network).eval()
    return copied.to(memory_format=torch.channels_last) if images.ndim == 4 else copied


def _find_classifier(network: nn.Module, images: Tensor) -> str:
    """Returns the name of the last linear layer that the network executes."""
    executed: list[str] = []
    # No inference mode: what a network keeps of its first forward pass must serve training, too.
    with ExitStack() as hooks, torch.no_grad():
        for name, module in network.named_modules():
            if isinstance(module, nn.Linear):
                hooks.enter_context(module.register_forward_hook(lambda _m, _a, _o, name=name: executed.append(name)))
        network(images)
    if not executed:
        raise UserError(
            f"{type(network).__name__} has no linear classifier",
            "scoring compares the inputs of the last nn.Linear that the network executes",
        )
    return executed[-1]


def _classifier_input(network: nn.Module, classifier: str, images: Tensor) -> Tensor:
    """Returns what the classifier gets, (b, d)."""
    inputs: list[Tensor] = []
    with network.get_submodule(classifier).register_forward_pre_hook(lambda _m, args: inputs.append(args[0])):
        network(images)
    return inputs[-1].flatten(1)


def _same(features: Tensor, expected: Tensor) -> bool:
    return features.shape == expected.shape and bool(
        (features - expected).abs().max() <= PROBE_TOLERANCE * expected.abs().max()
    )
