"""The three stages: what one step of each computes and changes.

    I   Autoencoder    encoder, codebook and generator learn to reproduce clean faces
    II  CodePrediction encoder and transformer learn the clean face's codes from a degraded one
    III Fusion         the fusion learns how much of the degraded face's detail to keep
        Polish         generator and fusion learn once more together, on fixed codes

A stage holds networks and optimisers; the loop that feeds it knows nothing else about it.
Images are (B,3,S,S); clean faces come in [0, 1], networks see [-1, 1].
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cfrestore.align import FFHQ_TEMPLATE, PUBLISHED_SIZE
from cfrestore.checkpoint import digest_of, load_strictly
from cfrestore.device import autocast
from cfrestore.errors import CheckpointError
from cfrestore.models.codeformer import (
    CodeFormer,
    CodeFormerConfig,
    ControllableFeatureTransform,
    TransformerLayer,
)
from cfrestore.models.vqgan import (
    VQGAN,
    AttentionBlock,
    PatchDiscriminator,
    ResidualBlock,
    VectorQuantizer,
    histogram,
    perplexity,
)
from cfrestore.train import checkpoint, losses
from cfrestore.train.codebook import MovingCodebook
from cfrestore.train.config import (
    LARGE,
    SMALL,
    Adversary,
    AutoencoderRecipe,
    CodesRecipe,
    Degradation,
    FusionRecipe,
    Optimisation,
    PolishRecipe,
)
from cfrestore.train.degrade import degrade
from cfrestore.train.distributed import Part, all_sum, average_gradients, place, whole

KMEANS_LATENTS = 50
"""Latents collected for each code before k-means."""

BLOCKS = (ResidualBlock, AttentionBlock, ControllableFeatureTransform, TransformerLayer)

EYE = 20
"""Size of an eye in an aligned face of 512 px: the deviation of its bump in `eye_map`, px."""

Report = dict[str, Tensor]
Network = TypeVar("Network", bound=nn.Module)


class Learner(Generic[Network]):
    """A network that learns, its optimiser and the moving average of its weights."""

    def __init__(self, network: Network, how: Optimisation) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(network).eval().requires_grad_(False)
        self.how = how
        self.optimiser = torch.optim.Adam(
            [p for p in network.parameters() if p.requires_grad],
            lr=how.learning_rate,
            betas=how.betas,
        )

    def update(self, loss: Tensor, t: int) -> None:
        """One Adam step at the rate of iteration t."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = self.how.rate(t)
        self.optimiser.step()

    @torch.no_grad()
    def follow(self, t: int) -> None:
        """Moves the averaged weights toward the network's."""
        move = get_ema_multi_avg_fn(self.how.decay(t))  # all in a few launches
        move(list(self.average.parameters()), list(self.network.parameters()), t)

    def state(self) -> dict[str, Any]:
        return {
            "params": self.network.state_dict(),
            "params_ema": self.average.state_dict(),
            "optimiser": self.optimiser.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["params"])
        self.average.load_state_dict(state["params_ema"])
        self.optimiser.load_state_dict(state["optimiser"])


class Critic:
    """The discriminator and its optimiser."""

    def __init__(self, recipe: Adversary) -> None:
        self.recipe = recipe
        self.network = PatchDiscriminator(recipe.channels, recipe.layers)
        self.optimiser = torch.optim.Adam(
            self.network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.99)
        )

    def to(self, device: torch.device) -> Critic:
        self.network.to(device).to(memory_format=torch.channels_last)
        return self

    def heard(self, t: int) -> bool:
        """Whether the generator listens at iteration t."""
        return t > self.recipe.start

    def learns(self, t: int) -> bool:
        return t > self.recipe.start - self.recipe.lead

    def judge(self, fake: Tensor, reconstruction: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The adversarial term, weighted adaptively, and that weight.

        Args:
            fake: generated images, with gradient.
            reconstruction: the loss to balance against.
            weight: the parameter at which the two gradients are compared.
        """
        self.network.requires_grad_(False)
        loss = losses.hinge_generator(self.network(fake).float())
        factor = losses.adaptive_weight(reconstruction, loss, weight, self.recipe.largest)
        return self.recipe.scale * factor * loss, factor

    def learn(self, real: Tensor, fake: Tensor, pace: float) -> Tensor:
        """One step of the discriminator; real and fake pass separately, as BatchNorm demands.

        Args:
            pace: learning rate over that at the start.
        """
        self.network.requires_grad_(True)
        loss = losses.hinge_discriminator(
            self.network(real).float(), self.network(fake.detach()).float()
        )
        if self.recipe.halved:
            loss = loss / 2
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        average_gradients(self.network)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * pace
        self.optimiser.step()
        return loss.detach()

    def state(self) -> dict[str, Any]:
        return {"params": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["params"])
        self.optimiser.load_state_dict(state["optimiser"])


class Autoencoder:
    """Stage I.

    Args:
        recipe: the knobs.
        perceptual: frozen network of the perceptual term, called with (x', x); None for no term.
        device: where to train.
        mixed: bfloat16 where the device supports it.
    """

    name = "autoencoder"

    def __init__(
        self,
        recipe: AutoencoderRecipe,
        perceptual: nn.Module | None,
        device: torch.device,
        mixed: bool = False,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        self.perceptual = perceptual and perceptual.to(device)
        self.network = VQGAN(recipe.model.autoencoder).to(device)
        moving = recipe.codebook.update == "ema"
        self.network.quantize.requires_grad_(not moving)
        self.learner = Learner(self.network, recipe.optimisation)
        self.critic = recipe.adversary and Critic(recipe.adversary).to(device)
        codes = self.network.quantize.embedding.weight
        self.codebook = MovingCodebook(codes, recipe.codebook) if moving else None
        self.waiting: list[Tensor] = []  # latents (B,T,d) for k-means

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Iteration t on clean faces; the losses it saw."""
        x = _to_network(clean)
        report: Report = {}
        quantised = t > self.recipe.codebook.kmeans_after
        with autocast(self.device, self.mixed):
            latent = self.network.encode(x)
        latent = quantised_latent = latent.float()
        if quantised:  # in full precision: in bfloat16 some codes would be others
            codes = self.network.quantize.nearest(latent.detach())
            vectors = self.network.quantize.lookup(codes, latent.shape[-1])
            quantised_latent = latent + (vectors - latent).detach()
        with autocast(self.device, self.mixed):
            fake = self.network.decode(quantised_latent)
        rec, terms = image_losses(fake, x, self.perceptual, self.recipe.perceptual.weight)
        total = rec
        if quantised:
            how = self.recipe.codebook
            book = losses.codebook_loss(latent, vectors, how.beta, how.beta_on)
            total = total + book
            size = len(self.network.quantize.embedding.weight)
            used = perplexity(all_sum(histogram(codes, size)))
            # Bits that the codes of a face take if each is written by how often the batch has it.
            bits = codes.shape[1] * used.log2()
            report |= {"codebook": book, "perplexity": used, "bits": bits}
        if self.critic and self.critic.heard(t):
            last = self.network.generator.last_weight
            with autocast(self.device, self.mixed):
                adversarial, report["lambda"] = self.critic.judge(fake, rec, last)
            total = total + adversarial
        self.learner.update(total, t)
        if self.critic and self.critic.learns(t):
            with autocast(self.device, self.mixed):
                report["critic"] = self.critic.learn(x, fake, self.recipe.optimisation.pace(t))
        if self.codebook:
            self._move_codes(t, _rows(latent), codes.flatten() if quantised else None, generator)
        self.learner.follow(t)
        return _detached(terms | report)

    def _move_codes(
        self, t: int, latents: Tensor, codes: Tensor | None, generator: torch.Generator
    ) -> None:
        assert self.codebook is not None
        if codes is not None:
            self.codebook.follow(latents, codes, generator)
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
        return [clean, _to_picture(average(_to_network(clean)))]

    def state(self) -> dict[str, Any]:
        state = self.learner.state() | {"waiting": [whole(latents) for latents in self.waiting]}
        if self.critic:
            state["critic"] = self.critic.state()
        if self.codebook:
            state["codebook"] = self.codebook.state()
        return state

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)
        rank, world = place()
        waiting = (latents.to(self.device) for latents in state["waiting"])
        self.waiting = [Part(len(latents), rank, world).of(latents) for latents in waiting]
        if self.critic:
            self.critic.load(state["critic"])
        if self.codebook:
            self.codebook.load(state["codebook"])


class Teacher:
    """The trained autoencoder of stage I, which says what the codes of a clean face are.

    Args:
        path: checkpoint of stage I, or a published autoencoder file.
        config: shape of the network that will be taught.
    Raises:
        CheckpointError: the file is missing, damaged, or holds another network.
    """

    def __init__(self, path: Path, config: CodeFormerConfig) -> None:
        self.autoencoder = VQGAN(config.autoencoder)
        load_strictly(self.autoencoder, checkpoint.averaged(path), path, "autoencoder")
        self.autoencoder.eval().requires_grad_(False)

    @property
    def digest(self) -> str:
        """What tells its codes from those of other autoencoders."""
        parts = (self.autoencoder.encoder, self.autoencoder.quantize)
        return digest_of(p for part in parts for p in part.parameters())

    @property
    def codebook_digest(self) -> str:
        """What tells its codebook from others, whatever learned to use it since."""
        return digest_of([self.autoencoder.quantize.embedding.weight])

    def to(self, device: torch.device) -> Teacher:
        self.autoencoder.to(device).to(memory_format=torch.channels_last)
        return self

    @torch.no_grad()
    def codes(self, clean: Tensor, mixed: bool = False) -> Tensor:
        """Codes (B,T) of clean faces in [-1, 1], encoded in full precision unless mixed."""
        quantizer: VectorQuantizer = self.autoencoder.quantize
        with autocast(clean.device, mixed):
            latent = self.autoencoder.encode(clean)
        return quantizer.nearest(latent)

    @torch.no_grad()
    def paint(self, codes: Tensor) -> Tensor:
        """Pictures in [0, 1] of code maps (B,h,w)."""
        vectors = self.autoencoder.quantize.embedding(codes).permute(0, 3, 1, 2)
        return _to_picture(self.autoencoder.decode(vectors))


class CodePrediction:
    """Stage II, from the autoencoder of stage I.

    Args:
        recipe: the knobs.
        autoencoder: path of stage I's checkpoint; its averaged weights start the network and
            decide the target codes.
        device, mixed: as in stage I.
    """

    name = "codes"

    def __init__(
        self, recipe: CodesRecipe, autoencoder: Path, device: torch.device, mixed: bool = False
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        self.network = CodeFormer(recipe.model)
        self.teacher = Teacher(autoencoder, recipe.model).to(device)
        for part in ("encoder", "quantize", "generator"):
            source = self.teacher.autoencoder.get_submodule(part).state_dict()
            self.network.get_submodule(part).load_state_dict(source)
        _freeze(self.network)
        self.network.fuse_convs_dict.requires_grad_(False)
        self.learner = Learner(self.network.to(device), recipe.optimisation)

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Iteration t on clean faces; the losses it saw."""
        size = clean.shape[-1]
        shares = torch.tensor([share for _, share in self.recipe.degradations])
        part = Part.own(len(clean))
        ends = (shares.cumsum(0) / shares.sum() * part.whole).round().long()
        parts = part.split(ends.diff(prepend=ends.new_zeros(1)).tolist())
        pieces = clean.split([len(part) for part in parts])
        damaged = torch.cat(
            [
                degrade(piece, damage.scaled(size), generator, part)
                for piece, part, (damage, _) in zip(
                    pieces, parts, self.recipe.degradations, strict=True
                )
                if part.whole
            ]
        )
        targets = self.teacher.codes(_to_network(clean))
        with autocast(self.device, self.mixed):
            latent, _ = self.network.encode(_to_network(damaged))
            total, report = predict(
                self.network, latent, targets, self.recipe.feature_weight, self.recipe.code_weight
            )
        self.learner.update(total, t)
        self.learner.follow(t)
        return _detached(report)

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: clean, then degraded and restored for each damage."""
        return [clean, *_restored(self.learner.average, clean, (LARGE, SMALL), (0.0,), generator)]

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


class Fusion:
    """Stage III, from the network of stage II.

    Args:
        recipe: the knobs.
        codes: path of stage II's checkpoint, whose averaged weights start the network.
        autoencoder: path of stage I's checkpoint: the target codes and, if it trained one of the
            same shape, the discriminator.
        perceptual, device, mixed: as in stage I.
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
        self.perceptual = perceptual and perceptual.to(device)
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
        """Iteration t on clean faces; the losses it saw."""
        w = self.recipe.fidelity(t)
        damage = (self.recipe.large if w is None else self.recipe.small).scaled(clean.shape[-1])
        x = _to_network(clean)
        damaged = _to_network(degrade(clean, damage, generator))
        targets = self.teacher.codes(x)
        with autocast(self.device, self.mixed):
            latent, skips = self.network.encode(damaged)
            total, report = predict(
                self.network, latent, targets, self.recipe.feature_weight, self.recipe.code_weight
            )
            if w is not None:
                # Neither the chosen codes nor the skips carry gradient: the image teaches the
                # fusion alone.
                codes = report.pop("logits").argmax(-1)
                # They ask for gradient all the same: torch 2.13's group norm on the CPU crashes
                # where its parameters learn and its channels_last input does not.
                kept = {side: skip.detach().requires_grad_() for side, skip in skips.items()}
                fake = self.network.decode(self.network.lookup(codes), kept, w)
        if w is not None:
            rec, terms = image_losses(fake, x, self.perceptual, self.recipe.perceptual.weight)
            total = total + rec
            report |= terms
            if self.critic and self.critic.heard(t):
                with autocast(self.device, self.mixed):
                    adversarial, report["lambda"] = self.critic.judge(fake, rec, self.balance_at)
                total = total + adversarial
        self.learner.update(total, t)
        self.learner.follow(t)
        if w is not None and self.critic and self.critic.learns(t):
            with autocast(self.device, self.mixed):
                report["critic"] = self.critic.learn(x, fake, self.recipe.optimisation.pace(t))
        return _detached(report)

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet: clean, then degraded and w = 0, 0.5, 1 for each damage."""
        average = self.learner.average
        return [clean, *_restored(average, clean, (LARGE, SMALL), (0.0, 0.5, 1.0), generator)]

    def state(self) -> dict[str, Any]:
        critic = {"critic": self.critic.state()} if self.critic else {}
        return self.learner.state() | critic

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)
        if self.critic:
            self.critic.load(state["critic"])


class Polish:
    """After stage III: generator and fusion together, on fixed codes.

    Args:
        recipe: the knobs.
        fusion: path of stage III's checkpoint, whose averaged weights start the network.
        autoencoder: path of stage I's checkpoint: the codes of clean faces.
        perceptual, device, mixed: as in stage I.
    """

    name = "polish"

    def __init__(
        self,
        recipe: PolishRecipe,
        fusion: Path,
        autoencoder: Path,
        perceptual: nn.Module | None,
        device: torch.device,
        mixed: bool = False,
    ) -> None:
        self.recipe, self.device, self.mixed = recipe, device, mixed
        self.perceptual = perceptual and perceptual.to(device)
        self.network = CodeFormer(recipe.model)
        load_strictly(self.network, checkpoint.averaged(fusion), fusion, "CodeFormer")
        self.network.requires_grad_(False)
        for part in (self.network.generator, self.network.fuse_convs_dict):
            part.requires_grad_(True)
        self.teacher = Teacher(autoencoder, recipe.model).to(device)
        self.learner = Learner(self.network.to(device), recipe.optimisation)
        self.eyes = eye_map(recipe.model.image_size).to(device)

    def step(self, t: int, clean: Tensor, generator: torch.Generator) -> Report:
        """Iteration t on clean faces; the losses it saw."""
        x = _to_network(clean)
        part = Part.own(len(x))
        first, second = part.split([part.whole // 2, part.whole - part.whole // 2])
        half = len(first)
        with torch.no_grad():
            codes = self.teacher.codes(x[:half])
            damage = self.recipe.damage.scaled(x.shape[-1])
            damaged = degrade(clean[half:], damage, generator, second)
        with autocast(self.device, self.mixed):
            with torch.no_grad():
                latent, skips = self.network.encode(_to_network(damaged))
                predicted = self.network.predict_codes(latent).argmax(-1)
            kept = {side: skip.requires_grad_() for side, skip in skips.items()}  # see Fusion
            fakes = (
                self.network.decode(self.network.lookup(codes), {}, 0),
                self.network.decode(self.network.lookup(predicted), kept, 1),
            )
        fake = torch.cat(fakes).float()
        total, report = image_losses(fake, x, self.perceptual, self.recipe.perceptual.weight)
        report["eyes"] = (self.eyes * (fake - x).abs()).mean()
        self.learner.update(total + self.recipe.eyes * report["eyes"], t)
        self.learner.follow(t)
        return _detached(report)

    @torch.no_grad()
    def pictures(self, clean: Tensor, generator: torch.Generator) -> list[Tensor]:
        """Columns of a sample sheet, as in stage III."""
        average = self.learner.average
        return [clean, *_restored(average, clean, (LARGE, SMALL), (0.0, 0.5, 1.0), generator)]

    def state(self) -> dict[str, Any]:
        return self.learner.state()

    def load(self, state: dict[str, Any]) -> None:
        self.learner.load(state)


Stage = Autoencoder | CodePrediction | Fusion | Polish


def image_losses(
    fake: Tensor, real: Tensor, perceptual: nn.Module | None, weight: float
) -> tuple[Tensor, Report]:
    """Mean absolute difference plus the weighted perceptual distance; the sum, and its terms."""
    fake = fake.float()
    pixel = (fake - real).abs().mean()
    if perceptual is None:
        return pixel, {"pixel": pixel}
    distance = perceptual(fake, real)
    return pixel + weight * distance, {"pixel": pixel, "perceptual": distance}


def predict(
    network: CodeFormer, latent: Tensor, targets: Tensor, feature_weight: float, code_weight: float
) -> tuple[Tensor, Report]:
    """The weighted code losses of a degraded face's latent; the report also holds the logits."""
    logits = network.predict_codes(latent)
    feature, code = losses.code_losses(
        latent.float(), logits.float(), network.lookup(targets), targets
    )
    accuracy = (logits.argmax(-1) == targets).float().mean()
    report = {"feature": feature, "code": code, "accuracy": accuracy, "logits": logits}
    return feature_weight * feature + code_weight * code, report


def compile_blocks(network: nn.Module) -> None:
    """Has torch compile the network's blocks, each once for each shape, when it first sees it.

    What is between convolutions is then done in one pass instead of six. Compiling the network as a
    whole takes several times as long, and gives little more.
    """
    # The adaptive weight differentiates through the same graph more than once.
    torch._functorch.config.donated_buffer = False
    torch._dynamo.config.recompile_limit = 64  # shapes of a block
    for block in network.modules():
        if isinstance(block, BLOCKS):
            block.compile(dynamic=False)


def eye_map(side: int) -> Tensor:
    """(side, side): 1 in the middle of an eye of an aligned face, falling to 0 around it."""
    at = (torch.arange(side) + 0.5) * PUBLISHED_SIZE / side  # px at 512
    bumps = [
        torch.exp(-((at[:, None] - y) ** 2 + (at - x) ** 2) / (2 * EYE**2))
        for x, y in FFHQ_TEMPLATE[:2].tolist()
    ]
    return torch.stack(bumps).amax(0)


def zero_fusion(network: CodeFormer) -> None:
    """Makes every fusion block change nothing, whatever w: its last convolutions become zero."""
    for block in network.fuse_convs_dict.children():
        for branch in ("scale.2", "shift.2"):
            for parameter in block.get_submodule(branch).parameters():
                nn.init.zeros_(parameter)


def _freeze(network: CodeFormer) -> None:
    network.quantize.requires_grad_(False)
    network.generator.requires_grad_(False)


def _restored(
    network: CodeFormer,
    clean: Tensor,
    damages: tuple[Degradation, ...],
    fidelities: tuple[float, ...],
    generator: torch.Generator,
) -> list[Tensor]:
    columns = []
    match = network.config.match_statistics
    for damage in damages:
        damaged = degrade(clean, damage.scaled(clean.shape[-1]), generator, Part(len(clean)))
        columns.append(damaged)
        columns += [_to_picture(network(_to_network(damaged), w, match)) for w in fidelities]
    return columns


def _to_network(clean: Tensor) -> Tensor:
    return (clean * 2 - 1).to(memory_format=torch.channels_last)


def _to_picture(x: Tensor) -> Tensor:
    return ((x.float() + 1) / 2).clamp(0, 1)


def _rows(latent: Tensor) -> Tensor:
    return latent.detach().permute(0, 2, 3, 1).flatten(1, 2)  # (B,T,d)


def _detached(report: Report) -> Report:
    return {k: v.detach() for k, v in report.items() if v.ndim == 0}
