"""Slow references of the building blocks, and random video for them."""

import itertools

import torch
from torch import Tensor

from cvvae_cli.layers import Padding


def video(*shape: int) -> Tensor:
    return torch.randn(*shape).contiguous(memory_format=torch.channels_last_3d)


def slow_pad(x: Tensor, padding: Padding) -> Tensor:
    """Index by index: what lies outside is the nearest inside, or zero."""
    sizes = x.shape[2:]
    before = (padding.time[0], padding.space[0], padding.space[2])
    after = (padding.time[1], padding.space[1], padding.space[3])
    modes = (padding.time_mode, padding.space_mode, padding.space_mode)
    out = x.new_zeros(*x.shape[:2], *(b + n + a for b, n, a in zip(before, sizes, after)))
    for place in itertools.product(*(range(n) for n in out.shape[2:])):
        inside = [p - b for p, b in zip(place, before)]
        outside = [not 0 <= i < n for i, n in zip(inside, sizes)]
        if not any(o and mode == "zeros" for o, mode in zip(outside, modes)):
            t, h, w = (min(max(i, 0), n - 1) for i, n in zip(inside, sizes))
            out[(..., *place)] = x[:, :, t, h, w]
    return out
