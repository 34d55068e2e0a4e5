"""Group statistics, normalising and adding in plain torch, for processors without Triton.

The `..._plain` functions are for the CPU and keep no graph: they walk over blocks that stay in the caches from one step
to the next, so that memory is read once and written once. The `..._differentiable` ones are for autograd, for tracing
compilers and for any device.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import torch
import torch.nn.functional as F

from cvvae_kernels.layout import PadMode, empty_padded, memory_format_of, padded_shape
from cvvae_kernels.moments import Moments
from cvvae_kernels.plain import fill_borders, interior

# Of a block, for each thread: little enough for the caches, enough that starting the threads does not count.
_BLOCK_BYTES = 1 << 20


def exact_dtype(x: torch.Tensor) -> torch.dtype:
    """What statistics of x are computed in: float32, or float64 for float64."""
    return torch.promote_types(x.dtype, torch.float32)


def group_statistics_plain(x: torch.Tensor, groups: int) -> Moments:
    """`group_statistics_reference` block by block, in float32; arguments are taken as checked.

    Deviations are squared and summed around each block's own mean, but that mean is torch's plain sum: where means are
    ten thousand times the deviations, M2 is right to 1e-3 only.
    """
    return _pooled(x, groups, lambda region: x[region])


def add_with_statistics_plain(h: torch.Tensor, x: torch.Tensor, groups: int) -> Moments:
    """Adds x to h in place and returns the sum's moments, each block while it is in the caches; arguments as checked."""
    return _pooled(h, groups, lambda region: h[region].add_(x[region]))


@torch.no_grad()
def norm_silu_pad_plain(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], time_mode: PadMode, space_mode: PadMode,
) -> torch.Tensor:  # fmt: skip
    """`norm_silu_pad_reference` block by block, straight into the padded tensor; arguments are taken as checked.

    What SiLU reads was rounded to x's dtype once before.

    Memory: the output, and a block for each thread.
    """
    exact = exact_dtype(x)
    per_group = x.shape[1] // mean.shape[1]
    mean = mean.to(exact).repeat_interleave(per_group, 1)
    scale = rstd.to(exact).repeat_interleave(per_group, 1) * weight.to(exact)
    bias, one = bias.to(exact), torch.ones(x.shape[1], dtype=exact)
    out = empty_padded(x, padded_shape(x.shape, padding))
    inner = interior(out, padding)
    memory_format = memory_format_of(x)
    scratch = x.new_empty(0)
    unused = torch.empty(2, 0, dtype=exact)
    for region in _regions(x):
        sample, channels = region[0].start, region[1]
        block = x[region].contiguous(memory_format=memory_format)
        # One buffer for all blocks, because the allocator may give memory back to the system in between.
        if scratch.shape != block.shape:
            scratch = torch.empty_like(block)
        # A batch norm with the statistics of this sample is the quickest way to scale channels in mixed precision.
        torch.ops.aten.native_batch_norm.out(
            block, scale[sample, channels], bias[channels], mean[sample, channels], one[channels], False, 0.0, 0.0,
            out=scratch, save_mean=unused[0], save_invstd=unused[1],
        )  # fmt: skip
        torch.ops.aten.silu.out(scratch, out=inner[region])
    fill_borders(out, padding, time_mode, space_mode)
    return out


@torch.no_grad()
def _pooled(x: torch.Tensor, groups: int, read: Callable[[tuple[slice, ...]], torch.Tensor]) -> Moments:
    """Moments of what `read` gives for each region of x, channel by channel and then pooled."""
    exact, memory_format = exact_dtype(x), memory_format_of(x)
    unused = torch.zeros(2, x.shape[1], dtype=exact)  # running statistics; their dtype is that of the answer
    blocks: dict[tuple[int, int, int], list[torch.Tensor]] = {}
    for region in _regions(x):
        block = read(region).contiguous(memory_format=memory_format)
        mean, variance = torch.batch_norm_update_stats(block, *unused[:, : block.shape[1]], 0.0)
        count = torch.full_like(mean, block.numel() // block.shape[1])
        blocks.setdefault(tuple(axis.start for axis in region[2:]), []).append(torch.stack([count, mean, count * variance]))
    # (parts, 3, B, groups, channels of a group): regions come sample by sample, channel by channel within a place.
    parts = torch.stack([torch.cat(columns, 1).unflatten(1, (x.shape[0], groups, -1)) for columns in blocks.values()])
    count, mean, m2 = parts.double().unbind(1)
    pooled = (count * mean).sum((0, 3), keepdim=True) / count.sum((0, 3), keepdim=True)
    m2 = (m2 + count * (mean - pooled).square()).sum((0, 3))
    return Moments(x.numel() // (x.shape[0] * groups), pooled[0, :, :, 0].to(exact), m2.to(exact))


def _regions(x: torch.Tensor) -> Iterator[tuple[slice, slice, slice, slice, slice]]:
    """Regions of x, each side by side in memory, within one sample and a block in size."""
    elements = _BLOCK_BYTES * torch.get_num_threads() // x.element_size()
    lengths = {0: 1}
    for axis in (1, 4, 3, 2) if memory_format_of(x) == torch.channels_last_3d else (4, 3, 2, 1):
        lengths[axis] = min(x.shape[axis], max(1, elements))
        elements //= x.shape[axis]
    yield from product(*([slice(i, min(i + lengths[axis], size)) for i in range(0, size, lengths[axis])]
                         for axis, size in enumerate(x.shape)))  # fmt: skip


def group_statistics_differentiable(x: torch.Tensor, groups: int) -> Moments:
    """`group_statistics_reference` in float32 (float64 for float64) by torch's own operators; arguments as checked."""
    grouped = x.to(exact_dtype(x)).unflatten(1, (groups, -1))
    mean = grouped.mean((2, 3, 4, 5), keepdim=True)
    m2 = (grouped - mean).square().sum((2, 3, 4, 5))
    return Moments(x.numel() // (x.shape[0] * groups), mean.flatten(1), m2)


def norm_silu_differentiable(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:  # fmt: skip
    """SiLU of the normalised x, rounded once, in x's memory format; arguments are taken as checked."""
    exact = exact_dtype(x)

    def per_channel(values: torch.Tensor) -> torch.Tensor:
        return values.to(exact).repeat_interleave(x.shape[1] // values.shape[-1], -1).view(-1, x.shape[1], 1, 1, 1)

    normed = (x.to(exact) - per_channel(mean)) * (per_channel(rstd) * per_channel(weight)) + per_channel(bias)
    return F.silu(normed).to(x.dtype).contiguous(memory_format=memory_format_of(x))
