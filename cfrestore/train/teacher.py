"""The trained autoencoder of stage I, from which later stages and priors learn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cfrestore.checkpoint import digest_of, load_strictly
from cfrestore.device import autocast
from cfrestore.models.codeformer import CodeFormerConfig
from cfrestore.models.vqgan import VQGAN, VectorQuantizer
from cfrestore.train import checkpoint
from cfrestore.train.data import to_picture


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
        return to_picture(self.autoencoder.decode(vectors))
