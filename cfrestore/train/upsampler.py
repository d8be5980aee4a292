"""The training stage of an upsampler, which learns to enlarge reduced and damaged pictures."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cfrestore.degrade import Range, blur, gaussian_kernels, jpeg
from cfrestore.device import autocast
from cfrestore.models.srvgg import SRVGGNetCompact
from cfrestore.part import Part
from cfrestore.train.config import UpsamplerRecipe
from cfrestore.train.learner import Learner, Report


class SuperResolution:
    """An SRVGGNetCompact trained with a pixel loss alone, so that it invents nothing.

    Args:
        recipe: the settings.
        device, mixed: as in `stages.Autoencoder`.
    """

    name = "upsampler"

    def __init__(self, recipe: UpsamplerRecipe, device: torch.device, mixed: bool = False) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        self.network = SRVGGNetCompact(recipe.model).to(device)
        _start(self.network)
        self.learner = Learner(self.network, recipe.optimisation)

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on clean pictures; returns its loss and, to compare, interpolation's."""
        sharp = season(cut(clean, self.recipe, generator), self.recipe, generator)
        small = wear(sharp, self.recipe, generator)
        with autocast(self.device, self.mixed):
            painted = self.network(small.to(memory_format=torch.channels_last))
        loss = F.l1_loss(painted.float(), sharp)
        self.learner.update(loss, t)
        self.learner.follow(t)
        return {"pixel": loss.detach(), "bicubic": F.l1_loss(bicubic(small, sharp), sharp)}

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: sharp, small, interpolated, and painted."""
        part = Part(len(clean))
        sharp = season(cut(clean, self.recipe, generator, part), self.recipe, generator, part)
        small = wear(sharp, self.recipe, generator, part)
        painted = self.learner.average(small).clamp(0, 1)
        nearest = F.interpolate(small, sharp.shape[2:])
        return [sharp, nearest, bicubic(small, sharp), painted]

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


def cut(
    images: Tensor, recipe: UpsamplerRecipe, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Cuts a patch from each picture, reduced by averaging, so that it is sharp at every pixel.

    Patches are turned, and their colour channels exchanged, at random.

    Args:
        images: (B,3,S,S) in [0, 1].
        part: as in `degrade`.
    Returns:
        (B,3,P,P) in [0, 1].
    """
    part = Part.own(len(images)) if part is None else part
    device, side, patch = images.device, images.shape[-1], recipe.patch

    def draw(*shape: int) -> Tensor:
        return part.of(torch.rand((part.whole, *shape), generator=generator, device=device))

    low, high = recipe.shrink
    factor = low + (high - low) * draw()
    slack = (side - factor * patch).clamp(min=0)
    rows, columns = (averaging(draw() * slack, factor, side, patch) for _ in range(2))
    x = rows[:, None] @ images @ columns[:, None].mT
    turned = draw(1, 1, 1) < 0.5
    x = torch.where(turned, x.mT.flip(-2), x)
    order = draw(3).argsort(1)
    return x.gather(1, order[:, :, None, None].expand_as(x)).clamp(0, 1)


def averaging(start: Tensor, factor: Tensor, columns: int, rows: int) -> Tensor:
    """Matrices (B, rows, columns) that reduce one axis by averaging.

    Row i covers the pixels from start + i * factor on, `factor` of them; both are (B,).
    """
    at = torch.arange(columns, device=start.device)
    first = start[:, None] + factor[:, None] * torch.arange(rows, device=start.device)
    first, width = first[..., None], factor[:, None, None]
    return ((first + width).minimum(at + 1) - first.maximum(at)).clamp(min=0) / width


def season(
    sharp: Tensor, recipe: UpsamplerRecipe, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Patches (B,3,P,P) in [0, 1] as photographs are at their best: some soft, some with grain.

    The grain is fine gray texture, as of fur, cloth or film.

    Args:
        part: as in `degrade`.
    """
    part = Part.own(len(sharp)) if part is None else part
    device, side = sharp.device, sharp.shape[-1]

    def draw() -> Tensor:
        drawn = torch.rand((part.whole, 1, 1, 1), generator=generator, device=device)
        return part.of(drawn)

    def kernels() -> Tensor:
        return part.of(gaussian_kernels(recipe.damage, part.whole, generator, device))

    x = torch.where(draw() < recipe.soft, blur(sharp, kernels()), sharp)
    noise = torch.randn((part.whole, 1, side, side), generator=generator, device=device)
    kernel = kernels()
    grain = blur(part.of(noise), kernel)
    grain = grain / kernel.square().sum((1, 2)).sqrt()[:, None, None, None]  # variance 1 again
    low, high = recipe.grain
    strength = (low + (high - low) * draw()) / 255
    return torch.where(draw() < recipe.spared, x, (x + grain * strength).clamp(0, 1))


def wear(
    sharp: Tensor, recipe: UpsamplerRecipe, generator: torch.Generator, part: Part | None = None
) -> Tensor:
    """Small versions of sharp patches, as photographs are: blurred, noisy and compressed.

    Each patch is reduced with one of three kernels, and spared each kind of damage at random.

    Args:
        sharp: (B,3,P,P) in [0, 1].
        part: as in `degrade`.
    Returns:
        (B,3,P/scale,P/scale) in [0, 1], multiples of 1/255.
    """
    damage, device = recipe.damage, sharp.device
    part = Part.own(len(sharp)) if part is None else part

    def draw(bounds: Range) -> Tensor:
        low, high = bounds
        drawn = part.of(torch.rand(part.whole, generator=generator, device=device))
        return (low + (high - low) * drawn)[:, None, None, None]

    def spared() -> Tensor:
        return draw((0, 1)) < recipe.spared

    kernels = part.of(gaussian_kernels(damage, part.whole, generator, device))
    x = torch.where(spared(), sharp, blur(sharp, kernels))
    choices = reductions(sharp.shape[-1], recipe.model.scale, device)
    matrix = choices[(draw((0, len(choices))).flatten()).long()][:, None]
    x = matrix @ x @ matrix.mT
    noise = part.of(torch.randn((part.whole, *x.shape[1:]), generator=generator, device=device))
    x = x + torch.where(spared(), 0, noise * draw(damage.noise) / 255)
    x = (x.clamp(0, 1) * 255).round() / 255
    quality = draw(damage.jpeg_quality).flatten().floor()
    return torch.where(spared(), x, jpeg(x, quality))


def reductions(side: int, scale: int, device: torch.device) -> Tensor:
    """Matrices (3, side / scale, side) that reduce one axis: by mean, triangle and cubic."""
    place = (torch.arange(side // scale, device=device) + 0.5) * scale
    distance = (place[:, None] - torch.arange(side, device=device) - 0.5).abs() / scale
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1  # Keys (1981), a = -0.5
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    cubic = torch.where(distance < 1, near, torch.where(distance < 2, far, 0))
    weights = torch.stack(((distance < 0.5).float(), (1 - distance).clamp(min=0), cubic))
    return weights / weights.sum(-1, keepdim=True)


def bicubic(small: Tensor, sharp: Tensor) -> Tensor:
    """The small pictures interpolated to the size of the sharp ones, in [0, 1]."""
    return F.interpolate(small, sharp.shape[2:], mode="bicubic").clamp(0, 1)


def _start(network: SRVGGNetCompact) -> None:
    """Initialises the network so that convolutions keep the variance, and the output is near 0.

    The output is added to the enlarged input.
    """
    convs = [layer for layer in network.body if isinstance(layer, nn.Conv2d)]
    for conv in convs:
        nn.init.kaiming_normal_(conv.weight, a=0.25)  # the slope at which PReLU starts
        nn.init.zeros_(cast("Tensor", conv.bias))
    convs[-1].weight.data.mul_(0.1)
