"""What attacks make of images against the original network: made once for all networks that are compared with it."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from consensus_cli.data import tensor_file
from consensus_cli.evaluation.robustness.attacks import Attack
from consensus_cli.experiment.checks import cache_dir
from consensus_cli.experiment.inputs import code_hash
from consensus_cli.experiment.original import package_hash
from consensus_cli.experiment.prepare import Prepared
from consensus_cli.models.classifier import Classifier
from consensus_cli.models.weights import serialize
from consensus_cli.storage.rundir import config_hash

#: where a run would make more, nothing is kept: the default attacks on photographs of 224 pixels make 0.2 GiB
LARGEST_BYTES = 2**30
#: whose code attacks and networks are
_PACKAGES = ("torch", "torchattacks", "torchvision", "timm", "transformers")


@dataclass
class KeptExamples:
    """Keeps the examples against one network, a file for each batch; the `Examples` of a `Pair`.

    Attributes:
        folder: where the files lie.
        against: hash of all that the examples depend on beside the attack and the images.
        writable: whether more are kept: not after that has failed once.
    """

    folder: Path
    against: str
    writable: bool = True

    @classmethod
    def of(cls, prepared: Prepared, original: Classifier) -> KeptExamples | None:
        """Returns those of a run's original network, in the cache folder; None where nothing is kept."""
        attacks, test = prepared.config.attacks, prepared.images.test
        image_bytes = math.prod(test.image_shape) * torch.float32.itemsize
        if not 0 < min(attacks.images, len(test)) * image_bytes * len(attacks.suite) <= LARGEST_BYTES:
            return None
        determined_by = {
            "weights": hashlib.sha256(serialize(original, {})).hexdigest(),
            "network": [prepared.spec.construction(), code_hash(prepared.spec.target)],
            "code": package_hash("models", "evaluation/robustness"),
            "packages": {name: version(name) for name in _PACKAGES if find_spec(name) is not None},
            # What the last bits depend on, so that a run repeats bit for bit.
            "device": [prepared.device.type, torch.get_num_threads()],
        }
        return cls(cache_dir(prepared.config), config_hash(determined_by))

    def read(self, attack: Attack, images: Tensor, labels: Tensor) -> Tensor | None:
        """Returns what an attack made of these images; None where that is not known."""
        kept = tensor_file.read(self._file(attack, images, labels))
        # On their device and in their memory format, on which the last bits of an answer depend.
        return None if kept is None else torch.empty_like(images).copy_(kept["examples"])

    def write(self, attack: Attack, images: Tensor, labels: Tensor, examples: Tensor) -> None:
        """Keeps what it made of them."""
        content = {"examples": examples.cpu().contiguous()}
        self.writable = self.writable and tensor_file.write(self._file(attack, images, labels), content)

    def _file(self, attack: Attack, images: Tensor, labels: Tensor) -> Path:
        digest = hashlib.sha256()
        for tensor in (images, labels):
            digest.update(repr((tensor.shape, tensor.dtype)).encode())
            digest.update(tensor.cpu().contiguous().numpy().data)
        key = config_hash({"against": self.against, "attack": asdict(attack), "images": digest.hexdigest()})
        return self.folder / f"examples-{key[:24]}.safetensors"
