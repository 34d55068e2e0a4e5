"""The formulas against counted bytes and against numbers worked out by hand."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import SD21, CVVAEConfig, Tiling, Variant
from cvvae_cli.geometry import tile_windows
from cvvae_cli.lockstep import Lockstep, Place
from cvvae_cli.lockstep_memory import ChunkShape, parked_bytes, strip_bytes, working_bytes
from cvvae_cli.norm_contract import fields_of
from cvvae_cli.tiling import DECODE, ENCODE, Direction

CPU = torch.device("cpu")
FULL = ChunkShape(batch=1, frames=17, height=270, width=480, element_size=2)


def peak_bytes(call: Callable[[], object]) -> int:
    """Most bytes that torch's CPU allocator had handed out at once for tensors made during the call."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    assert peak > 0
    return peak


@pytest.mark.parametrize(("variant", "direction"), [("sd21", ENCODE), ("sd21", DECODE), ("sd3", DECODE)])
@pytest.mark.parametrize("exact", [True, False])
def test_counted_bytes_stay_under_the_formula(variant: Variant, direction: Direction, exact: bool) -> None:
    model = Autoencoder(CVVAEConfig(variant, 4, (8, 16, 16, 16), 1, norm_groups=8)).requires_grad_(False)
    height, width, tiling = 24, 32, Tiling(64, 16)
    rows, cols = (tile_windows(cells, cells if exact else 8, 2) for cells in (height, width))
    cells = [sum(window.size for window in axis) for axis in (rows, cols)]
    chunk = ChunkShape(1, 5, *cells, 4)
    limit = strip_bytes(model.config, direction, tiling, chunk)
    run = Lockstep(fields_of(rows, cols), 8, Place(CPU, CPU, limit if exact else None))
    if direction is ENCODE:
        strips = run.encoded(model.encoder, torch.rand(1, 3, 5, 8 * height, 8 * width), lambda v: v)
    else:
        strips = run.decoded(model.decoder, torch.rand(1, 4, 2, height, width), lambda v: v)
    parked, working = parked_bytes(model.config, direction, chunk), working_bytes(model.config, direction, chunk, limit)
    counted = peak_bytes(lambda: sum(strip.values.shape[3] for strip in strips))
    assert 0.9 * parked < counted <= parked + working


def test_full_size_at_4k_by_hand() -> None:
    pixels = 17 * 2160 * 3840
    assert parked_bytes(SD21, ENCODE, FULL) == pixels * 2 * 128 * 2
    assert parked_bytes(SD21, DECODE, FULL) == pixels * 256 * 2
    limit = strip_bytes(SD21, DECODE, Tiling(256), FULL)
    assert limit == 4 * 17 * 256 * 256 * 256 * 2
    # Strips of 1 GiB take two, attention 3.1: 512 channels of 25 frames of 270 x 480.
    assert working_bytes(SD21, ENCODE, FULL, 1 << 30) == 512 * 270 * 480 * (3 * 5 + 10) * 2
    assert working_bytes(SD21, DECODE, FULL, 4 << 30) == 8 << 30


def test_what_a_strip_takes_does_not_depend_on_the_height() -> None:
    limit = strip_bytes(SD21, DECODE, Tiling(256), FULL)
    assert strip_bytes(SD21, DECODE, Tiling(256), replace(FULL, height=2700)) == limit
    taller = working_bytes(SD21, DECODE, replace(FULL, height=300), limit)
    assert taller == working_bytes(SD21, DECODE, FULL, limit) >= 2 * limit


def test_one_row_is_the_least() -> None:
    wide = replace(FULL, width=4800, height=1)
    assert working_bytes(SD21, ENCODE, wide, 1) > 2 * 17 * 38400 * 128 * 2
