"""DeepFool on all images of a batch at once."""

from __future__ import annotations

import torch
import torchattacks
from torch import Tensor


class DeepFool(torchattacks.DeepFool):
    """torchattacks' DeepFool, step for step the same (Moosavi-Dezfooli et al. 2016, algorithm 2).

    torchattacks shows the network one image at a time and one class at a time; here the images that still stand share
    each forward and backward pass. Only one gradient per image is kept, so that a thousand classes fit as well.
    """

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Returns (b, c, h, w) in [0, 1]; images that fall are left alone from then on."""
        adversarial = images.clone().detach()
        standing = torch.arange(len(images), device=images.device)
        for _ in range(self.steps):
            with torch.no_grad():
                predicted = self.get_logits(adversarial[standing]).argmax(1)
            standing = standing[predicted == labels[standing]]
            if len(standing) == 0:
                break
            adversarial[standing] = self._moved(adversarial[standing], labels[standing])
        return adversarial

    def _moved(self, images: Tensor, labels: Tensor) -> Tensor:
        """Moves each image just beyond the nearest boundary of the network, linearised there."""
        images = images.requires_grad_()
        logits = self.get_logits(images)  # (b, k)
        own = logits.gather(1, labels[:, None]).squeeze(1)
        (own_gradient,) = torch.autograd.grad(own.sum(), images, retain_graph=True)
        nearest = torch.full_like(own, torch.inf)
        move = torch.zeros_like(images)
        for other in range(logits.shape[1]):
            last = other + 1 == logits.shape[1]
            (gradient,) = torch.autograd.grad(logits[:, other].sum(), images, retain_graph=not last)
            direction = gradient - own_gradient
            norm = direction.flatten(1).norm(dim=1)
            gap = (logits[:, other] - own).detach().abs()
            nearer = (gap / norm < nearest) & (labels != other)
            nearest = (gap / norm).where(nearer, nearest)
            move = (direction * (gap / norm**2)[:, None, None, None]).where(nearer[:, None, None, None], move)
        return (images + (1 + self.overshoot) * move).clamp(0, 1).detach()
