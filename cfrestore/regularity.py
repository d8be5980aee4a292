"""Measures regular patterns, which networks paint where they have no detail to go by."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def regularity(x: Tensor, side: int = 32) -> Tensor:
    """The share of fine detail that is a regular pattern, such as a weave in hair.

    Feature distances reward texture even where the input does not determine it. The network has no
    noise to make texture from, and so repeats one wave. The energy of such a wave lies in few
    frequencies of a region, that of hair and skin in many. So energy above three times the mean of
    the 5x5 frequencies around it counts as regular; of white noise, this is a twentieth.

    Args:
        x: pictures (B,3,S,S) in [-1, 1].
        side: of the regions, pixels, which overlap by half; detail is fine if shorter than 8 px.
    Returns:
        The mean over all regions and colours.
    """
    hann = torch.hann_window(side, device=x.device)
    regions = x.unfold(2, side, side // 2).unfold(3, side, side // 2) * torch.outer(hann, hann)
    energy = torch.view_as_real(torch.fft.fft2(regions)).square().sum(-1).flatten(0, 3)
    wrapped = F.pad(energy.detach()[:, None], (2, 2, 2, 2), mode="circular")
    around = F.avg_pool2d(wrapped, 5, stride=1)[:, 0]
    cycles = torch.fft.fftfreq(side, 1 / side, device=x.device)
    fine = torch.hypot(cycles[:, None], cycles) > side / 8
    peaks = (energy - 3 * around).clamp(min=0)[:, fine].sum(1)
    return (peaks / (energy[:, fine].sum(1) + 1)).mean()  # 1: noise of a third of a level
