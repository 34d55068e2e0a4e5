"""Layers run over parts of a frame: strips against the untiled network, pooled norms against naive ones."""

import copy
from itertools import product

import pytest
import torch
from golden_weights import relative_error
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import CVVAEConfig, Variant
from cvvae_cli.geometry import Window, tile_windows
from cvvae_cli.layers import CENTRED, STYLES, GroupNorm, PaddedConv3d, Padding
from cvvae_cli.lockstep import Field, Lockstep, Place
from cvvae_cli.tiling import core_windows

VARIANTS: tuple[Variant, ...] = ("sd21", "sd3")
CPU = torch.device("cpu")


def model_of(variant: Variant, half_3d: bool = True, dtype: torch.dtype = torch.float64) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CVVAEConfig(variant, 4, (8, 8, 16, 24), 1, half_3d, norm_groups=4)).to(dtype).requires_grad_(False)


def fields(height: int, width: int, tile: int, overlap: int) -> list[Field]:
    windows = [tile_windows(cells, tile, overlap) for cells in (height, width)]
    axes = [list(zip(axis, core_windows(axis))) for axis in windows]
    return [Field(row, col, row_core, col_core) for (row, row_core), (col, col_core) in product(*axes)]


def whole(height: int, width: int) -> list[Field]:
    return fields(height, width, max(height, width), 0)


def joined(strips, n: int = 1) -> list[Tensor]:
    """Each field's strips, put together."""
    parts: list[list[Tensor]] = [[] for _ in range(n)]
    for strip in strips:
        assert strip.start == sum(part.shape[3] for part in parts[strip.field])
        parts[strip.field].append(strip.values)
    return [torch.cat(part, dim=3) for part in parts]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    ("height", "width", "strip_bytes"), [(3, 2, 1), (1, 1, 1), (5, 3, 200_000), (2, 7, 900_000), (9, 2, 400_000)]
)
def test_strips_give_the_untiled_result(variant: Variant, height: int, width: int, strip_bytes: int) -> None:
    model, run = model_of(variant), Lockstep(whole(height, width), 4, Place(CPU, CPU, strip_bytes))
    x = torch.rand(2, 3, 5, 8 * height, 8 * width, dtype=torch.float64) * 2 - 1
    moments, = joined(run.encoded(model.encoder, x, lambda v: v))
    z = torch.randn(2, 4, 3, height, width, dtype=torch.float64)
    video, = joined(run.decoded(model.decoder, z, lambda v: v))
    assert relative_error(moments, model.encode(x)) < 1e-12
    assert relative_error(video, model.decode(z)) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_all_3d_row_and_one_frame(variant: Variant) -> None:
    model, run = model_of(variant, half_3d=False), Lockstep(whole(3, 4), 4, Place(CPU, CPU, 100_000))
    x = torch.rand(1, 3, 1, 24, 32, dtype=torch.float64)
    assert relative_error(joined(run.encoded(model.encoder, x, lambda v: v))[0], model.encode(x)) < 1e-12
    z = torch.randn(1, 4, 1, 3, 4, dtype=torch.float64)
    assert relative_error(joined(run.decoded(model.decoder, z, lambda v: v))[0], model.decode(z)) < 1e-12


class PooledNorm(torch.nn.Module):
    """A group norm of tiles stacked as a batch, with the statistics of all of them; frames of four axes pool per frame."""

    def __init__(self, norm: GroupNorm, tiles: int) -> None:
        super().__init__()
        self.norm, self.tiles = norm, tiles

    def forward(self, x: Tensor) -> Tensor:
        grouped = x.unflatten(0, (self.tiles, -1)).unflatten(2, (self.norm.num_groups, -1))
        axes = [0, *range(3, grouped.dim())]
        mean, variance = grouped.mean(axes, keepdim=True), grouped.var(axes, correction=0, keepdim=True)
        normed = ((grouped - mean) / (variance + self.norm.eps).sqrt()).flatten(2, 3).flatten(0, 1)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return normed * self.norm.weight.view(shape) + self.norm.bias.view(shape)


@pytest.mark.parametrize("variant", VARIANTS)
def test_tiles_with_pooled_norms_equal_a_naive_batch_of_them(variant: Variant) -> None:
    model = model_of(variant)
    tiles = fields(4, 6, 2, 0)
    run = Lockstep(tiles, 4, Place(CPU, CPU, None))
    x = torch.rand(1, 3, 5, 32, 48, dtype=torch.float64)
    z = torch.randn(1, 4, 2, 4, 6, dtype=torch.float64)
    got = [joined(run.encoded(model.encoder, x, lambda v: v), 6), joined(run.decoded(model.decoder, z, lambda v: v), 6)]
    for module in list(model.modules()):
        if isinstance(getattr(module, "norm", None), GroupNorm):
            module.norm = PooledNorm(module.norm, len(tiles))
    for network, data, cell, outputs in ((model.encoder, x, 8, got[0]), (model.decoder, z, 1, got[1])):
        h = network.conv_in(data)  # the first convolution sees its true neighbours
        h = torch.cat([h[..., f.rows.start * cell : f.rows.stop * cell, f.cols.start * cell : f.cols.stop * cell] for f in tiles])
        network.conv_in = torch.nn.Identity()
        assert relative_error(torch.cat(outputs), network(h)) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("tile", "overlap"), [(4, 0), (3, 1), (5, 4), (20, 0)])
def test_first_norm_has_the_statistics_of_the_whole_frame(variant: Variant, tile: int, overlap: int) -> None:
    torch.manual_seed(0)
    conv, x = PaddedConv3d(3, 64, STYLES[variant].encoder).requires_grad_(False), torch.rand(1, 3, 5, 88, 56) * 2 - 1
    h = copy.deepcopy(conv).double()(x.double()).unflatten(1, (16, -1)).flatten(2)
    for strip_bytes in (None, 300_000):
        moments = Lockstep(fields(11, 7, tile, overlap), 16, Place(CPU, CPU, strip_bytes)).enter(x, 8, conv, lambda v: v).moments
        assert moments is not None and moments.count == h[0, 0].numel()
        torch.testing.assert_close(moments.variance().double(), h.var(2, correction=0), rtol=1e-6, atol=0)
        torch.testing.assert_close((moments.mean - h.mean(2)) / h.std(2), torch.zeros(1, 16).double(), rtol=0, atol=1e-6)


def test_two_tiles_with_means_0_and_2_and_variance_1_have_variance_2() -> None:
    conv = PaddedConv3d(1, 1, Padding(CENTRED, (1, 1, 1, 1), "zeros", "zeros"))
    with torch.no_grad():
        conv.weight.copy_(F.pad(torch.ones(1, 1, 1, 1, 1), (1,) * 6))
        conv.bias.zero_()
    x = torch.tensor([-1.0, 1.0, 1.0, 3.0]).repeat(4, 1).view(1, 1, 1, 4, 4)
    tiles = [Field(Window(0, 4), cols, Window(0, 4), cols) for cols in (Window(0, 2), Window(2, 4))]
    with torch.no_grad():
        moments = Lockstep(tiles, 1, Place(CPU, CPU, None)).enter(x, 1, conv, lambda v: v).moments
    assert (moments.count, moments.mean.item(), moments.variance().item()) == (16, 1.0, 2.0)
