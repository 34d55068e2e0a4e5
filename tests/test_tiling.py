"""Streaming tiles and chunks against naive whole-video references."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cvvae_cli.config import Tiling
from cvvae_cli.errors import UsageError
from cvvae_cli.geometry import blend_weights, tile_windows
from cvvae_cli.tiling import DECODE, ENCODE, Band, Direction, assemble, cut_windows, run_chunks, run_tiles, smaller_tiling

SAME = Direction(read_cell=8, write_cell=8, read_frame=4, write_frame=4)


def whole(network, x, tiling, direction, pieces=1, **retreat):
    windows = cut_windows(x.split(pieces, dim=2), tiling, direction)
    bands = run_chunks(network, windows, tiling, direction, **retreat)
    return torch.cat([y.clone() for y in assemble(bands, lambda v: v, torch.float32)], dim=2)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 40), st.integers(1, 20), st.integers(1, 20), st.sampled_from([64, 72, 96]), st.sampled_from([0, 8, 40, 56]),
    st.sampled_from([0, 4, 8, 12]), st.integers(1, 7),
)  # fmt: skip
def test_a_pointwise_network_comes_back_for_every_plan(frames, rows, cols, tile, overlap, chunk_overlap, pieces):
    frames = 4 * ((frames - 1) // 4) + 1
    x = torch.rand(1, 2, frames, rows * 8, cols * 8)
    y = whole(lambda v: v.clone(), x, Tiling(tile, overlap, chunk_overlap), SAME, pieces)
    assert y.shape == x.shape
    assert torch.allclose(y, x, atol=1e-6)


def test_frames_are_filled_up_to_whole_latents_by_repeating_the_last():
    x = torch.arange(19.0).view(1, 1, 19, 1, 1).expand(1, 1, 19, 8, 8)
    windows = list(cut_windows(x.split(1, dim=2), Tiling(chunk_overlap=0), ENCODE))
    assert [start for start, _ in windows] == [0, 16]
    assert windows[1][1][0, 0, :, 0, 0].tolist() == [16.0, 17.0, 18.0, 18.0, 18.0]


@pytest.mark.parametrize(("frames", "overlap", "starts"), [(17, 4, [0]), (18, 4, [0, 12]), (17, 0, [0]), (33, 0, [0, 16]), (29, 4, [0, 12])])
def test_no_chunk_without_a_new_frame(frames, overlap, starts):
    x = torch.zeros(1, 1, frames, 8, 8)
    assert [s for s, _ in cut_windows([x], Tiling(chunk_overlap=overlap), ENCODE)] == starts


def test_first_output_of_later_chunks_is_never_used():
    def network(z):  # marks what a chunk gives first
        y = z.repeat_interleave(4, dim=2)[:, :, 3:].repeat_interleave(8, 3).repeat_interleave(8, 4).clone()
        y[:, :, 0] = torch.nan
        return y

    y = whole(network, torch.ones(1, 1, 14, 2, 2), Tiling(), DECODE)
    assert y.shape[2] == 53
    assert torch.isnan(y[:, :, 0]).all() and not torch.isnan(y[:, :, 1:]).any()


def test_crossfade_by_hand():
    count = iter(range(10))

    def network(z):  # chunk i decodes to the constant i
        t, h, w = z.shape[2:]
        return torch.full((1, 1, 4 * t - 3, 8 * h, 8 * w), float(next(count)))

    y = whole(network, torch.zeros(1, 1, 8, 2, 2), Tiling(chunk_overlap=4), DECODE)
    assert y[0, 0, :, 0, 0].tolist() == [0.0] * 13 + [0.125, 0.375, 0.625, 0.875] + [1.0] * 12


def test_bands_equal_accumulate_and_divide_in_float64():
    tiling = Tiling(tile=64, overlap=24)
    x = torch.rand(1, 2, 1, 19, 13, dtype=torch.float32)
    seen = []

    def network(z):  # position-dependent inside the tile, so blending shows
        ramp = torch.linspace(0, 1, z.shape[3] * 8)[:, None] + torch.linspace(0, 2, z.shape[4] * 8)
        y = z.repeat_interleave(8, 3).repeat_interleave(8, 4) + ramp
        seen.append(y)
        return y

    got = torch.cat([band for _, band in run_tiles(network, x, tiling, DECODE)], dim=3)
    rows, cols = tile_windows(19, 8, 3), tile_windows(13, 8, 3)
    row_weights, col_weights = blend_weights(rows, 8), blend_weights(cols, 8)
    total = torch.zeros(1, 2, 1, 152, 104, dtype=torch.float64)
    mass = torch.zeros(152, 104, dtype=torch.float64)
    tiles = iter(seen)
    for i, r in enumerate(rows):
        for j, c in enumerate(cols):
            w = torch.tensor(row_weights[i]).double()[:, None] * torch.tensor(col_weights[j]).double()
            area = (..., slice(r.start * 8, r.stop * 8), slice(c.start * 8, c.stop * 8))
            total[area] += next(tiles).double() * w
            mass[area] += w
    assert torch.allclose(got.double(), total / mass, atol=1e-6)


def test_official_blend_matches_a_whole_frame_transcription():
    tiling = Tiling.official(72)
    x = torch.rand(1, 1, 1, 20, 12)
    tiles = {}

    def network(z):
        y = torch.rand(z.shape[0], 1, 1, z.shape[3] * 8, z.shape[4] * 8)
        tiles[len(tiles)] = y.clone()
        return y

    got = torch.cat([band for _, band in run_tiles(network, x, tiling, DECODE)], dim=3)
    grid = [[tiles[i * 2 + j] for j in range(2)] for i in range(3)]
    for i in range(3):
        for j in range(2):
            for axis, before in ((3, grid[i - 1][j] if i else None), (4, grid[i][j - 1] if j else None)):
                if before is None:
                    continue
                b, a = before.transpose(3, axis), grid[i][j].transpose(3, axis)
                n = min(a.shape[3], b.shape[3], 16)
                for p in range(n):
                    a[..., p, :] = b[..., b.shape[3] - n + p, :] * (1 - p / n) + a[..., p, :] * (p / n)
    want = torch.cat([torch.cat([row[0][..., : (56, 56, 160)[i], :56], row[1][..., : (56, 56, 160)[i], :]], dim=4) for i, row in enumerate(grid)], dim=3)
    assert got.shape == want.shape == (1, 1, 1, 160, 96)
    assert torch.allclose(got, want, atol=1e-6)


def test_memory_of_a_band_does_not_grow_with_height():
    tiling = Tiling(tile=64, overlap=16)
    sizes = []
    for rows in (20, 80):
        x = torch.zeros(1, 1, 1, rows, 8)
        bands = run_tiles(lambda z: z.repeat_interleave(8, 3).repeat_interleave(8, 4), x, tiling, DECODE)
        sizes.append(max(band.shape[3] for _, band in bands))
    assert sizes[0] == sizes[1] == 64


@pytest.mark.parametrize(
    "arguments",
    [dict(tile=56), dict(overlap=256), dict(overlap=-8), dict(chunk_overlap=3), dict(chunk_overlap=16), dict(chunk=16), dict(tile=256, mode="official", chunk_overlap=0)],
)
def test_impossible_tilings_are_refused_in_one_sentence(arguments):
    with pytest.raises(UsageError) as caught:
        Tiling(**arguments)
    assert isinstance(caught.value, ValueError) and str(caught.value).count(". ") == 0


def tiled(network, x, tiling, direction):
    return torch.cat([rows for _, rows in run_tiles(network, x, tiling, direction)], dim=3)


@pytest.mark.parametrize("tiling", [Tiling(64, 24), Tiling(64, 0), Tiling.official(72)])
@pytest.mark.parametrize("batch", [2, 3, 5, 100])
def test_tiles_of_a_row_in_one_call_change_nothing(tiling, batch):
    """Two videos at once, so that the tiles of a call must be told from its videos."""
    x, calls = torch.rand(2, 2, 5, 12, 33), []

    def network(z):
        calls.append(len(z))
        return (z.sqrt() + 3).repeat_interleave(8, 3).repeat_interleave(8, 4)

    one = tiled(network, x, tiling, DECODE)
    singly = len(calls)
    several = tiled(network, x, replace(tiling, batch=batch), DECODE)
    assert set(calls[:singly]) == {2} and len(calls) < 2 * singly
    assert sum(calls[singly:]) == sum(calls[:singly]) and max(calls[singly:]) <= 2 * batch
    assert torch.equal(one, several)


def crossfaded(chunks, starts, overlap):
    """Whole chunks (n, H, W) in float64, each faded in over the end of all that there is so far; `starts` of what each gives."""
    fade = ((torch.arange(overlap, dtype=torch.float64) + 0.5) / max(overlap, 1)).view(-1, 1, 1)
    whole = chunks[0].double()
    for chunk, start in zip(chunks[1:], starts[1:], strict=True):
        chunk, begin = chunk[1:].double(), start + 1  # its first output is dropped
        assert len(whole) - begin == overlap
        whole = torch.cat([whole[:begin], whole[begin:] * (1 - fade) + chunk[:overlap] * fade, chunk[overlap:]])
    return whole


@pytest.mark.parametrize(("chunk", "overlap"), [(17, 12), (17, 8), (17, 4), (33, 28), (33, 12), (9, 4)])
@pytest.mark.parametrize("direction", [ENCODE, DECODE])
@pytest.mark.parametrize("latents", [2, 5, 6, 9, 23])
def test_crossfades_of_any_length_against_a_naive_reference(chunk, overlap, direction, latents):
    """Also where a frame lies in three chunks and more."""
    torch.manual_seed(latents)
    scale, tiling = direction.write_frame, Tiling(tile=64, overlap=16, chunk_overlap=overlap, chunk=chunk)
    frames = direction.read_frame * (latents - 1) + 1
    x = torch.zeros(1, 1, frames, 11 * direction.read_cell, 3 * direction.read_cell)
    given = []

    def network(window):  # rows differ, so a tile's place shows; chunks differ, so crossfades do
        count = (window.shape[2] - 1) // direction.read_frame * scale + 1
        rows, columns = (size // direction.read_cell * direction.write_cell for size in window.shape[3:])
        given.append(torch.rand(1, 1, count, rows, columns))
        return given[-1]

    got = whole(network, x, tiling, direction)
    rows, parts, chunks = tile_windows(11, 8, 2), iter(given), []
    starts = [start // direction.read_frame * scale for start, _ in cut_windows([x], tiling, direction)]
    for _ in starts:
        for row, weight in zip(rows, blend_weights(rows, direction.write_cell)):
            part = next(parts)[0, 0].double() * torch.tensor(weight, dtype=torch.float64)[:, None]
            if row is rows[0]:
                chunks.append(torch.zeros(len(part), 11 * direction.write_cell, part.shape[2], dtype=torch.float64))
            chunks[-1][:, row.start * direction.write_cell : row.stop * direction.write_cell] += part
    want = crossfaded(chunks, starts, overlap // 4 * scale)
    assert got.shape == (1, 1, *want.shape) and len(want) == scale * (latents - 1) + 1
    assert torch.allclose(got[0, 0].double(), want, atol=1e-6)


def test_single_tiles_in_half_precision_are_crossfaded_in_single():
    torch.manual_seed(0)
    given, tiling = [], Tiling(chunk_overlap=12)

    def network(z):
        given.append(torch.rand(1, 1, 4 * z.shape[2] - 3, 16, 16).bfloat16())
        return given[-1]

    bands = list(run_chunks(network, cut_windows([torch.zeros(1, 1, 8, 2, 2)], tiling, DECODE), tiling, DECODE))
    got = torch.cat([piece.double() for band in bands for piece in band.pieces], dim=2)
    want = crossfaded([y[0, 0] for y in given], [0, 4, 8, 12], 12)
    assert torch.allclose(got[0, 0], want, atol=1e-6)  # rounding to bfloat16 would show at 1e-3
    assert bands[0].pieces[1].dtype == torch.bfloat16  # what is not blended stays as the network gave it


def test_blended_tiles_in_half_precision_are_summed_in_single():
    x = torch.rand(1, 1, 1, 12, 20).bfloat16()
    seen = []

    def network(z):
        seen.append(torch.rand(1, 1, 1, z.shape[3], z.shape[4]).bfloat16())
        return seen[-1]

    same = Direction(read_cell=1, write_cell=1, read_frame=1, write_frame=1)
    tiling = Tiling(64, 24)
    got = tiled(network, x, tiling, same)
    want = tiled(lambda z, tiles=iter([tile.float() for tile in seen]): next(tiles), x, tiling, same)
    assert got.dtype == torch.float32 and torch.allclose(got, want, atol=1e-6)
    assert tiled(lambda z: next(iter(seen)).clone(), x, Tiling.official(72), same).dtype == torch.float32


class Device:
    """A pointwise network whose memory holds windows of so many cells, and now and then less."""

    def __init__(self, cells, failing=()):
        self.cells, self.failing = cells, set(failing)
        self.calls, self.shown = 0, []

    def __call__(self, x):
        self.calls += 1
        if x.shape[0] * x.shape[3] * x.shape[4] > self.cells or self.calls in self.failing:
            raise torch.OutOfMemoryError("out of memory")
        self.shown.append(tuple(x.shape))
        return x.repeat_interleave(8, 3).repeat_interleave(8, 4)


def halving(tilings):
    def retreat(error, tiling):
        tilings.append(tiling)
        return smaller_tiling(tiling)

    return retreat


PICTURE_LIKE = Direction(read_cell=1, write_cell=8, read_frame=4, write_frame=4)
SAME_SIZE = Direction(read_cell=1, write_cell=1, read_frame=4, write_frame=4)


@pytest.mark.parametrize("chunk_overlap", [0, 4, 12])
@pytest.mark.parametrize("failing", [(), (1,), (3,), (7,), (2, 16)])
def test_a_smaller_tiling_takes_over_where_memory_ran_out(chunk_overlap, failing):
    """Windows above 20 x 20 cells never fit; some calls fail besides, also in the middle of a chunk whose first rows are out."""
    torch.manual_seed(0)
    x = torch.rand(1, 1, 29, 40, 30)
    tilings, device = [], Device(400, failing)
    tiling = Tiling(tile=256, overlap=64, chunk_overlap=chunk_overlap, batch=2)
    y = whole(device, x, tiling, PICTURE_LIKE, retreat=halving(tilings))
    assert torch.allclose(y, x.repeat_interleave(8, 3).repeat_interleave(8, 4), atol=1e-6)
    assert [(t.tile, t.batch) for t in tilings][:2] == [(256, 2), (256, 1)]
    # A chunk goes on with the tiles that were found to fit, and so do those after it.
    assert all(tall * wide <= 400 for _, _, _, tall, wide in device.shown)
    assert len(tilings) == 2 + sum(call > 2 for call in failing)


def test_the_rows_that_are_done_stay_and_the_rest_is_as_the_smaller_tiling_gives_it():
    def network(z):  # depends on the place in its tile
        nonlocal calls
        calls += 1
        if calls == 6:  # the second tile of the third row
            raise torch.OutOfMemoryError("out of memory")
        ramp = torch.linspace(0, 1, z.shape[3])[:, None] + torch.linspace(0, 2, z.shape[4])
        return z + ramp

    same, calls = Direction(read_cell=1, write_cell=1, read_frame=1, write_frame=1), 0
    x = torch.rand(1, 1, 2, 44, 24)
    large, small = Tiling(128, 32, 0), Tiling(64, 24, 0)
    bands = list(run_chunks(network, cut_windows([x], large, same), large, same, lambda error, tiling: small))
    calls = 10
    by_large, by_small = (tiled(network, x, tiling, same) for tiling in (large, small))
    done = tile_windows(44, 16, 4)[2].start
    assert [band.row for band in bands] == sorted({band.row for band in bands}) and done in [band.row for band in bands]
    got = torch.cat([band.pieces[0] for band in bands], dim=3)
    assert torch.equal(got[..., :done, :], by_large[..., :done, :])
    assert torch.equal(got[..., done:, :], by_small[..., done:, :])


class Crowded(torch.Tensor):
    """A network's output beside which, the first time, there is no room."""

    left = 1

    def new_empty(self, *size, **kind):
        if Crowded.left:
            Crowded.left -= 1
            raise torch.OutOfMemoryError("out of memory")
        return super().new_empty(*size, **kind)


def test_rows_for_which_a_crossfade_found_no_room_are_not_lost():
    x = torch.rand(1, 1, 29, 20, 20)
    tilings = []
    y = whole(lambda z: z.clone().as_subclass(Crowded), x, Tiling(128, 16), SAME_SIZE, retreat=halving(tilings))
    assert [t.tile for t in tilings] == [128] and Crowded.left == 0
    assert torch.allclose(y.as_subclass(torch.Tensor), x, atol=1e-6)


def test_errors_pass_where_nobody_retreats_and_so_do_others():
    x = torch.rand(1, 1, 1, 9, 9)
    with pytest.raises(torch.OutOfMemoryError):
        whole(Device(1), x, Tiling(), PICTURE_LIKE)

    def network(z):
        raise ValueError("no matter of memory")

    with pytest.raises(ValueError, match="no matter"):
        whole(network, x, Tiling(), PICTURE_LIKE, retreat=lambda error, tiling: pytest.fail("asked for a retreat"))


def test_smaller_tilings_end_at_the_smallest_tile():
    def chain(tiling):
        found = []
        while (tiling := smaller_tiling(tiling)) is not None:
            found.append(tiling)
        return found

    assert chain(Tiling(500, 100, 8, 33, batch=4)) == [
        Tiling(500, 100, 8, 33), Tiling(248, 62, 8, 33), Tiling(120, 30, 8, 33),
    ]  # fmt: skip
    assert chain(Tiling(128, 8)) == [Tiling(64, 8)] and chain(Tiling(64, batch=3, overlap=0)) == [Tiling(64, 0)]
    assert chain(Tiling.official(648)) == [Tiling.official(tile) for tile in (288, 144, 72)]
    assert chain(Tiling(144, 32, 0, 33, "official")) == [Tiling(72, 16, 0, 33, "official")]


def test_bands_become_whole_frames():
    pieces = [torch.rand(2, 3, n, rows, 5) for n in (2, 1) for rows in (4, 6)]
    bands = [
        Band(0, 0, 10, (pieces[0][:, :, :0], pieces[0])), Band(0, 4, 10, (pieces[1][:, :, :0], pieces[1])),
        Band(2, 0, 10, (pieces[2][:, :, :0], pieces[2][:, :, :0])), Band(2, 4, 10, (pieces[3][:, :, :0],)),
        Band(2, 0, 10, (pieces[2],)), Band(2, 4, 10, (pieces[3].double(),)),
    ]  # fmt: skip
    shapes = []

    def to_tens(values):
        shapes.append(tuple(values.shape))
        return (values * 10).to(torch.uint8)

    first, second = assemble(bands, to_tens, torch.uint8)
    assert torch.equal(first, (torch.cat(pieces[:2], dim=3) * 10).to(torch.uint8))
    assert torch.equal(second, (torch.cat(pieces[2:], dim=3) * 10).to(torch.uint8))
    assert all(frames.is_contiguous(memory_format=torch.channels_last_3d) for frames in (first, second))
    assert set(shapes) == {(2, 3, 4, 5), (2, 3, 6, 5)} and len(shapes) == 6
