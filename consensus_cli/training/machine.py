"""What a training makes of the machine: precision, compilation, several processes. All of it is Accelerate's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from consensus_cli.models.classifier import logits_of
from consensus_cli.models.modes import evaluating

if TYPE_CHECKING:
    from accelerate import Accelerator

#: pixels a side from which `auto` compiles on a GPU; between 32, where it does not pay, and 224, the usual size
LEAST_COMPILED_SIZE = 64


def resolve_precision(precision: str, device: torch.device) -> str:
    """Returns `fp32` or `bf16` for `auto`: bf16 where the device computes in it natively, checked, not assumed."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        # Asked of the current GPU, which need not be this one.
        with torch.cuda.device(device):
            return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    # Private: `torch.cpu.get_capabilities`, which says it too, came after PyTorch 2.7.
    native = device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()
    return "bf16" if native else "fp32"


def resolve_compile(compiled: str | bool, device: torch.device, image_shape: Sequence[int]) -> bool:
    """Returns whether to compile for `auto`, True or False: `auto` compiles on a GPU, for images that are not small.

    On a CPU compiling takes tens of seconds, as long as a small network trains between two removals; where epochs take
    minutes, True may pay. On a GPU an update of a small network waits for the processor to start its kernels, and a
    compiled block takes longer to start than its kernels: ResNet56 at 32×32 trained at two thirds of the speed.

    Args:
        compiled: what was asked for.
        device: where the training is.
        image_shape: of one image, (c, h, w).
    """
    if compiled != "auto":
        return bool(compiled)
    return device.type == "cuda" and min(image_shape[1:]) >= LEAST_COMPILED_SIZE


@contextmanager
def accelerated(device: torch.device, precision: str, accumulate_batches: int) -> Iterator[Accelerator]:
    """Yields Accelerate's engine for one training: `fp32` or `bf16`, in updates of so many micro-batches.

    An `Accelerator` of the caller's own is afterwards what it was.
    """
    # Imported here: it takes a quarter of a second, which commands that train nothing need not wait for.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from accelerate.utils import GradientAccumulationPlugin

    # Accelerate keeps its settings for the life of a process; each training has its own. Private: Accelerate has no
    # public way to put them aside.
    states = [state._shared_state for state in (PartialState, AcceleratorState, GradientState)]
    before = [dict(state) for state in states]
    for state in states:
        state.clear()
    try:
        yield Accelerator(
            cpu=device.type == "cpu",
            # Its own choice is the first GPU, whichever the model is on.
            device_placement=False,
            mixed_precision="bf16" if precision == "bf16" else "no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(
                num_steps=accumulate_batches, adjust_scheduler=False, sync_with_dataloader=False
            ),
        )
    finally:
        for state, earlier in zip(states, before, strict=True):
            state.clear()
            state.update(earlier)


def expect_idle_parameters(accelerator: Accelerator, model: nn.Module, images: Tensor) -> None:
    """Lets a joint training go on where some parameters get no gradient, in every process alike.

    Auxiliary heads whose answers are not trained on get none, nor does what served blocks that are gone. Looking for
    them takes time in every update, so it is done where one backward pass, in eval mode, misses some.
    """
    from accelerate.utils import DistributedDataParallelKwargs

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with evaluating(model), torch.enable_grad():
        reached = torch.autograd.grad(logits_of(model(images)).sum(), trained, allow_unused=True)
    if any(gradient is None for gradient in reached):
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)


@contextmanager
def prepared(accelerator: Accelerator, model: nn.Module, *, joint: bool, compiled: bool) -> Iterator[nn.Module]:
    """Yields the model to train: with mixed precision, compiled, and in joint trainings with averaged gradients.

    Afterwards `model` is the plain module again, trained in place. In `joint` trainings every process of the job trains
    it on its share of the images; `compiled` compiles the repeated blocks.
    """
    blocks = repeated_modules(model) if compiled else []
    own = set(vars(model))
    try:
        for block in blocks:
            # Instances of one class share their code: what is compiled for one serves all of its shape, also in the
            # next step, when the network has a block less.
            block.compile()
        yield accelerator.prepare_model(model, evaluation_mode=not joint)
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        # Accelerate puts `forward` back as an attribute of the instance, and marks the model as prepared: the next
        # training of it, or of a copy, would go without mixed precision.
        for left_behind in set(vars(model)) - own:
            del vars(model)[left_behind]
        for block in blocks:
            # Private: PyTorch has no public way to undo `Module.compile`.
            block._compiled_call_impl = None


def repeated_modules(model: nn.Module) -> list[nn.Module]:
    """Returns the children of containers whose class occurs at least twice among their siblings: the blocks."""
    found: list[nn.Module] = []
    for container in model.modules():
        if isinstance(container, nn.Sequential | nn.ModuleList):
            children = [child for child in container if any(True for _ in child.children())]
            classes = Counter(type(child) for child in children)
            found += [child for child in children if classes[type(child)] > 1]
    return found
