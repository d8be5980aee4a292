"""The three training stages.

    I   Autoencoder    encoder, codebook and generator learn to reproduce clean faces
    II  CodePrediction encoder and transformer learn the clean face's codes from a degraded one
    III Fusion         the fusion learns how much of the degraded face's detail to keep

After these comes the polish (polish.py).

A stage holds networks and optimisers; the loop that supplies its batches does not depend on them.
Images are (B,3,S,S); clean faces are in [0, 1], network input is in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Generic

import torch
from torch import Tensor, nn

from cfrestore.checkpoint import load_strictly
from cfrestore.degrade import LARGE, SMALL, Degradation, degrade
from cfrestore.device import autocast
from cfrestore.errors import CheckpointError
from cfrestore.models.codeformer import CodeFormer
from cfrestore.models.vqgan import VQGAN, Quantized, histogram, perplexity
from cfrestore.part import Part, place
from cfrestore.train import checkpoint, losses
from cfrestore.train.codebook import MovingCodebook
from cfrestore.train.comparison import Comparison
from cfrestore.train.config import (
    AutoencoderRecipe,
    CodesRecipe,
    FusionRecipe,
)
from cfrestore.train.critic import Critic, CriticInput
from cfrestore.train.data import to_network, to_picture
from cfrestore.train.distributed import all_sum, whole
from cfrestore.train.learner import Learner, Network, Report
from cfrestore.train.perceptual import IdentityDistance
from cfrestore.train.teacher import Teacher

KMEANS_LATENTS = 50
"""Latents collected per code before k-means."""


class ImageStage(Generic[Network]):
    """The base of all stages on images: a network in training, and an optional discriminator.

    Attributes:
        device, mixed: where to train, and whether in bfloat16.
        learner: the network.
        critic: the discriminator.
    """

    device: torch.device
    mixed: bool
    learner: Learner[Network]
    critic: Critic | None = None

    def update(
        self, t: int, total: Tensor, report: Report, painted: CriticInput | None = None
    ) -> None:
        """Takes a step of the network and, if pictures were painted, of the discriminator.

        Args:
            t: the iteration.
            total: the loss without the adversarial term.
            report: the discriminator's numbers are added to it.
        """
        critic = self.critic if painted else None
        if painted and critic and critic.heard(t):
            with autocast(self.device, self.mixed):
                judgement, report["lambda"] = critic.judge(painted)
            total = total + judgement
        self.learner.update(total, t)
        if painted and critic and critic.learns(t):
            pace = self.learner.how.pace(t)
            with autocast(self.device, self.mixed):
                report["critic"] = critic.learn(painted.real, painted.fake, t, pace)

    def state(self) -> dict[str, Any]:
        """Everything needed for resuming."""
        critic = {"critic": self.critic.state()} if self.critic else {}
        return self.learner.state() | critic

    def load(self, state: dict[str, Any]) -> None:
        """Restores what `state` returned."""
        self.learner.load(state)
        if self.critic:
            self.critic.load(state["critic"])


class RestoringStage(ImageStage[CodeFormer]):
    """A stage whose network restores faces.

    Attributes:
        shown: the fidelities w on its sample sheets.
    """

    shown: tuple[float, ...] = (0.0, 0.5, 1.0)

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: clean, then degraded and restored for each damage."""
        network, columns = self.learner.average, [clean]
        match = network.config.match_statistics
        for damage in (LARGE, SMALL):
            damaged = degrade(clean, damage.scaled(clean.shape[-1]), generator, Part(len(clean)))
            restored = (network(to_network(damaged), w, match) for w in self.shown)
            columns += [damaged, *map(to_picture, restored)]
        return columns


class Autoencoder(ImageStage[VQGAN]):
    """Stage I.

    Args:
        recipe: the settings.
        perceptual: frozen network of the perceptual term, called with (x', x); None for no term.
        device: where to train.
        mixed: bfloat16 where the device supports it.
        identity: a recogniser's distances; None: they are not used.
        start: path of a whole network's weights or checkpoint, whose encoder, codebook and
            generator are trained further; None: random weights.
    """

    name = "autoencoder"

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        perceptual: nn.Module | None,
        device: torch.device,
        mixed: bool = False,
        identity: IdentityDistance | None = None,
        start: Path | None = None,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        size, weight = recipe.model.image_size, recipe.perceptual.weight
        self.compare = Comparison(size, perceptual, weight, identity=identity).to(device)
        self.network = VQGAN(recipe.model.autoencoder)
        if start:
            weights = checkpoint.averaged(start)
            used = {k: weights[k] for k in self.network.state_dict() if k in weights}
            load_strictly(self.network, used, start, "autoencoder")
        self.network.to(device)
        moving = recipe.codebook.update == "ema"
        self.network.quantize.requires_grad_(not moving)
        self.learner = Learner(self.network, recipe.optimisation)
        self.critic = Critic(recipe.adversary).to(device) if recipe.adversary else None
        codes = self.network.quantize.embedding.weight
        self.codebook = MovingCodebook(codes, recipe.codebook) if moving else None
        self.waiting: list[Tensor] = []  # latents (B,T,d) for k-means

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on clean faces; returns its losses."""
        x = to_network(clean)
        report: Report = {}
        how = self.recipe.codebook
        with autocast(self.device, self.mixed):
            latent = self.network.encode(x)
        latent = latent.float()  # bfloat16 would change some codes
        quantised = self.network.quantize(latent) if t > how.kmeans_after else None
        with autocast(self.device, self.mixed):
            fake = self.network.decode(quantised.values if quantised else latent)
        total, rec, terms = self.compare(fake, x)
        if quantised:
            book = losses.codebook_loss(latent, quantised.vectors, how.beta, how.beta_on)
            total = total + book
            size = len(self.network.quantize.embedding.weight)
            used = perplexity(all_sum(histogram(quantised.codes, size)))
            # Bits per face, if its codes are coded by their frequencies in the batch.
            bits = quantised.codes.shape[1] * used.log2()
            report |= {"codebook": book, "perplexity": used, "bits": bits}
        last = self.network.generator.last_weight
        self.update(t, total, report, CriticInput(fake, x, rec, last))
        if self.codebook:
            self._move_codes(t, _rows(latent), quantised, generator)
        self.learner.follow(t)
        return detached(terms | report)

    def _move_codes(
        self, t: int, latents: Tensor, quantised: Quantized | None, generator: torch.Generator
    ) -> None:
        assert self.codebook is not None
        if quantised:
            self.codebook.follow(latents, quantised.codes.flatten(), generator)
            return
        wanted = KMEANS_LATENTS * len(self.codebook.codes)
        keep = -(-wanted // (latents[..., 0].numel() * place()[1]))  # batches
        self.waiting = [*self.waiting[1 - keep :], latents] if keep > 1 else [latents]
        if t == self.recipe.codebook.kmeans_after:
            self.codebook.start(torch.cat(self.waiting), generator)
            self.waiting = []

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: clean, reconstructed by the averaged weights."""
        average = self.learner.average
        return [clean, to_picture(average(to_network(clean)))]

    def state(self) -> dict[str, Any]:
        state = super().state() | {"waiting": [whole(latents) for latents in self.waiting]}
        if self.codebook:
            state["codebook"] = self.codebook.state()
        return state

    def load(self, state: dict[str, Any]) -> None:
        super().load(state)
        rank, world = place()
        waiting = (latents.to(self.device) for latents in state["waiting"])
        self.waiting = [Part(len(latents), rank, world).of(latents) for latents in waiting]
        if self.codebook:
            self.codebook.load(state["codebook"])


class CodePrediction(RestoringStage):
    """Stage II, starting from the autoencoder of stage I.

    Args:
        recipe: the settings.
        autoencoder: path of stage I's checkpoint; its averaged weights initialise the network and
            give the target codes.
        device, mixed: as in `Autoencoder`.
        start: path of a whole network's weights or checkpoint, which initialise the network
            instead, to train it further. If its codebook is not the autoencoder's, codebook and
            generator still come from the autoencoder, because they belong together.
        perceptual, identity: as in `Autoencoder`, for the appearance of the painted codes.
    """

    name = "codes"
    shown = (0.0,)

    def __init__(
        self,
        recipe: CodesRecipe,
        autoencoder: Path,
        device: torch.device,
        mixed: bool = False,
        start: Path | None = None,
        perceptual: nn.Module | None = None,
        identity: IdentityDistance | None = None,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        self.compare: Comparison | None = None
        if look := recipe.appearance:
            size, weight = recipe.model.image_size, look.perceptual.weight
            self.compare = Comparison(size, perceptual, weight, eyes=look.eyes, identity=identity)
            self.compare.to(device)
        self.network = CodeFormer(recipe.model)
        self.teacher = Teacher(autoencoder, recipe.model).to(device)
        parts: tuple[str, ...] = ("encoder", "quantize", "generator")
        if start:
            load_strictly(self.network, checkpoint.averaged(start), start, "CodeFormer")
            codes, taught = (
                network.quantize.embedding.weight.half().cpu()  # exported weights are rounded
                for network in (self.network, self.teacher.autoencoder)
            )
            same = torch.equal(codes, taught)
            parts = () if same else ("quantize", "generator")
        for part in parts:
            source = self.teacher.autoencoder.get_submodule(part).state_dict()
            self.network.get_submodule(part).load_state_dict(source)
        _freeze(self.network)
        self.network.fuse_convs_dict.requires_grad_(False)
        self.learner = Learner(self.network.to(device), recipe.optimisation)

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on clean faces; returns its losses."""
        parts = shared_out([share for _, share in self.recipe.degradations], len(clean))
        damages = [damage for damage, _ in self.recipe.degradations]
        damaged = degrade_parts(clean, parts, damages, generator)
        x = to_network(clean)
        targets = self.teacher.codes(x)
        with autocast(self.device, self.mixed):
            latent, _ = self.network.encode(to_network(damaged))
            total, report = predict(
                self.network, latent, targets, self.recipe.feature_weight, self.recipe.code_weight
            )
        if self.recipe.appearance and self.compare:
            difference = self.compare(self._painted(report["logits"]), x)
            total = total + self.recipe.appearance.weight * difference.total
            report |= difference.report
        self.learner.update(total, t)
        self.learner.follow(t)
        return detached(report)

    def _painted(self, logits: Tensor) -> Tensor:
        """The faces (B,3,S,S) painted from the codes of largest logits (B,T,K).

        The gradient is computed as if the expected vectors were painted, since the choice of a code
        has none (the straight-through estimator, Bengio et al. 2013).
        """
        network = self.network
        with autocast(self.device, self.mixed):
            expected = network.expected(logits, network.config.consensus or 1.0)
            chosen = network.lookup(network.choose(logits.detach()))
            return network.decode(expected + (chosen - expected).detach(), {}, 0)


class Fusion(RestoringStage):
    """Stage III, starting from the network of stage II.

    Args:
        recipe: the settings.
        codes: path of stage II's checkpoint, whose averaged weights initialise the network.
        autoencoder: path of stage I's checkpoint, which gives the target codes and, if it trained
            one, the initial discriminator, which must have the same shape.
        perceptual, device, mixed: as in `Autoencoder`.
    """

    name = "fusion"

    def __init__(
        self,
        recipe: FusionRecipe,
        codes: Path,
        autoencoder: Path,
        perceptual: nn.Module | None,
        device: torch.device,
        mixed: bool = False,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        size, weight = recipe.model.image_size, recipe.perceptual.weight
        self.compare = Comparison(size, perceptual, weight).to(device)
        self.network = CodeFormer(recipe.model)
        load_strictly(self.network, checkpoint.averaged(codes), codes, "CodeFormer")
        if recipe.zero_start:
            zero_fusion(self.network)
        _freeze(self.network)
        self.teacher = Teacher(autoencoder, recipe.model).to(device)
        self.learner = Learner(self.network.to(device), recipe.optimisation)
        self.critic: Critic | None = None
        if recipe.adversary:
            self.critic = Critic(recipe.adversary).to(device)
            self._start_critic(self.critic, autoencoder)
        last = self.network.fuse_convs_dict[str(recipe.model.connect[-1])].get_submodule("shift.2")
        assert isinstance(last, nn.Conv2d)
        self.balance_at = last.weight

    @staticmethod
    def _start_critic(critic: Critic, autoencoder: Path) -> None:
        trained = checkpoint.read(autoencoder).get("critic")
        if trained is None:
            return
        try:
            critic.network.load_state_dict(trained["params"])
        except RuntimeError as error:
            raise CheckpointError(
                f"the discriminator in {autoencoder} has another shape"
            ) from error

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Runs iteration t on clean faces; returns its losses."""
        w = self.recipe.fidelity(t)
        damage = (self.recipe.large if w is None else self.recipe.small).scaled(clean.shape[-1])
        x = to_network(clean)
        damaged = to_network(degrade(clean, damage, generator))
        targets = self.teacher.codes(x)
        with autocast(self.device, self.mixed):
            latent, skips = self.network.encode(damaged)
            total, report = predict(
                self.network, latent, targets, self.recipe.feature_weight, self.recipe.code_weight
            )
            if w is not None:
                # Neither the chosen codes nor the skips have gradient: the image trains only the
                # fusion.
                codes = self.network.choose(report.pop("logits"))
                # The skips require gradient nevertheless: torch 2.13's group norm on the CPU
                # crashes if its parameters do and its channels_last input does not.
                kept = {side: skip.detach().requires_grad_() for side, skip in skips.items()}
                fake = self.network.decode(self.network.lookup(codes), kept, w)
        painted = None
        if w is not None:
            difference, rec, terms = self.compare(fake, x)
            total = total + difference
            report |= terms
            painted = CriticInput(fake, x, rec, self.balance_at)
        self.update(t, total, report, painted)
        self.learner.follow(t)
        return detached(report)


def predict(
    network: CodeFormer, latent: Tensor, targets: Tensor, feature_weight: float, code_weight: float
) -> tuple[Tensor, Report]:
    """The weighted code losses of a degraded face's latent; the report also holds the logits.

    The losses cover all readings of the latent, see `CodeFormer.predictions`; logits and accuracy
    are those of the last reading.
    """
    readings = network.predictions(latent)
    feature, code = losses.code_losses(
        latent.float(),
        torch.cat(readings).float(),
        network.lookup(targets),
        targets.repeat(len(readings), 1),
    )
    logits = readings[-1]
    accuracy = (logits.argmax(-1) == targets).float().mean()
    report = {"feature": feature, "code": code, "accuracy": accuracy, "logits": logits}
    return feature_weight * feature + code_weight * code, report


def shared_out(shares: Sequence[float], count: int) -> list[Part]:
    """Splits this process's faces, `count` of them, into parts in proportion to shares."""
    part = Part.own(count)
    portions = torch.tensor(shares)
    ends = (portions.cumsum(0) / portions.sum() * part.whole).round().long()
    return part.split(ends.diff(prepend=ends.new_zeros(1)).tolist())


def degrade_parts(
    clean: Tensor, parts: Sequence[Part], damages: Sequence[Degradation], generator: torch.Generator
) -> Tensor:
    """Damages clean faces (B,3,S,S) in [0, 1], each part by its own degradation (for 512 px)."""
    pieces = clean.split([len(part) for part in parts])
    return torch.cat(
        [
            degrade(piece, damage.scaled(clean.shape[-1]), generator, part)
            for piece, part, damage in zip(pieces, parts, damages, strict=True)
            if part.whole
        ]
    )


def zero_fusion(network: CodeFormer) -> None:
    """Makes every fusion block an identity for any w, by zeroing its last convolutions."""
    for block in network.fuse_convs_dict.children():
        for branch in ("scale.2", "shift.2"):
            for parameter in block.get_submodule(branch).parameters():
                nn.init.zeros_(parameter)


def _freeze(network: CodeFormer) -> None:
    network.quantize.requires_grad_(False)
    network.generator.requires_grad_(False)


def _rows(latent: Tensor) -> Tensor:
    return latent.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B,T,d)


def detached(report: Report) -> Report:
    """The scalars of a report, without gradient."""
    return {k: v.detach() for k, v in report.items() if v.ndim == 0}
