"""All that computes runs on a device that is not the CPU, gives what it gives on the CPU, and misses no tensor.

`SecondGPU` notes each place of the package that brings a tensor to the device. What forgets to do so is tried for every
one of these places: it must fail as it would on a GPU.
"""

from __future__ import annotations

import ast
import copy
import functools
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from helpers.image_trees import write_tree
from helpers.keeping import Memory, Stopped, stopping_at
from helpers.loaded_trees import loaded
from helpers.odd_networks import NeedsSize, Plain
from helpers.quick import QUICK
from helpers.second_gpu import CPU, FIRST, SECOND, SecondGPU, Site, place
from torch import Tensor, nn
from torchvision.models import VisionTransformer

import consensus_cli
from consensus_cli.config.composition import compose_run
from consensus_cli.data.memory import ImageTensors
from consensus_cli.data.request import Cue
from consensus_cli.data.split import Augmentation
from consensus_cli.errors import ToldError, UserError
from consensus_cli.evaluation.accuracy import predict
from consensus_cli.evaluation.comparison import compare
from consensus_cli.evaluation.cost.complexity import latency_ms, peak_memory_mib
from consensus_cli.evaluation.cost.cost_comparison import complexity_columns, energy_columns
from consensus_cli.evaluation.cost.energy import EnergyMeter
from consensus_cli.evaluation.cost.savings import Conditions
from consensus_cli.evaluation.pair import Pair
from consensus_cli.evaluation.robustness.adversarial import attack_accuracy
from consensus_cli.evaluation.robustness.attacks import ATTACKS, Attack
from consensus_cli.evaluation.robustness.corruption import corruption_accuracy
from consensus_cli.evaluation.robustness.distortions import DISTORTIONS
from consensus_cli.evaluation.robustness.shortcut import MARKS, shortcut_reliance
from consensus_cli.experiment import device_trial, kept_costs
from consensus_cli.experiment.dry_run import Demands, dry_run
from consensus_cli.models.classifier import Classifier, normalized
from consensus_cli.pruning.blocks import candidates, find_blocks
from consensus_cli.scoring.metrics import METRICS
from consensus_cli.scoring.metrics.algebra import eigh
from consensus_cli.scoring.removals import prune
from consensus_cli.scoring.representations import ONE_PASS, AblationEngine
from consensus_cli.scoring.score import rank_blocks
from consensus_cli.screen import open_screen
from consensus_cli.training import Recipe, recalibrate_batch_norm, train

#: PyTorch says so where code touches all GPUs
pytestmark = pytest.mark.filterwarnings("error:CUDA reports that you have")

CLASSES, QUIET = 4, open_screen("none")

#: a short run of everything
RUN = (
    *QUICK, "model=custom", "model.target=helpers.odd_networks.Plain", "dataset=synthetic", "dataset.image_size=16",
    "attacks.images=8", "metrics=[cka,wasserstein]", "controls=[more_training]", "prune.replace=scale",
    "evaluate.energy_window_s=0.01", "evaluate.latency_min_run_s=0.01", "precision=fp32", "threads=1",
)  # fmt: skip


def images(count: int = 48) -> ImageTensors:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return ImageTensors(pixels, torch.arange(count) % CLASSES)


def network(device: torch.device) -> Classifier:
    torch.manual_seed(0)
    return normalized(Plain(CLASSES).to(device), [0.5] * 3, [0.25] * 3).eval()


def transformer(device: torch.device) -> Classifier:
    torch.manual_seed(0)
    plain = VisionTransformer(16, 8, 2, 2, 8, 16, num_classes=CLASSES)
    nn.init.normal_(plain.heads.head.weight)
    return normalized(plain, [0.5] * 3, [0.25] * 3).to(device).eval()


def pair(device: torch.device) -> Pair:
    original = network(device)
    pruned = copy.deepcopy(original)
    del pruned.network.blocks[2]
    return Pair(original, pruned, images(16), device=device)


def ranked(device: torch.device, **how: Any) -> Mapping[str, Any]:
    return rank_blocks(network(device), images(), **how).distances


def pruned(device: torch.device, made: Callable[[torch.device], Classifier] = network, **how: Any) -> list[Any]:
    model = made(device)
    removed = [removal.removed for removal in prune(model, images(), seed=1, **how)]
    return [removed, *(tensor.detach().cpu() for tensor in model.state_dict().values())]


def trained(device: torch.device, precision: str = "fp32", **how: Any) -> list[Any]:
    model, moves = network(device), Augmentation(pad=1, flip=True, min_area=0.5)
    recipe = Recipe(epochs=1, learning_rate=0.05, batch_size=16, schedule="cosine", **how)
    done = train(model, images(), recipe, augmentation=moves, precision=precision, teacher=network(device))
    return [done.loss, *(tensor.detach().cpu() for tensor in model.state_dict().values())]


def trained_on(device: torch.device) -> list[Any]:
    """A training that goes on in the middle of what its last loss is the mean of."""
    recipe = Recipe(epochs=1.5, learning_rate=0.05, batch_size=16, schedule="cosine", ema_decay=0.9)
    keeper = Memory()
    for stop_at in (len(images()) // 16 + 1, 0):
        model = network(device)
        with suppress(Stopped):
            done = train(model, images(), recipe, keeper=keeper, tick=stopping_at(stop_at))
    return [done.loss, *(tensor.detach().cpu() for tensor in model.state_dict().values())]


def recalibrated(device: torch.device) -> list[Any]:
    model, moves = network(device), Augmentation(pad=1)
    recalibrate_batch_norm(model, images(), images=32, batch_size=16, device=device, augmentation=moves, seed=0)
    return [buffer.cpu() for buffer in model.buffers()]


def trained_on_what_is_there(device: torch.device) -> list[Any]:
    model, recipe = network(device), Recipe(epochs=1, learning_rate=0.05, batch_size=16, schedule="cosine")
    resident = images().to(device)
    train(model, resident.subset(torch.arange(40)), recipe, augmentation=Augmentation(pad=1, flip=True))
    return [tensor.detach().cpu() for tensor in model.state_dict().values()]


def engine(device: torch.device) -> list[Any]:
    """Whether scoring goes the fast way, where an error would lead to a slow one, and what each way comes to."""
    model, shown = network(device).network, next(images(4).batches(4, device))[0]
    found = AblationEngine(model, candidates(find_blocks(model, shown)), shown)
    fast, norms = found.way, sum(isinstance(module, nn.BatchNorm2d) for module in found._network.modules())
    rows = []
    for way in (*ONE_PASS, "in turn"):
        found.way = way
        rows.append(found.representations(shown).cpu())
    return [fast, norms, *rows]


def eigenvalues(device: torch.device) -> Tensor:
    """Of a matrix for which LAPACK does not converge at first."""
    solve = mock.Mock(side_effect=[torch.linalg.LinAlgError(), torch.linalg.eigh(torch.eye(3))])
    with mock.patch("torch.linalg.eigh", solve):
        eigh(torch.eye(3).to(device))
    return solve.call_args[0][0].cpu()


def compared(device: torch.device) -> dict[str, Any]:
    original = network(device)
    found = compare(original, Plain(CLASSES).eval(), images(16), attacks=["fgsm"], cost=False, images=8).columns
    return {name: value for name, value in found.items() if name != "attacks_s"}


def image_files(device: torch.device) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        files = loaded(write_tree(Path(folder) / "tree", {".": 4}, ("a", "b"), (16, 16)), streaming=True)
        model, recipe = network(device), Recipe(epochs=1, learning_rate=0.05, batch_size=3, schedule="cosine")
        train(model, files.train, recipe)
        return predict(model, files.test, device).logits


def refused(device: torch.device) -> Any:
    """Returns what is said of a network that takes other images."""
    model = normalized(NeedsSize(CLASSES), [0.5] * 3, [0.25] * 3).to(device)
    shown, labels = (tensor.to(device) for tensor in next(images(2).batches(2)))
    with pytest.raises(UserError) as raised:
        dry_run(model, shown, labels, Demands("Plain", CLASSES, "fp32", "fp32", True, True, "needed", True))
    return [raised.value.message, raised.value.hint]


def whole_run(device: torch.device) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        run = consensus_cli.run(*RUN, f"device={device}", f"output_dir={folder}")
        weights = [tensor.detach().cpu() for tensor in run.pruned().state_dict().values()]
        return [run.row["removed_blocks"], run.row["accuracy_pruned_pct"], run.row["pgd_pruned_pct"], *weights]


def attacked(device: torch.device, name: str) -> dict[str, Any]:
    attack = Attack(name, ATTACKS[name].norms[0], steps=2)
    return attack_accuracy(pair(device), {name: attack}, 8)[name]


def timed(device: torch.device) -> None:
    for model in pair(device).networks.values():
        latency_ms({"a": model}, (3, 16, 16), 2, device, 1e-3)
        peak_memory_mib(model, (3, 16, 16), 2, device)


def saved(device: torch.device) -> list[Any]:
    """What each block costs, of which MACs alone are not a matter of time."""
    model, meter = network(device), EnergyMeter("BRA", device=device)
    under = Conditions((3, 16, 16), device, 2, confidence=0.5, latency_s=1e-3, window_s=1e-3, windows=1, meter=meter)
    blocks = find_blocks(model, under.images())
    return kept_costs.measured(model, blocks, under, ["latency", "energy", "memory"], QUIET).table["macs"].tolist()


def examined(device: torch.device) -> str:
    config = compose_run(device_trial.TINY)
    return device_trial.Work(config, device, device_trial.Work(config, CPU)).remove()


def metered(device: torch.device) -> None:
    energy_columns(pair(device), EnergyMeter("BRA", device=device), window_s=1e-3, repeats=1)


def reliance(device: torch.device) -> list[Any]:
    model, shown = network(device), images().to(device)
    return [shortcut_reliance(model, shown, Cue(kind), CLASSES, seed=0, device=device) for kind in MARKS]


#: what is run on a device -> what it comes to; None where that is a matter of time
ACTIONS: dict[str, Callable[[torch.device], Any]] = {
    "scoring": functools.partial(ranked, metrics=list(METRICS), bootstrap=2),
    "scoring in fp32": functools.partial(ranked, metrics="cka"),
    "scoring in passes": lambda device: ranked(device, metrics="cka", against=network(device), memory_gb=1e-5),
    "scoring in bf16": functools.partial(ranked, metrics="cka", precision="bf16"),
    "scoring by answers": functools.partial(ranked, criterion="kl", repair="linear"),
    "scoring by weights": functools.partial(ranked, criterion="weight_norm"),
    "pruning": functools.partial(pruned, macs_ratio=0.2, criterion="last"),
    "healing": functools.partial(pruned, ratio=0.5, criterion="random", replace="linear", refit=True),
    "healing branches": functools.partial(
        pruned, made=transformer, ratio=0.3, criterion="last", granularity="branch", replace="scale", refit=True
    ),
    "training": functools.partial(trained, ema_decay=0.9, distill=0.5, accumulate_batches=2),
    "training in fp32": trained,
    "training in bf16": functools.partial(trained, precision="bf16"),
    "training that goes on": trained_on,
    "batch norm": recalibrated,
    "training on images on the device": trained_on_what_is_there,
    "accuracy": lambda device: predict(network(device), images(), device).logits,
    "image files": image_files,
    **{name: functools.partial(attacked, name=name) for name in ATTACKS},
    "corruptions": lambda device: corruption_accuracy(pair(device), list(DISTORTIONS), severities=(3,)),
    "shortcuts": reliance,
    "MACs": lambda device: complexity_columns(*pair(device).networks.values(), (3, 16, 16)),
    "latency and memory": timed,
    "energy": metered,
    "what blocks cost": saved,
    "doctor": examined,
    "comparing": compared,
    "the engine": engine,
    "eigenvalues": eigenvalues,
    "a network that is refused": refused,
    "a run": whole_run,
}


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], expected[key]) for key in expected)
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, Tensor):
        return place(found) == CPU and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    if isinstance(expected, float | np.ndarray):
        return np.allclose(found, expected, rtol=1e-4, atol=1e-6, equal_nan=True)
    return found == expected


@functools.cache
def ran(action: str) -> tuple[SecondGPU, Any]:
    with SecondGPU().active() as gpu:
        return gpu, ACTIONS[action](SECOND)


@pytest.mark.parametrize("action", ACTIONS)
def test_the_device_changes_no_result(action: str) -> None:
    assert same(ran(action)[1], ACTIONS[action](CPU))


def forgets(site: Site, action: str) -> bool:
    """Whether an action that leaves a tensor on the CPU fails, or comes to something else."""
    with SecondGPU(left=site).active():
        try:
            return not same(ACTIONS[action](SECOND), ran(action)[1])
        except (RuntimeError, TypeError, ToldError) as error:
            return "device" in str(error)


def calls_that_name_a_device() -> dict[str, list[tuple[int, int, str]]]:
    """Returns file -> first line, last line and text of each call in the package that makes or moves a tensor."""
    found: dict[str, list[tuple[int, int, str]]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and _names_a_device(node):
                call = node.lineno, node.end_lineno or node.lineno, ast.unparse(node)
                found.setdefault(str(file.relative_to(PACKAGE)), []).append(call)
    return found


def _names_a_device(call: ast.Call) -> bool:
    assert isinstance(call.func, ast.Attribute)
    if call.func.attr == "to":
        # Of a type alone, or to the CPU, nothing can be left behind.
        words = [ast.unparse(word) for word in call.args]
        return any("torch." not in word and not word.endswith(".dtype") and word != "'cpu'" for word in words)
    of_torch = ast.unparse(call.func.value) == "torch"
    return of_torch and call.func.attr != "device" and any(word.arg == "device" for word in call.keywords)


PACKAGE = Path(consensus_cli.__file__).parent
CALLS = calls_that_name_a_device()

#: calls that change the type of a tensor that is there already, and those of methods that move several
NO_MOVES = {
    "torch.where(coupling.diagonal(dim1=1, dim2=2) < 0, -1.0, 1.0).to(coupling)",
    "values.to(output.before)",
    "draw.rows(rows).to(device)",
    "split.to(device)",
    "draw_augmentation(augmentation, count, generator).to(home)",
}
#: images may be anywhere: batches bring them to the device
ANYWHERE = {"self.images.to(device)"}


@pytest.mark.parametrize("file", [*CALLS, "evaluation/robustness/adversarial.py"])
def test_a_tensor_left_on_the_cpu_is_noticed(file: str) -> None:
    actions: dict[Site, list[str]] = {}
    for action in ACTIONS:
        for site in ran(action)[0].sites:
            if site[0] == file:
                actions.setdefault(site, []).append(action)
    for first, last, text in CALLS.get(file, []):
        assert text in NO_MOVES or any(first <= line <= last for _, line in actions), (
            f"no action runs {text}: add one, so that a tensor left on the CPU is noticed"
        )
    lines = {line: text for first, last, text in CALLS.get(file, []) for line in range(first, last + 1)}
    unnoticed = [
        site
        for site, reached_by in actions.items()
        if lines.get(site[1]) not in ANYWHERE and not any(forgets(site, action) for action in reached_by)
    ]
    assert unnoticed == [], "a tensor that is left on the CPU there changes nothing"


def test_a_training_that_was_kept_on_a_cpu_begins_anew_on_a_gpu() -> None:
    recipe, keeper = Recipe(epochs=2, learning_rate=0.05, batch_size=16, schedule="cosine"), Memory()
    with suppress(Stopped):
        train(network(CPU), images(), recipe, keeper=keeper, tick=stopping_at(len(images()) // 16 + 1))
    assert len(keeper.kept) == 1
    with SecondGPU().active():
        train(network(SECOND), images(), recipe, keeper=keeper)
    assert len(keeper.kept) == 2


def test_autocast_is_that_of_the_device() -> None:
    for area in ("scoring", "training"):
        in_bf16, in_fp32 = ran(f"{area} in bf16")[1], ran(f"{area} in fp32")[1]
        assert not same(in_bf16, in_fp32)


def test_images_in_memory_lie_on_the_device_while_they_are_trained_on() -> None:
    gpu = ran("training in fp32")[0]
    carried = {text for file, line in gpu.sites for first, last, text in CALLS[file] if first <= line <= last}
    assert "self.images.to(device)" in carried
    assert "self.images[chosen].to(device)" not in carried


@pytest.mark.parametrize("action", ["latency and memory", "energy", "a run"])
def test_what_is_waited_for_is_the_device_that_computes(action: str) -> None:
    assert set(ran(action)[0].synchronized) == {SECOND}


#: what PyTorch refuses on GPUs -> words of its message
REFUSED: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "two devices": (lambda x: x + torch.ones(2), "cpu and cuda:1"),
    "another GPU": (lambda x: x + torch.ones(2, device="cuda"), "cuda:0 and cuda:1"),
    "a layer elsewhere": (nn.Linear(2, 2), "cpu and cuda:1"),
    "values of another device": (lambda x: torch.ones(2).add_(x), "cpu and cuda:1"),
    "a list": (lambda x: torch.stack([x, torch.ones(2)]), "cpu and cuda:1"),
    "a generator of the CPU": (lambda x: x.uniform_(generator=torch.Generator()), "generator"),
    "a view for NumPy": (lambda x: x.numpy(), "numpy"),
    "an array": (lambda x: np.asarray(x.detach()), "numpy"),
    "a gradient elsewhere": (lambda x: setattr(x, "grad", torch.ones(2)), "cpu and cuda:1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_stand_in_refuses_what_a_gpu_refuses(name: str) -> None:
    call, words = REFUSED[name]
    with SecondGPU().active():
        x = torch.ones(2, device=SECOND)
        with pytest.raises((RuntimeError, TypeError), match=words):
            call(x)


def test_the_stand_in_lets_results_be_where_their_operands_are() -> None:
    with SecondGPU().active():
        x = torch.arange(4.0).to("cuda:1").requires_grad_()
        y = (x.view(2, 2) * torch.tensor(2.0)).sum()
        y.backward()
        layer = copy.deepcopy(nn.Linear(2, 2).to(x))
        kept = [x, y, x.grad, x[1:], x.new_zeros(2), torch.zeros_like(x), layer.weight, layer(x[:2]), x.data, x.half()]
        assert [tensor.device for tensor in kept] == [SECOND] * len(kept)
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.ones(1, device="cuda").device == FIRST
        gone = [x.cpu(), x.to("cpu"), torch.ones(4).copy_(x), torch.ones_like(x, device="cpu"), x.to(torch.ones(1))]
        assert [tensor.device for tensor in gone] == [CPU] * len(gone)
        assert x.grad.tolist() == [2.0] * 4
