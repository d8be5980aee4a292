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
    """The trained autoencoder of stage I, which defines the codes of clean faces.

    Args:
        path: checkpoint of stage I, or a published autoencoder file.
        config: configuration of the network to be taught.
    Raises:
        CheckpointError: the file is missing, damaged, or holds another network.
    """

    def __init__(self, path: Path, config: CodeFormerConfig) -> None:
        self.autoencoder = VQGAN(config.autoencoder)
        load_strictly(self.autoencoder, checkpoint.averaged(path), path, "autoencoder")
        self.autoencoder.eval().requires_grad_(False)

    @property
    def digest(self) -> str:
        """Identifies the autoencoder by everything that decides its codes."""
        parts = (self.autoencoder.encoder, self.autoencoder.quantize)
        return digest_of(p for part in parts for p in part.parameters())

    @property
    def codebook_digest(self) -> str:
        """Identifies the codebook, regardless of the networks that use it."""
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
        """Paints code maps (B,h,w) as pictures in [0, 1]."""
        vectors = self.autoencoder.quantize.embedding(codes).permute(0, 3, 1, 2)
        return to_picture(self.autoencoder.decode(vectors))
