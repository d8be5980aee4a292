"""Recipes: all training settings, as frozen dataclasses; presets.py has the values."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from cfrestore.degrade import LARGE, SMALL, Degradation, Range
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.models.prior import PriorConfig
from cfrestore.models.srvgg import SRVGGConfig


@dataclass(frozen=True)
class Augmentation:
    """Changes of the clean face before anything else; by default only the mirror is on.

    Attributes:
        mirror: probability of a left-right flip.
        shift: largest translation, pixels; the border is reflected.
        warp: largest displacement by a smooth random field, as a share of the side; each face gets
            a random fraction of it.
        brightness, contrast, saturation: largest relative change.
        tint: largest relative change of each colour channel, independently.
        gray: probability that all colour is removed.
        repeats: pairs (pattern for the beginning of a file's name, how often an epoch shows such
            files); others are shown once.
    """

    mirror: float = 0.5
    shift: int = 0
    warp: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    tint: float = 0.0
    gray: float = 0.0
    repeats: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class Optimisation:
    """Adam, its schedule, and the average of the weights.

    Attributes:
        iterations: number of steps; counted from 1.
        batch_size: faces per step, over all processes.
        learning_rate: at the first step.
        final_learning_rate: the end of a cosine over all iterations; None: only milestones change
            the rate.
        milestones: iterations after which the rate is halved.
        warm_up: iterations over which the rate rises linearly from 0.
        ema_decay: of the averaged weights.
        ema_warm_up: average over fewer steps at first, so that the random start is forgotten.
    """

    iterations: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float | None = None
    milestones: tuple[int, ...] = ()
    warm_up: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.995
    ema_warm_up: bool = False

    def rate(self, t: int) -> float:
        """Learning rate of iteration t, counted from 1."""
        rate = self.learning_rate * 0.5 ** sum(t - 1 >= m for m in self.milestones)
        if self.final_learning_rate is not None:
            fall = self.learning_rate - self.final_learning_rate
            progress = min(1.0, (t - 1) / self.iterations)
            rate = self.final_learning_rate + 0.5 * fall * (1 + math.cos(math.pi * progress))
        return rate * min(1.0, t / self.warm_up) if self.warm_up else rate

    def pace(self, t: int) -> float:
        """Learning rate of iteration t as a multiple of `learning_rate`."""
        return self.rate(t) / self.learning_rate

    def decay(self, t: int) -> float:
        """EMA decay of iteration t."""
        return min(self.ema_decay, (1 + t) / (10 + t)) if self.ema_warm_up else self.ema_decay


@dataclass(frozen=True)
class Codebook:
    """How the codes learn.

    Attributes:
        update: by the gradient of the codebook loss, or as moving averages of their latents.
        beta: weight of one of the two terms of the codebook loss.
        beta_on: that term: "codebook" as in the published code, "commitment" as in the literature.
        decay: of the moving averages.
        spherical: codes have length sqrt(d), so that only directions are compared.
        kmeans_after: iterations without quantisation, before k-means initialises the codes; 0: no
            k-means.
        revive_below: a code chosen less often than this share of the average is replaced by a
            latent of the batch; 0: never.
    """

    update: Literal["gradient", "ema"] = "gradient"
    beta: float = 0.25
    beta_on: Literal["codebook", "commitment"] = "codebook"
    decay: float = 0.99
    spherical: bool = False
    kmeans_after: int = 0
    revive_below: float = 0.0


@dataclass(frozen=True)
class Adversary:
    """The discriminator, and the weight of its loss.

    The generator learns from it at iterations greater than `start`. The discriminator itself learns
    from `lead` iterations earlier on; its learning rate follows the generator's schedule.

    Attributes:
        scale: factor on the adaptive weight |grad rec| / (|grad GAN| + 1e-4).
        largest: upper clamp of the adaptive weight.
        halved: the hinge loss with the original VQGAN's factor 1/2.
        channels, layers, spectral: architecture of the discriminator.
        detail: the discriminator judges only detail finer than this many pixels; it is shown the
            rest as in the real picture, so that the rest cannot matter. 0: whole pictures.
        replays: additional steps of the discriminator in each iteration, on pictures of earlier
            iterations, so that the generator cannot deceive it merely by changing.
    """

    start: int
    scale: float
    learning_rate: float
    largest: float = 1.0
    halved: bool = False
    lead: int = 0
    betas: tuple[float, float] = (0.9, 0.99)
    channels: int = 64
    layers: int = 4
    spectral: bool = False
    detail: int = 0
    replays: int = 0


@dataclass(frozen=True)
class Perceptual:
    """A distance between features of a frozen network.

    Attributes:
        kind: "lpips" (VGG-16, needs its weights), "retinaface" (the MobileNet backbone of the
            small face detector), or "none".
        double_normalisation: normalise LPIPS input a second time, as the published training does.
    """

    kind: Literal["lpips", "retinaface", "none"] = "lpips"
    weight: float = 1.0
    double_normalisation: bool = False


@dataclass(frozen=True)
class Identity:
    """Weights of a painted face's distances from its clean one, as a recogniser measures them.

    Attributes:
        descriptor: weight of the distance of their descriptors.
        features: weight of the mean relative difference of their feature maps.
    """

    descriptor: float
    features: float


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage I: autoencoder and codebook on clean faces.

    Attributes:
        identity: weights of a recogniser's distances; None: they are not used.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    codebook: Codebook = field(default_factory=Codebook)
    perceptual: Perceptual = field(default_factory=Perceptual)
    identity: Identity | None = None
    adversary: Adversary | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Appearance:
    """The loss on the faces that are painted from predicted codes.

    Attributes:
        weight: of the sum of the mean absolute difference, the perceptual distance, and the terms
            below.
        eyes: as in `PolishRecipe`.
        identity: weights of a recogniser's distances.
    """

    weight: float
    eyes: float
    perceptual: Perceptual
    identity: Identity


@dataclass(frozen=True)
class CodesRecipe:
    """Stage II: predicting codes from degraded faces; codebook and generator are frozen.

    Attributes:
        degradations: pairs (damage, share of the faces that get it).
        feature_weight: of the mean squared distance of the latent from the clean face's codes.
        code_weight: of the cross-entropy of the codes.
        appearance: loss on the faces that a frozen generator paints from the predicted codes; None:
            no such loss.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    degradations: tuple[tuple[Degradation, float], ...] = ((LARGE, 1.0),)
    feature_weight: float = 1.0
    code_weight: float = 0.5
    appearance: Appearance | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Phase:
    """A phase of stage III, up to and including iteration `until`.

    With fusing = (m, n), the last m of every n iterations fuse slightly degraded faces at fidelity
    w and learn from the image; the others learn codes of heavily degraded faces.
    """

    until: int
    fusing: tuple[int, int] = (1, 1)
    w: float = 1.0


@dataclass(frozen=True)
class FusionRecipe:
    """Stage III: the controllable feature transformation.

    Attributes:
        phases: the schedule, in order.
        zero_start: start with a fusion that changes nothing.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    phases: tuple[Phase, ...]
    small: Degradation = SMALL
    large: Degradation = LARGE
    feature_weight: float = 1.0
    code_weight: float = 0.5
    perceptual: Perceptual = field(default_factory=Perceptual)
    adversary: Adversary | None = None
    zero_start: bool = False
    augmentation: Augmentation = field(default_factory=Augmentation)

    def fidelity(self, t: int) -> float | None:
        """w of iteration t if it fuses, None if it learns codes of heavy damage."""
        phase = next((p for p in self.phases if t <= p.until), self.phases[-1])
        m, n = phase.fusing
        return phase.w if -t % n < m else None


@dataclass(frozen=True)
class Sharpening:
    """Unsharp masking: adds `amount` times the difference of the brightness from its blurred copy.

    Attributes:
        sigma: of the Gaussian blur, pixels at 512 px.
        fused: the amount for faces fused with a damaged input, which need less; None: `amount`.
    """

    amount: float
    sigma: float
    fused: float | None = None


@dataclass(frozen=True)
class PolishRecipe:
    """After stage III: the generator is trained again, with the fusion, on fixed codes.

    Each batch has up to three parts: clean faces painted from their own codes at w = 0; degraded
    faces fused at w = 1; and, if `unfused` is set, badly degraded faces painted at w = 0.

    Attributes:
        degradations: pairs (damage, share of the fused faces that get it).
        own: share of the faces that are painted from their own codes.
        unfused: share of the faces that are degraded by LARGE and painted at w = 0. They teach only
            the colours of irises; with other losses the network would learn to paint an average.
        eyes: how much more a pixel in the middle of an eye counts than one far from the eyes.
        irises: weight of the squared difference of colours in the eyes.
        sharpening: of the clean target faces, since the network learns to paint softer ones; None:
            no sharpening.
        regularity: weight of the share of regular patterns in fine detail.
        identity: weights of a recogniser's distances; None: they are not used.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    degradations: tuple[tuple[Degradation, float], ...] = ((SMALL, 1.0),)
    own: float = 0.5
    unfused: float = 0.0
    eyes: float = 0.0
    irises: float = 0.0
    sharpening: Sharpening | None = None
    regularity: float = 0.0
    identity: Identity | None = None
    perceptual: Perceptual = field(default_factory=Perceptual)
    adversary: Adversary | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class PriorRecipe:
    """A distribution over the codes of clean faces, from which new ones can be drawn.

    Attributes:
        model: the network that defines the codes; the autoencoder's checkpoint overrides it.
        prior: its configuration; number and side of the codes are those of the model.
        augmentation: only `mirror` and `repeats` apply to codes.
        held_out: every `held_out`-th face is held out, to measure the likelihood of unseen faces.
        evaluations: how many times a run measures that likelihood.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    prior: PriorConfig
    augmentation: Augmentation = field(default_factory=Augmentation)
    held_out: int = 20
    evaluations: int = 10

    def evaluates(self, t: int) -> bool:
        """Whether the held-out faces are measured at iteration t."""
        interval = max(1, self.optimisation.iterations // self.evaluations)
        return t % interval == 0 or t == self.optimisation.iterations


@dataclass(frozen=True)
class UpsamplerRecipe:
    """Enlarging pictures of any content.

    Attributes:
        damage: of the small pictures; its blur is in pixels of the large ones.
        spared: probability that a kind of damage, or the grain, is left out.
        image_size: side to which pictures are resized, pixels.
        patch: side of the patches that are cut from them.
        shrink: factor by which pictures are reduced before they are cut, so that patches are sharp.
        soft: probability that the target patch itself is blurred, as by the damage, so that the
            network does not learn to sharpen everything that is soft.
        grain: standard deviation, in 1/255, of a fine texture added to target patches unless spared
            it, so that the network does not take everything fine and faint for noise.
        scenes: number of drawn pictures among the others.
    """

    model: SRVGGConfig
    optimisation: Optimisation
    damage: Degradation
    spared: float = 0.5
    image_size: int = 256
    patch: int = 96
    shrink: Range = (1, 2.5)
    soft: float = 0.4
    grain: Range = (0, 10)
    scenes: int = 6000
    augmentation: Augmentation = field(default_factory=Augmentation)


ImageRecipe = AutoencoderRecipe | CodesRecipe | FusionRecipe | PolishRecipe
Recipe = ImageRecipe | PriorRecipe | UpsamplerRecipe


def with_iterations(recipe: Recipe, iterations: int) -> Recipe:
    """The recipe with another number of iterations; its schedule is scaled accordingly."""
    factor = iterations / recipe.optimisation.iterations

    def scaled(t: int) -> int:
        return max(1, round(t * factor)) if t else 0

    optimisation = replace(
        recipe.optimisation,
        iterations=iterations,
        milestones=tuple(scaled(m) for m in recipe.optimisation.milestones),
        warm_up=scaled(recipe.optimisation.warm_up),
    )
    if isinstance(recipe, CodesRecipe | PriorRecipe | UpsamplerRecipe):
        return replace(recipe, optimisation=optimisation)
    adversary = recipe.adversary and replace(
        recipe.adversary, start=scaled(recipe.adversary.start), lead=scaled(recipe.adversary.lead)
    )
    if isinstance(recipe, FusionRecipe):
        phases = tuple(replace(p, until=scaled(p.until)) for p in recipe.phases)
        return replace(recipe, optimisation=optimisation, adversary=adversary, phases=phases)
    if isinstance(recipe, PolishRecipe):
        return replace(recipe, optimisation=optimisation, adversary=adversary)
    codebook = replace(recipe.codebook, kmeans_after=scaled(recipe.codebook.kmeans_after))
    return replace(recipe, optimisation=optimisation, adversary=adversary, codebook=codebook)
