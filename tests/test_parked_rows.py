"""Rows come back as they were written, once."""

import weakref

import pytest
import torch

from cvvae_cli.parked_rows import ParkedRows, RowReader

CPU = torch.device("cpu")


def parked(x, cuts):
    rows = ParkedRows(CPU, CPU)
    for strip in x.split(cuts, dim=3):
        rows.append(strip.contiguous(memory_format=torch.channels_last_3d))
    return rows


@pytest.mark.parametrize("cuts", [[11], [3, 1, 7], [1] * 11])
@pytest.mark.parametrize("keep", [False, True])
def test_windows_that_go_down_and_overlap(cuts, keep):
    x = torch.rand(2, 3, 2, 11, 4)
    rows = parked(x, cuts)
    for _ in range(1 + keep):
        reader = RowReader(rows, keep)
        for start, stop in [(0, 1), (0, 4), (2, 6), (5, 6), (9, 11), (10, 11)]:
            got = reader.read(start, stop)
            assert torch.equal(got, x[:, :, :, start:stop]) and got.stride(1) == 1
    assert rows.shape == x.shape and rows.element_size == 4


def test_what_was_read_is_given_back():
    rows = ParkedRows(CPU, CPU)
    strips = [torch.rand(1, 1, 1, 2, 1) for _ in range(3)]
    alive = [weakref.ref(strip) for strip in strips]
    for strip in strips:
        rows.append(strip)
    del strip, strips
    reader = RowReader(rows)
    for start, left in ((0, 3), (1, 3), (2, 2), (3, 2), (4, 1)):
        reader.read(start, min(start + 2, 6))
        assert sum(ref() is not None for ref in alive) == left
