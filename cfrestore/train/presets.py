"""The presets of each stage.

Source of `published` and `paper`: the released option files and the paper. `vqvae` is van den Oord
et al. (2017), `vqgan` Esser et al. (2021). `compact` (256 px) and `tiny` (128 px) are this
project's own; NOTES.md explains them.
"""

from __future__ import annotations

from dataclasses import replace

from cfrestore.degrade import LARGE, MILD, PAPER, SMALL, Degradation
from cfrestore.errors import ConfigError
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.models.prior import PriorConfig
from cfrestore.models.srvgg import SRVGGConfig
from cfrestore.train.config import (
    Adversary,
    Appearance,
    Augmentation,
    AutoencoderRecipe,
    Codebook,
    CodesRecipe,
    FusionRecipe,
    Identity,
    Optimisation,
    Perceptual,
    Phase,
    PolishRecipe,
    PriorRecipe,
    Recipe,
    Sharpening,
    UpsamplerRecipe,
)

_PUBLISHED = CodeFormerConfig()
_COMPACT = CodeFormerConfig.compact()
_TINY = CodeFormerConfig.tiny()

# The shards' sources b, c and d have few faces, but the most varied ones.
_VARIED = Augmentation(
    shift=8,
    brightness=0.2,
    contrast=0.2,
    saturation=0.4,
    tint=0.08,
    gray=0.15,
    repeats=((r"[bc]\d{5}\.", 4), (r"d\d{5}\.", 2)),
)
_BENT = replace(_VARIED, warp=0.04)
_HEALTHY_CODES = Codebook(
    update="ema", beta_on="commitment", spherical=True, kmeans_after=200, revive_below=0.05
)
_LIKENESS = Identity(descriptor=0.05, features=0.2)
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
    # Trains weights of `compact` further, as do the presets of this name below; docs/training.md.
    "further": AutoencoderRecipe(
        _COMPACT,
        Optimisation(
            2_000, 64, 4e-4, 2e-5, warm_up=100, betas=(0.9, 0.95), ema_decay=0.995, ema_warm_up=True
        ),
        codebook=replace(_HEALTHY_CODES, kmeans_after=0),
        perceptual=_FACE_FEATURES,
        identity=_LIKENESS,
        augmentation=_BENT,
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
    "further": CodesRecipe(
        _COMPACT,
        Optimisation(2_500, 64, 3e-4, 1e-5, warm_up=100, ema_decay=0.995, ema_warm_up=True),
        degradations=((LARGE, 0.55), (SMALL, 0.35), (MILD, 0.1)),
        appearance=Appearance(2.0, 10.0, _FACE_FEATURES, _LIKENESS),
        augmentation=_BENT,
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
        # The released schedule also fuses at t = 120 000 with w = 0, where the image has no
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
    "further": replace(
        _POLISHED,
        optimisation=Optimisation(
            3_000, 64, 3e-4, 1e-5, warm_up=100, ema_decay=0.995, ema_warm_up=True
        ),
        degradations=((SMALL, 0.5), (MILD, 0.25), (LARGE, 0.25)),
        own=0.25,
        unfused=0.25,
        eyes=20.0,
        irises=500.0,
        sharpening=Sharpening(1.6, 6.0, fused=1.3),
        regularity=1.0,
        identity=_LIKENESS,
        augmentation=_BENT,
    ),
    # From polished weights, for likeness; results in docs/training-log.md.
    "identity": replace(
        _POLISHED,
        optimisation=replace(_POLISHED.optimisation, iterations=100, learning_rate=8e-5),
        identity=_LIKENESS,
    ),
    # From polished weights, for sharpness; results in docs/training-log.md.
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

# The kinds serve as presets: they differ in nothing else that a user would choose.
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

UPSAMPLER: dict[str, UpsamplerRecipe] = {
    "compact": UpsamplerRecipe(
        SRVGGConfig(scale=2, features=32, depth=12),
        Optimisation(8_779, 128, 1e-3, 1e-5, warm_up=41, ema_decay=0.999, ema_warm_up=True),
        Degradation((0.1, 1.5), (2, 2), (0, 8), (40, 100), kernel_size=9),
        augmentation=Augmentation(
            brightness=0.2,
            contrast=0.3,
            saturation=0.3,
            tint=0.1,
            gray=0.1,
            repeats=_VARIED.repeats,
        ),
    ),
}

PRESETS: dict[
    str,
    dict[str, AutoencoderRecipe]
    | dict[str, CodesRecipe]
    | dict[str, FusionRecipe]
    | dict[str, PolishRecipe]
    | dict[str, PriorRecipe]
    | dict[str, UpsamplerRecipe],
]
PRESETS = {
    "autoencoder": AUTOENCODER,
    "codes": CODES,
    "fusion": FUSION,
    "polish": POLISH,
    "prior": PRIOR,
    "upsampler": UPSAMPLER,
}


def recipe(stage: str, preset: str) -> Recipe:
    """The preset of a stage ("autoencoder", "codes", "fusion", "polish", "prior", "upsampler").

    Raises:
        ConfigError: the stage has no preset of that name.
    """
    presets = PRESETS[stage]
    if preset not in presets:
        raise ConfigError(f"stage {stage} has the presets {', '.join(presets)}; found {preset!r}")
    return presets[preset]
