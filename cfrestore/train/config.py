"""Recipes: every training knob, as frozen values, with the presets of each stage.

Source of `published` and `paper`: the released option files and the paper, as the specification
records them. `vqvae` is van den Oord et al. (2017), `vqgan` Esser et al. (2021). `compact` (256 px)
and `tiny` (128 px) are this project's own; their reasons are in NOTES.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from cfrestore.errors import ConfigError
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

_PUBLISHED = CodeFormerConfig()
_COMPACT = CodeFormerConfig.compact()
_TINY = CodeFormerConfig.tiny()

# The shards' sources b, c and d are few and the most varied.
_VARIED = Augmentation(
    shift=8,
    brightness=0.2,
    contrast=0.2,
    saturation=0.4,
    tint=0.08,
    gray=0.15,
    repeats=((r"[bc]\d{5}\.", 4), (r"d\d{5}\.", 2)),
)
_HEALTHY_CODES = Codebook(
    update="ema", beta_on="commitment", spherical=True, kmeans_after=200, revive_below=0.05
)
_FACE_FEATURES = Perceptual("retinaface", weight=1.0)

AUTOENCODER: dict[str, AutoencoderRecipe] = {
    "published": AutoencoderRecipe(
        _PUBLISHED,
        Optimisation(1_600_000, 32, 7e-5, 6e-5),
        perceptual=Perceptual(double_normalisation=True),
        adversary=Adversary(start=30_001, scale=0.8, learning_rate=7e-5),
    ),
    "paper": AutoencoderRecipe(
        _PUBLISHED,
        Optimisation(1_500_000, 16, 8e-5),
        codebook=Codebook(beta_on="commitment"),
        adversary=Adversary(start=30_001, scale=0.8, learning_rate=8e-5),
    ),
    "vqvae": AutoencoderRecipe(
        _COMPACT,
        Optimisation(250_000, 32, 2e-4),
        codebook=Codebook(beta_on="commitment"),
        perceptual=Perceptual("none"),
    ),
    "vqgan": AutoencoderRecipe(
        _COMPACT,
        Optimisation(500_000, 32, 1e-4),
        codebook=Codebook(beta_on="commitment"),
        perceptual=Perceptual("lpips"),
        adversary=Adversary(
            start=30_001, scale=0.8, learning_rate=1e-4, largest=1e4, halved=True, layers=3
        ),
    ),
    "compact": AutoencoderRecipe(
        _COMPACT,
        Optimisation(
            12_000,
            32,
            1e-3,
            2e-5,
            warm_up=400,
            betas=(0.9, 0.95),
            ema_decay=0.998,
            ema_warm_up=True,
        ),
        codebook=replace(_HEALTHY_CODES, kmeans_after=600),
        perceptual=_FACE_FEATURES,
        adversary=Adversary(start=6_000, scale=0.25, learning_rate=2e-4, lead=500, layers=3),
        augmentation=_VARIED,
    ),
    "tiny": AutoencoderRecipe(
        _TINY,
        Optimisation(
            2_600, 8, 2e-3, 2e-5, warm_up=100, betas=(0.9, 0.95), ema_decay=0.998, ema_warm_up=True
        ),
        codebook=_HEALTHY_CODES,
        perceptual=_FACE_FEATURES,
        adversary=Adversary(
            start=1_376, scale=0.1, learning_rate=2e-4, lead=200, channels=16, layers=3
        ),
        augmentation=replace(_VARIED, shift=4),
    ),
}

CODES: dict[str, CodesRecipe] = {
    "published": CodesRecipe(
        _PUBLISHED, Optimisation(500_000, 32, 1e-4, milestones=(400_000, 450_000))
    ),
    "paper": CodesRecipe(_PUBLISHED, Optimisation(200_000, 16, 8e-5), degradations=((PAPER, 1.0),)),
    "compact": CodesRecipe(
        _COMPACT,
        Optimisation(8_000, 32, 5e-4, 1e-5, warm_up=300, ema_decay=0.998, ema_warm_up=True),
        degradations=((LARGE, 0.6), (SMALL, 0.4)),
        augmentation=_VARIED,
    ),
    "tiny": CodesRecipe(
        _TINY,
        Optimisation(1_700, 8, 5e-4, 1e-5, warm_up=100, ema_decay=0.998, ema_warm_up=True),
        degradations=((LARGE, 0.6), (SMALL, 0.4)),
        augmentation=replace(_VARIED, shift=4),
    ),
}

FUSION: dict[str, FusionRecipe] = {
    "published": FusionRecipe(
        _PUBLISHED,
        Optimisation(150_000, 24, 5e-5, 2e-5, ema_decay=0.997),
        # The released schedule also fuses at t = 120 000 with w = 0, where the image carries no
        # gradient and training stops; here that iteration learns codes like its neighbours.
        phases=(
            Phase(40_000, w=1.0),
            Phase(80_000, w=1.3),
            Phase(120_000, (0, 1)),
            Phase(150_000, (1, 15), w=1.3),
        ),
        perceptual=Perceptual(double_normalisation=True),
        adversary=Adversary(start=5_001, scale=0.1, learning_rate=5e-5),
    ),
    "paper": FusionRecipe(
        _PUBLISHED,
        Optimisation(20_000, 16, 2e-5, ema_decay=0.997),
        phases=(Phase(20_000),),
        small=PAPER,
        adversary=Adversary(start=0, scale=0.8, learning_rate=2e-5),
    ),
    "compact": FusionRecipe(
        _COMPACT,
        Optimisation(6_000, 32, 5e-4, 1e-5, warm_up=200, ema_decay=0.998, ema_warm_up=True),
        phases=(Phase(6_000, (3, 4)),),
        perceptual=replace(_FACE_FEATURES, weight=0.5),
        adversary=Adversary(start=2_000, scale=0.1, learning_rate=2e-4, lead=300, layers=3),
        zero_start=True,
        augmentation=_VARIED,
    ),
    "tiny": FusionRecipe(
        _TINY,
        Optimisation(900, 8, 5e-4, 1e-5, warm_up=50, ema_decay=0.995, ema_warm_up=True),
        phases=(Phase(900, (4, 5)),),
        perceptual=replace(_FACE_FEATURES, weight=0.5),
        zero_start=True,
        augmentation=replace(_VARIED, shift=4),
    ),
}

_POLISHED = PolishRecipe(
    _COMPACT,
    Optimisation(460, 8, 1.2e-4, 1e-5, warm_up=20, ema_decay=0.99, ema_warm_up=True),
    degradations=((SMALL, 0.75), (LARGE, 0.25)),
    eyes=10.0,
    sharpening=Sharpening(0.7, 6.0),
    perceptual=replace(_FACE_FEATURES, weight=0.3),
    augmentation=_VARIED,
)

POLISH: dict[str, PolishRecipe] = {
    "compact": _POLISHED,
    # From polished weights, for likeness: docs/training-log.md says what came of it.
    "identity": replace(
        _POLISHED,
        optimisation=replace(_POLISHED.optimisation, iterations=100, learning_rate=8e-5),
        identity=Identity(descriptor=0.05, features=0.2),
    ),
    # From polished weights, for sharpness: docs/training-log.md says what came of it.
    "judged": PolishRecipe(
        _COMPACT,
        Optimisation(560, 4, 8e-5, 1e-5, warm_up=20, ema_decay=0.99, ema_warm_up=True),
        eyes=10.0,
        perceptual=replace(_FACE_FEATURES, weight=0.3),
        adversary=Adversary(
            start=100,
            scale=0.12,
            learning_rate=1e-3,
            lead=100,
            betas=(0.5, 0.99),
            layers=3,
            spectral=True,
            detail=8,
            replays=2,
        ),
        augmentation=_VARIED,
    ),
}

# Kinds in place of presets: they differ in nothing else that a user would choose.
PRIOR: dict[str, PriorRecipe] = {
    "pixelcnn": PriorRecipe(
        _COMPACT,
        Optimisation(2_000, 16, 2e-3, 2e-5, warm_up=50, ema_decay=0.995, ema_warm_up=True),
        PriorConfig("pixelcnn", width=64, layers=8, kernel=5, dropout=0.1),
        augmentation=Augmentation(repeats=_VARIED.repeats),
    ),
    "transformer": PriorRecipe(
        _COMPACT,
        Optimisation(2_000, 16, 2e-3, 2e-5, warm_up=100, ema_decay=0.995, ema_warm_up=True),
        PriorConfig("transformer", width=160, layers=4, heads=5, dropout=0.1),
        augmentation=Augmentation(repeats=_VARIED.repeats),
    ),
}

PRESETS: dict[
    str,
    dict[str, AutoencoderRecipe]
    | dict[str, CodesRecipe]
    | dict[str, FusionRecipe]
    | dict[str, PolishRecipe]
    | dict[str, PriorRecipe],
]
PRESETS = {
    "autoencoder": AUTOENCODER,
    "codes": CODES,
    "fusion": FUSION,
    "polish": POLISH,
    "prior": PRIOR,
}


def recipe(stage: str, preset: str) -> Recipe:
    """The preset of a stage ("autoencoder", "codes", "fusion", "polish", "prior").

    Raises:
        ConfigError: the stage has no preset of that name.
    """
    presets = PRESETS[stage]
    if preset not in presets:
        raise ConfigError(f"stage {stage} has the presets {', '.join(presets)}; found {preset!r}")
    return presets[preset]


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
