"""Which tiles fit: against loops that cut for real, sums by hand, and what a larger window was seen to take."""

import math
import os
import platform
import subprocess
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from tiny_model import TINY, random_model

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import CVVAEConfig, Tiling
from cvvae_cli.geometry import cell_count, tile_windows
from cvvae_cli.memory_model import (
    WindowMemory,
    best_tiling,
    double_work,
    fitting_tiling,
    measure_windows,
    memory_budget,
    tiling_bytes,
    tiling_within,
)
from cvvae_cli.peak_memory import peak_memory
from cvvae_cli.tiling import ENCODE, Direction, cut_windows, run_tiles

CPU, CARD = torch.device("cpu"), torch.device("cuda")
MIB, GIB = 2**20, 2**30
SAME = Direction(read_cell=8, write_cell=8, read_frame=4, write_frame=4)
NORMED = CVVAEConfig(channels=(8, 8, 8, 8), blocks_per_level=1, norm_groups=4)
# Roughly what the models were seen to take: bytes for each pixel of a window's frames.
THIN, THICK = WindowMemory(20 * MIB, 60.0), WindowMemory(100 * MIB, 2500.0)
BUDGETS = [2**n for n in range(24, 40)]
needs_proc = pytest.mark.skipif(platform.system() != "Linux", reason="resident memory is read from /proc")


class OnCard(Autoencoder):
    """A model that says it is on a card, where there may be none."""

    device = property(lambda self: CARD)


@pytest.fixture(scope="module")
def models():
    """(model, what its windows take) of both families on both kinds of device."""
    return [(kind(config), memory) for kind in (Autoencoder, OnCard) for config, memory in ((TINY, THIN), (NORMED, THICK))]


@pytest.mark.parametrize(("size", "tiling"), [((96, 136), Tiling(64, 24)), ((64, 200), Tiling(128, 64, 8, 33)), ((40, 40), Tiling(64, 0, 0))])
def test_double_work_is_what_the_network_is_shown_over_what_the_video_has(size, tiling):
    height, width = size

    def shown(frames):
        x, count = torch.zeros(1, 1, frames, height, width, dtype=torch.uint8), 0

        def network(window):
            nonlocal count
            count += window[0, 0].numel()
            return window

        for _, chunk in cut_windows([x], tiling, ENCODE):
            for _ in run_tiles(network, chunk, tiling, SAME):
                pass
        return count

    longer = 4 * ((tiling.chunk - 1 - tiling.chunk_overlap) // 4)
    first = tiling.chunk + longer  # beyond its first chunk, a video costs the same for each further one
    more = shown(first + 3 * longer) - shown(first)
    assert double_work(tiling, height, width) == pytest.approx(more / (3 * longer * height * width), rel=1e-12)


def test_bytes_of_a_chunk_by_hand():
    tiling, memory = Tiling(256, 64, 4, 17, batch=3), WindowMemory(1000.0, 10.0)
    frames = 17 * 480 * 854
    assert tiling_bytes(tiling, 480, 854, memory, CPU) == 1000 + 10 * 3 * 17 * 256 * 256 + 24 * frames
    assert tiling_bytes(tiling, 480, 854, memory, CARD) == 1000 + 10 * 3 * 17 * 256 * 256 + 3 * frames + 24 * 17 * 256 * 854
    # 16 bits: a byte more per colour in each of four places, and on a card in one.
    assert tiling_bytes(tiling, 480, 854, memory, CPU, deep=True) == tiling_bytes(tiling, 480, 854, memory, CPU) + 12 * frames
    assert tiling_bytes(tiling, 480, 854, memory, CARD, deep=True) == tiling_bytes(tiling, 480, 854, memory, CARD) + 3 * frames
    # A video smaller than the tile is one window, filled up to whole cells.
    small = Tiling(256, 64, 4, 17)
    assert tiling_bytes(small, 45, 61, memory, CPU) == 1000 + 10 * 17 * 48 * 64 + 24 * 17 * 45 * 61


@pytest.mark.parametrize("size", [(45, 61), (480, 854), (1080, 1920), (2160, 3840), (64, 5000)])
def test_what_is_chosen_fits_and_nothing_that_fits_does_less_work(models, size):
    for (model, memory), budget in product(models, BUDGETS):
        best = best_tiling(model, *size, memory, budget)
        compact = model.config == TINY
        rivals = [
            Tiling(tile, min(64, tile // 4), 4, chunk)
            for tile in (range(64, 2049, 64) if compact else range(64, 577, 64))
            for chunk in ((17, 33) if compact else (17,))
        ]
        listed = [rival for rival in rivals if rival.tile in (64, 128, 256, 384, 512)]  # tiles that both families may choose
        if tiling_bytes(best, *size, memory, model.device) <= budget:
            fitting = [rival for rival in listed if tiling_bytes(rival, *size, memory, model.device) <= budget]
            assert all(double_work(best, *size) <= double_work(rival, *size) for rival in fitting)
        else:
            assert all(tiling_bytes(best, *size, memory, model.device) <= tiling_bytes(r, *size, memory, model.device) for r in rivals)
        assert (best.mode, best.chunk_overlap) == ("blend", 4) and (compact or best.chunk == 17)


@pytest.mark.parametrize("size", [(480, 854), (1080, 1920), (2160, 3840)])
def test_more_memory_never_means_more_work(models, size):
    for model, memory in models:
        work = [double_work(best_tiling(model, *size, memory, budget), *size) for budget in BUDGETS]
        assert work == sorted(work, reverse=True) and work[0] > work[-1] >= 1


def test_a_small_video_is_one_window_and_takes_no_larger_tile_than_it_needs(models):
    for model, memory in models:
        best = best_tiling(model, 45, 61, memory, 64 * GIB)
        assert (best.tile, best.batch) == (64, 1)
        assert best_tiling(model, 45, 61, memory, 1).chunk == 17


def test_only_a_card_is_shown_several_tiles_at_once_and_only_of_one_row(models):
    for (model, memory), budget in product(models, BUDGETS):
        best = best_tiling(model, 1080, 1920, memory, budget)
        columns = len(tile_windows(cell_count(1920), best.tile_cells, best.overlap_cells))
        assert 1 <= best.batch <= columns
        if model.device == CPU:
            assert best.batch == 1
    card = models[3][0]
    assert card.device == CARD
    roomy = best_tiling(card, 1080, 1920, THICK, 1024 * GIB)
    assert roomy.batch == len(tile_windows(240, roomy.tile_cells, roomy.overlap_cells)) > 1
    # One tile less than fits a budget is left, one more would not fit.
    tight = best_tiling(card, 1080, 1920, THICK, 32 * GIB)
    assert roomy.tile == tight.tile and 1 < tight.batch < roomy.batch
    needs = [tiling_bytes(Tiling(tight.tile, tight.overlap, batch=n), 1080, 1920, THICK, CARD) for n in (tight.batch, tight.batch + 1)]
    assert needs[0] <= 32 * GIB < needs[1]


@needs_proc
def test_two_small_windows_foretell_a_larger_one():
    model = random_model(TINY)
    memory = measure_windows(model)
    assert memory.fixed >= 0 and memory.per_pixel > 8  # a pixel's three float32 channels, read and written, take more
    assert measure_windows(model) is memory  # measured once
    tile = 320
    with torch.inference_mode():
        x, z = torch.zeros(1, 3, 17, tile, tile), torch.zeros(1, 4, 5, tile // 8, tile // 8)
        needed = max(peak_memory(CPU, lambda: network(window))[1] for network, window in ((model.encode, x), (model.decode, z)))
    assert 0.5 * needed < memory.bytes_for(17 * tile * tile) / MIB < 4 * needed


@needs_proc
def test_models_with_norms_are_measured_in_each_dtype():
    model = random_model(NORMED)
    single = measure_windows(model)
    half = measure_windows(model.bfloat16())
    assert single is not half and min(single.per_pixel, half.per_pixel) > 8
    best = fitting_tiling(model, 480, 854)
    assert tiling_bytes(best, 480, 854, half, CPU) <= memory_budget(CPU) or best.tile == 64


def test_a_budget_is_a_power_of_two_that_the_machine_has():
    budget = memory_budget(CPU)
    assert budget == 2 ** (budget.bit_length() - 1)


# Prints by how many MiB a process of a model is larger once it has freed 100 MiB.
KEPT = """
import os, sys
import test_memory_model as here
from cvvae_cli.memory_model import keep_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

keep_memory(here.random_model(getattr(here, sys.argv[1])))
before = resident()
data = bytearray(b"x") * (100 << 20)
del data
print(resident() - before)
"""


@needs_proc
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")
def test_large_blocks_are_kept_for_the_compact_family_alone():
    tests = Path(__file__).parent
    paths = (tests, tests.parent, tests.parent / "kernels")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    for config, kept in (("TINY", True), ("NORMED", False)):
        words = [sys.executable, "-c", KEPT, config]
        more = int(subprocess.run(words, env=environment, capture_output=True, text=True, check=True).stdout)
        assert more > 90 if kept else more < 20


@needs_proc
def test_recorded_tiles_are_kept_where_they_fit():
    model = random_model(TINY)
    for tiling in (Tiling(72, 24, 8, 33), Tiling(64, 0, batch=2), Tiling.official(72)):
        assert tiling_within(model, tiling, 25, 45, 61) == tiling
    assert tiling_within(model, None, 25, 45, 61) == fitting_tiling(model, 45, 61)


@needs_proc
def test_recorded_tiles_that_do_not_fit_are_halved_and_chunks_only_where_tiles_do_not_help():
    model = random_model(TINY)
    vast = (40000, 40000)  # whose frames alone no machine holds
    assert tiling_within(model, Tiling(1000, 64, 8, 33, batch=5), 4097, *vast) == Tiling(120, 30, 8, 17)
    assert tiling_within(model, Tiling(64, 0, 28, 37), 4097, *vast) == Tiling(64, 0, 12, 17)
    assert tiling_within(model, Tiling(64, 0, 4, 13), 4097, *vast) == Tiling(64, 0, 4, 13)
    assert tiling_within(model, Tiling.official(576), 4097, *vast) == Tiling.official(576)
    assert tiling_within(model, replace(Tiling.official(576), chunk=1025), 4097, *vast) == Tiling.official(576)
    # Frames of 24 bytes a pixel alone decide here.
    size = math.isqrt(memory_budget(CPU) // (24 * 200))
    assert tiling_within(model, Tiling(64, 0, 4, 1025), 4097, size, size).chunk == 129
    # A video that ends before its chunk takes no more than it has.
    assert tiling_within(model, Tiling(64, 0, 4, 1025), 101, size, size).chunk == 1025
    assert tiling_within(model, Tiling(64, 0, 4, 1025), 321, size, size).chunk == 161


@needs_proc
def test_a_device_that_is_full_already_is_tried_all_the_same():
    def no_room(window):
        raise torch.OutOfMemoryError("out of memory")

    model = Autoencoder(TINY)
    model.encode = no_room
    assert fitting_tiling(model, 45, 61).tile == 64  # what decoding takes is known
    model.decode = no_room
    assert measure_windows(model.double()) == WindowMemory(0.0, 0.0)
    assert fitting_tiling(model, 480, 854) == Tiling()


def test_other_errors_of_a_network_pass():
    model = Autoencoder(TINY)
    model.encode = lambda window: torch.zeros(2) + torch.zeros(3)
    with pytest.raises(RuntimeError, match="size of tensor"):
        measure_windows(model)
