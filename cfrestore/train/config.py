"""Recipes: every training knob, as frozen values; presets.py has the values themselves."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.models.prior import PriorConfig

Range = tuple[float, float]


@dataclass(frozen=True)
class Degradation:
    """Ranges of the synthetic damage, each drawn uniformly for each face.

    Attributes:
        blur_sigma: deviation of the Gaussian blur, pixels.
        downsample: factor by which the side shrinks.
        noise: deviation of the Gaussian noise, in 1/255.
        jpeg_quality: 1 to 100.
        kernel_size: side of the blur kernel, pixels, odd.
    """

    blur_sigma: Range
    downsample: Range
    noise: Range
    jpeg_quality: Range
    kernel_size: int = 41

    def scaled(self, image_size: int) -> Degradation:
        """The same damage for faces of another side than 512 px: only the blur depends on it."""
        factor = image_size / 512
        low, high = self.blur_sigma
        kernel = max(3, round(self.kernel_size * factor) // 2 * 2 + 1)
        return replace(self, blur_sigma=(low * factor, high * factor), kernel_size=kernel)


SMALL = Degradation((0.1, 10), (1, 12), (0, 15), (60, 100))
LARGE = Degradation((1, 15), (4, 30), (0, 20), (30, 80))
PAPER = Degradation((1, 15), (1, 30), (0, 20), (30, 90))


@dataclass(frozen=True)
class Augmentation:
    """Changes of the clean face before anything else; all off but the mirror by default.

    Attributes:
        mirror: probability of a left-right flip.
        shift: largest translation, pixels; the border is reflected.
        brightness, contrast, saturation: largest relative change.
        tint: largest relative change of each colour channel on its own.
        gray: probability that all colour is removed.
        repeats: pairs (pattern for the beginning of a file's name, how often an epoch shows such
            files); others are shown once.
    """

    mirror: float = 0.5
    shift: int = 0
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
        iterations: how many steps; counted from 1.
        batch_size: faces a step, over all processes.
        learning_rate: at the first step.
        final_learning_rate: where a cosine over all iterations ends; None: only milestones change
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
        """Learning rate of iteration t, the first being 1."""
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
        beta_on: the term: "codebook" as in the published code, "commitment" as in the textbook.
        decay: of the moving averages.
        spherical: codes keep the length sqrt(d), so that only directions are compared.
        kmeans_after: iterations without quantisation, before k-means chooses the codes; 0 for none.
        revive_below: a code chosen less often than this share of the average is replaced by a
            latent of the batch; 0 for never.
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
    """The discriminator, and how much its judgement counts.

    The generator learns from it at iterations greater than `start`. It learns itself from then on,
    or `lead` iterations earlier; its learning rate follows the generator's schedule.

    Attributes:
        scale: factor on the adaptive weight |grad rec| / (|grad GAN| + 1e-4).
        largest: upper clamp of the adaptive weight.
        halved: the hinge loss with the original VQGAN's factor 1/2.
        channels, layers, spectral: shape of the discriminator.
        detail: it judges only what is finer than this many pixels; the rest is shown to it as the
            real picture has it, so that it demands nothing there. 0: whole pictures.
        replays: further steps in each iteration, on pictures of earlier ones, so that the generator
            cannot deceive it merely by changing.
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
    """Distances between a painted face and its clean one, as a recogniser of faces sees them.

    Attributes:
        descriptor: weight of the distance of their descriptors.
        features: weight of the mean relative difference of their feature maps.
    """

    descriptor: float
    features: float


@dataclass(frozen=True)
class AutoencoderRecipe:
    """Stage I: autoencoder and codebook on clean faces."""

    model: CodeFormerConfig
    optimisation: Optimisation
    codebook: Codebook = field(default_factory=Codebook)
    perceptual: Perceptual = field(default_factory=Perceptual)
    adversary: Adversary | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class CodesRecipe:
    """Stage II: codes predicted from degraded faces; codebook and generator are frozen.

    Attributes:
        degradations: pairs (damage, share of the faces that get it).
        feature_weight: on the mean squared distance of the latent to the clean face's codes.
        code_weight: on the cross-entropy of the codes.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    degradations: tuple[tuple[Degradation, float], ...] = ((LARGE, 1.0),)
    feature_weight: float = 1.0
    code_weight: float = 0.5
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class Phase:
    """A stretch of stage III, up to and including iteration `until`.

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
        zero_start: begin with a fusion that changes nothing.
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
    """Unsharp masking: adds `amount` times the difference between a picture and its blurred copy.

    Attributes:
        sigma: deviation of the Gaussian blur, pixels at 512 px.
    """

    amount: float
    sigma: float


@dataclass(frozen=True)
class PolishRecipe:
    """After stage III: the generator learns once more, with the fusion, on fixed codes.

    Half of each batch are clean faces painted from their own codes at w = 0, the others degraded
    ones fused at w = 1.

    Attributes:
        degradations: pairs (damage, share of the degraded faces that get it).
        eyes: how much more a pixel in the middle of an eye counts than one far from the eyes.
        sharpening: of the clean faces to be painted, since what is learned from them is softer than
            they are; None: they are not sharpened.
        identity: the distances that a recogniser sees; None: they do not count.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    degradations: tuple[tuple[Degradation, float], ...] = ((SMALL, 1.0),)
    eyes: float = 0.0
    sharpening: Sharpening | None = None
    identity: Identity | None = None
    perceptual: Perceptual = field(default_factory=Perceptual)
    adversary: Adversary | None = None
    augmentation: Augmentation = field(default_factory=Augmentation)


@dataclass(frozen=True)
class PriorRecipe:
    """A distribution over the codes of clean faces, from which new ones can be drawn.

    Attributes:
        model: the network whose codes they are; the autoencoder's checkpoint overrides it.
        prior: its shape; number and side of the codes are those of the model.
        augmentation: only `mirror` and `repeats` apply to codes.
        held_out: every `held_out`-th face is kept back, to measure how likely unseen faces are.
        evaluations: how often a run measures that.
    """

    model: CodeFormerConfig
    optimisation: Optimisation
    prior: PriorConfig
    augmentation: Augmentation = field(default_factory=Augmentation)
    held_out: int = 20
    evaluations: int = 10

    def evaluates(self, t: int) -> bool:
        """Whether iteration t measures the held-out faces."""
        every = max(1, self.optimisation.iterations // self.evaluations)
        return t % every == 0 or t == self.optimisation.iterations


ImageRecipe = AutoencoderRecipe | CodesRecipe | FusionRecipe | PolishRecipe
Recipe = ImageRecipe | PriorRecipe


def with_iterations(recipe: Recipe, iterations: int) -> Recipe:
    """The recipe over another number of iterations; everything in it keeps its proportions."""
    factor = iterations / recipe.optimisation.iterations

    def scaled(t: int) -> int:
        return max(1, round(t * factor)) if t else 0

    optimisation = replace(
        recipe.optimisation,
        iterations=iterations,
        milestones=tuple(scaled(m) for m in recipe.optimisation.milestones),
        warm_up=scaled(recipe.optimisation.warm_up),
    )
    if isinstance(recipe, CodesRecipe | PriorRecipe):
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
