"""The loss terms of the three stages, as functions of tensors."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cfrestore.train.distributed import all_mean

ADAPTIVE_DELTA = 1e-4


def codebook_loss(
    latent: Tensor, vectors: Tensor, beta: float, beta_on: Literal["codebook", "commitment"]
) -> Tensor:
    """Pulls latents and their codes towards each other.

    Args:
        latent: z, (B,d,s,s).
        vectors: q, the nearest codes, (B,d,s,s), with gradient to the codebook.
        beta: weight of the term named by beta_on; the other has weight 1.
        beta_on: "codebook" as in the published code: |sg(q) - z|^2 + beta |q - sg(z)|^2;
            "commitment" as in the literature: beta |sg(q) - z|^2 + |q - sg(z)|^2.
    """
    commitment = F.mse_loss(latent, vectors.detach())
    codebook = F.mse_loss(vectors, latent.detach())
    if beta_on == "codebook":
        return commitment + beta * codebook
    return beta * commitment + codebook


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(x')), from logits."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def hinge_generator(fake: Tensor) -> Tensor:
    """-mean D(x'), from logits."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, weight: Tensor, largest: float
) -> Tensor:
    """The weight of the adversarial loss that keeps both losses in balance.

    |d reconstruction / d weight| / (|d adversarial / d weight| + 1e-4), clamped to [0, largest],
    without gradient; the gradients are those of the whole batch, in all processes.
    Source: Esser et al. (2021); CodeFormer clamps at 1, VQGAN at 1e4.
    """
    (rec,) = torch.autograd.grad(reconstruction, weight, retain_graph=True)
    (adv,) = torch.autograd.grad(adversarial, weight, retain_graph=True)
    rec, adv = all_mean(torch.stack((rec, adv)))
    return (rec.norm() / (adv.norm() + ADAPTIVE_DELTA)).clamp(0, largest).detach()


def code_losses(
    latent: Tensor, logits: Tensor, target_vectors: Tensor, target_codes: Tensor
) -> tuple[Tensor, Tensor]:
    """Distance of the latent from the clean face's codes, and cross-entropy of their prediction.

    Args:
        latent: (B,d,s,s) of the degraded face.
        logits: (B,T,K).
        target_vectors: (B,d,s,s), the clean face's codes looked up.
        target_codes: (B,T) int64.
    Returns:
        mean squared distance over all elements, and mean cross-entropy in nats.
    """
    feature = F.mse_loss(latent, target_vectors.detach())
    return feature, F.cross_entropy(logits.flatten(0, 1), target_codes.flatten())
