"""Group statistics, norm-SiLU-pad and residual sums against their references: interpreted here, for real where CUDA is.

The interpreter takes some 50 ms per program, so tensors for Triton are tiny; the plain path gets the larger ones.
"""

import itertools
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import cvvae_kernels
import pytest
import torch
from cvvae_kernels import (
    Moments,
    add_with_statistics,
    add_with_statistics_reference,
    group_statistics,
    group_statistics_reference,
    has_norm_kernels,
    merge_statistics,
    norm_silu_pad,
    norm_silu_pad_reference,
    pad3d_reference,
    silu_pad,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels_pad import (
    DEVICE,
    FORMATS,
    MODES,
    per_format,
    per_mode,
    poisoned_memory,  # noqa: F401 - makes torch.empty return NaN here too
)

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
NOTHING = (0, 0, 0, 0, 0, 0)
# Of a value rounded once: one unit in the last place. The plain path rounds twice.
ROUNDING = {torch.float32: 2e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7, torch.float64: 1e-12}


def activations(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, memory_format: torch.memory_format = torch.contiguous_format
) -> torch.Tensor:
    """Noise whose mean and size differ from channel to channel, as activations' do."""
    generator = torch.Generator().manual_seed(sum(shape))
    channel = torch.arange(shape[1], dtype=torch.float64).view(-1, *(1,) * (len(shape) - 2))
    x = torch.randn(shape, generator=generator, dtype=torch.float64) * (1 + channel % 3) + channel % 5 - 2
    return x.to(dtype).to(DEVICE).to(memory_format=memory_format)


def affine(channels: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(channels)
    weight, bias = torch.randn(2, channels, generator=generator, dtype=torch.float64).to(dtype).to(DEVICE)
    return weight, bias


def norm_arguments(x: torch.Tensor, groups: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    moments = group_statistics_reference(x, groups)
    exact = torch.promote_types(x.dtype, torch.float32)
    return x, moments.mean.to(exact), moments.rstd(1e-2).to(exact), *affine(x.shape[1], dtype)


def assert_moments(actual: Moments, expected: Moments, tolerance: float = 2e-6) -> None:
    assert actual.count == expected.count and actual.mean.shape == expected.mean.shape
    size = (expected.m2 / expected.count + expected.mean**2).sqrt().max().item()
    torch.testing.assert_close(actual.mean.double(), expected.mean, rtol=0, atol=tolerance * size)
    torch.testing.assert_close(actual.m2.double(), expected.m2, rtol=tolerance, atol=tolerance * size**2 * 1e-3)


def assert_rounded(actual: torch.Tensor, expected: torch.Tensor, rounds: int = 1) -> None:
    """Equal but for rounding; a value rounded before SiLU too moves by as much as its input, which 8 bounds here."""
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    tolerance = ROUNDING[actual.dtype]
    torch.testing.assert_close(actual, expected, rtol=rounds * tolerance, atol=1e-6 if rounds == 1 else 8 * tolerance)


# What the references themselves are checked against.


def test_statistics_of_a_small_tensor_by_hand() -> None:
    x = torch.tensor([1.0, 3.0, 5.0, 7.0, 0.0, 0.0, 2.0, 2.0]).view(1, 4, 1, 1, 2)
    for moments in (group_statistics_reference(x, 2), group_statistics(x, 2)):
        assert moments.count == 4
        assert moments.mean.tolist() == [[4.0, 1.0]] and moments.m2.tolist() == [[20.0, 4.0]]
        assert moments.variance().tolist() == [[5.0, 1.0]]
        assert moments.rstd(3.0).tolist() == [[pytest.approx(8**-0.5), 0.5]]


@per_mode
def test_reference_is_torchs_group_norm_then_silu_then_padding(time_mode: str, space_mode: str) -> None:
    x = activations((2, 6, 3, 4, 5), torch.float64)
    arguments = norm_arguments(x, 3, torch.float64)
    padding = (2, 1, 0, 1, 1, 2)
    normed = torch.nn.functional.group_norm(x, 3, *arguments[3:], eps=1e-2)
    expected = pad3d_reference(torch.nn.functional.silu(normed), padding, time_mode, space_mode)
    torch.testing.assert_close(norm_silu_pad_reference(*arguments, padding, time_mode, space_mode), expected)


# Merging.


def test_two_parts_pool_by_the_law_of_total_variance() -> None:
    count = 10
    first = Moments(count, torch.tensor([[0.0]]), torch.tensor([[1.0 * count]]))
    second = Moments(count, torch.tensor([[2.0]]), torch.tensor([[1.0 * count]]))
    pooled = merge_statistics(first, second)
    assert pooled.count == 20 and pooled.mean.item() == 1 and pooled.variance().item() == 2


@given(cuts=st.lists(st.integers(1, 6), min_size=2, max_size=5))
@settings(max_examples=20, deadline=None)
def test_parts_pool_to_the_whole_in_any_order(cuts: list[int]) -> None:
    x = activations((1, 6, sum(cuts), 3, 2), torch.float64)
    parts = [group_statistics(part, 2) for part in x.split(cuts, 2)]
    forwards, backwards = parts[0], parts[-1]
    for part in parts[1:]:
        forwards = merge_statistics(forwards, part)
    for part in parts[-2::-1]:
        backwards = merge_statistics(part, backwards)
    whole = group_statistics_reference(x, 2)
    assert_moments(forwards, whole, 1e-12)
    assert_moments(backwards, whole, 1e-12)


def test_moments_of_other_groups_do_not_pool() -> None:
    x = activations((1, 4, 1, 2, 2))
    with pytest.raises(ValueError, match=r"\(1, 2\) and \(1, 4\)"):
        merge_statistics(group_statistics(x, 2), group_statistics(x, 4))


# The plain path.

sizes = st.integers(1, 6)
amounts = st.integers(0, 2)


@settings(max_examples=50, deadline=None)
@given(
    groups=st.sampled_from([1, 2, 4]), per_group=st.integers(1, 5), size=st.tuples(st.integers(1, 3), sizes, sizes, sizes),
    padding=st.tuples(*[amounts] * 6), modes=st.sampled_from(MODES), memory_format=st.sampled_from(FORMATS),
    dtype=st.sampled_from(list(ROUNDING)), block_bytes=st.sampled_from([1, 256, 1 << 20]),
)  # fmt: skip
def test_plain_paths_equal_the_references(groups, per_group, size, padding, modes, memory_format, dtype, block_bytes) -> None:
    from cvvae_kernels import plain_norm

    x = activations((size[0], groups * per_group, *size[1:]), dtype, memory_format)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain_norm, "_BLOCK_BYTES", block_bytes)  # so that tiny tensors have many blocks
        assert_moments(group_statistics(x, groups), group_statistics_reference(x, groups), tolerance)
        arguments = norm_arguments(x, groups)
        expected = norm_silu_pad_reference(*arguments, padding, *modes)
        actual = norm_silu_pad(*arguments, padding, *modes)
        assert_rounded(actual, expected, rounds=2)
        assert actual.is_contiguous(memory_format=memory_format)
        other = activations(tuple(x.shape), dtype).flip(2)
        total, moments = add_with_statistics_reference(x, other, groups)
        h = x.clone()
        summed, gathered = add_with_statistics(h, other, groups)
        assert torch.equal(summed, total)
        assert summed.data_ptr() == h.data_ptr()
        assert_moments(gathered, moments, tolerance)


@torch.no_grad()
@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(1, 2), sizes, sizes, sizes, sizes), padding=st.tuples(*[amounts] * 6),
    modes=st.sampled_from(MODES), memory_format=st.sampled_from(FORMATS), dtype=st.sampled_from(list(ROUNDING)),
    worth=st.sampled_from([0, 1 << 20]),
)  # fmt: skip
def test_activated_padding_equals_silu_then_padding(size, padding, modes, memory_format, dtype, worth) -> None:
    x = activations(size, dtype, memory_format)
    expected = pad3d_reference(torch.nn.functional.silu(x.double()).to(dtype), padding, *modes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cvvae_kernels, "_WORTH_A_PASS", worth)
        actual = silu_pad(x.clone(), padding, *modes)
    assert_rounded(actual, expected)
    assert actual.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("padding", [NOTHING, (2, 0, 1, 1, 0, 1)])
def test_activated_padding_has_gradients(padding: tuple[int, ...]) -> None:
    x = activations((1, 2, 2, 2, 2), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: silu_pad(x, padding, "replicate", "zeros"), x, fast_mode=True)


def test_without_gradients_activated_padding_of_nothing_is_in_place() -> None:
    x = activations((1, 2, 2, 2, 2))
    expected = torch.nn.functional.silu(x)
    with torch.no_grad():
        assert silu_pad(x, NOTHING, "zeros", "zeros").data_ptr() == x.data_ptr() and torch.equal(x, expected)
    with pytest.raises(ValueError, match="empty axis"):
        silu_pad(x[:, :, :0], NOTHING, "zeros", "zeros")


def test_norm_kernels_are_for_cuda_without_gradients() -> None:
    x = activations((1, 2, 1, 2, 2))
    assert not has_norm_kernels(x)
    with torch.no_grad():
        assert has_norm_kernels(x) == (DEVICE == "cuda" and find_spec("triton") is not None)
        assert not has_norm_kernels(x.double())


@per_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_composition_equals_the_references(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    """What autograd goes through rounds once, like the kernel."""
    x = activations((2, 6, 2, 3, 4), dtype, memory_format)
    arguments = norm_arguments(x, 2)
    for value in (x, *arguments[1:]):
        value.requires_grad_()
    actual = norm_silu_pad(*arguments, (2, 0, 1, 1, 0, 1), "replicate", "zeros")
    assert actual.requires_grad and actual.is_contiguous(memory_format=memory_format)
    assert_rounded(actual, norm_silu_pad_reference(*arguments, (2, 0, 1, 1, 0, 1), "replicate", "zeros"))
    assert_moments(group_statistics(x, 2), group_statistics_reference(x, 2))
    total, moments = add_with_statistics(x, x.detach(), 3)
    assert total.data_ptr() != x.data_ptr() and total.requires_grad and moments.mean.requires_grad
    assert_moments(moments, group_statistics_reference(2 * x, 3))


def test_gradients_are_numerically_right() -> None:
    x = activations((2, 4, 2, 2, 2), torch.float64).requires_grad_()
    parameters = [value.requires_grad_() for value in affine(4, torch.float64)]

    def norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        moments = group_statistics(x, 2)
        return norm_silu_pad(x, moments.mean, moments.rstd(1e-3), weight, bias, (2, 0, 1, 0, 0, 1), "replicate", "zeros")

    def add(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total, moments = add_with_statistics(h, x, 2)
        return total.sum() + (moments.mean * moments.m2).sum()

    assert torch.autograd.gradcheck(norm, (x, *parameters), fast_mode=True)
    assert torch.autograd.gradcheck(add, (x, x.detach().flip(0).requires_grad_()), fast_mode=True)


def test_frames_are_normalised_alone_where_they_are() -> None:
    video = activations((2, 6, 3, 4, 5), memory_format=torch.channels_last_3d)
    frames = video.transpose(1, 2).flatten(0, 1)
    assert frames.data_ptr() == video.data_ptr()
    moments = group_statistics(frames, 3)
    assert_moments(moments, group_statistics_reference(frames.unsqueeze(2), 3))
    arguments = (frames, moments.mean, moments.rstd(1e-6), *affine(6))
    actual = norm_silu_pad(*arguments, (0, 0, 1, 1, 1, 1), "zeros", "replicate")
    assert actual.shape == (6, 6, 6, 7) and actual.is_contiguous(memory_format=torch.channels_last)
    expected = norm_silu_pad_reference(frames.unsqueeze(2), *arguments[1:], (0, 0, 1, 1, 1, 1), "zeros", "replicate")
    assert_rounded(actual, expected.squeeze(2))
    total = video + 1
    summed, moments = add_with_statistics(frames, torch.ones_like(frames), 3)
    assert summed.data_ptr() == video.data_ptr() and torch.equal(video, total)
    assert_moments(moments, group_statistics_reference(summed.unsqueeze(2), 3))


def test_views_in_neither_format_are_served_too() -> None:
    tile = activations((1, 6, 3, 8, 7), memory_format=torch.channels_last_3d)[:, :, :, 1:5, 2:6]
    before = tile.clone()
    assert_moments(group_statistics(tile, 2), group_statistics_reference(tile, 2))
    arguments = norm_arguments(tile, 2)
    actual = norm_silu_pad(*arguments, NOTHING, "zeros", "zeros")
    assert_rounded(actual, norm_silu_pad_reference(*arguments, NOTHING, "zeros", "zeros"))
    summed, moments = add_with_statistics(tile, tile, 2)
    assert torch.equal(tile, before) and torch.equal(summed, 2 * before)
    for result in (actual, summed):
        assert result.is_contiguous(memory_format=torch.channels_last_3d)
    assert_moments(moments, group_statistics_reference(2 * before, 2))


def large_mean(memory_format: torch.memory_format, shape: tuple[int, ...] = (1, 8, 5, 40, 40)) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) + 1e4).to(DEVICE).to(memory_format=memory_format)


@per_format
def test_a_large_mean_costs_little_accuracy(memory_format: torch.memory_format) -> None:
    x = large_mean(memory_format)
    expected = group_statistics_reference(x, 2)
    actual = group_statistics(x, 2)
    torch.testing.assert_close(actual.m2.double(), expected.m2, rtol=1e-3, atol=0)
    torch.testing.assert_close(actual.mean.double(), expected.mean, rtol=1e-6, atol=0)
    squares = x.square().reshape(1, 2, -1).mean(2) - x.reshape(1, 2, -1).mean(2).square()
    assert (squares * expected.count / expected.m2 - 1).abs().max() > 0.1, "summed squares would do here as well"


@pytest.mark.parametrize(
    "change, said",
    [
        ({"x": torch.zeros(3, 4)}, "(3, 4)"),
        ({"x": torch.zeros(1, 4, 0, 2, 2)}, "empty axis"),
        ({"x": torch.zeros(1, 4, 1, 2, 2, dtype=torch.int32)}, "torch.int32"),
        ({"mean": torch.zeros(1, 3), "rstd": torch.ones(1, 3)}, "3 groups do not divide 4 channels"),
        ({"mean": torch.zeros(2, 2), "rstd": torch.ones(2, 2)}, "(2, 2)"),
        ({"rstd": torch.ones(2)}, "(1, 2) and (2,)"),
        ({"bias": torch.ones(2)}, "(4,) and (2,)"),
        ({"padding": (0, 0, 1, 1)}, "six numbers"),
        ({"x": torch.zeros(1, 4, 2, 2), "padding": (1, 0, 0, 0, 0, 0)}, "front = back = 0"),
        ({"time_mode": "reflect"}, "time_mode 'reflect'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(change: dict, said: str) -> None:
    right = {
        "x": torch.zeros(1, 4, 1, 2, 2), "mean": torch.zeros(1, 2), "rstd": torch.ones(1, 2), "weight": torch.ones(4),
        "bias": torch.zeros(4), "padding": NOTHING, "time_mode": "zeros", "space_mode": "zeros",
    }  # fmt: skip
    with pytest.raises(ValueError) as caught:
        norm_silu_pad(*(right | change).values())
    assert said in str(caught.value)


def test_wrong_groups_and_unlike_summands_are_refused() -> None:
    x = torch.zeros(1, 4, 1, 2, 2)
    for groups in (0, 3):
        with pytest.raises(ValueError, match=f"{groups} groups do not divide 4 channels"):
            group_statistics(x, groups)
    for other in (x.bfloat16(), x[:, :, :, :1]):
        with pytest.raises(ValueError, match="one shape and dtype"):
            add_with_statistics(x, other, 2)


# The kernels, by name, so that the interpreter runs them here.


def triton_statistics(x: torch.Tensor, groups: int) -> Moments:
    from cvvae_kernels.ops import group_statistics_op

    return Moments(x.numel() // (x.shape[0] * groups), *group_statistics_op(x, groups))


def triton_norm_silu_pad(*arguments) -> torch.Tensor:
    from cvvae_kernels.ops import norm_silu_pad_op

    return norm_silu_pad_op(*arguments)


@needs_triton
@per_format
def test_triton_statistics_equal_the_reference(memory_format: torch.memory_format) -> None:
    cases = [
        ((2, 6, 1, 2, 3), 2, torch.float32),
        ((1, 4, 1, 1, 1), 4, torch.bfloat16),
        ((1, 12, 3, 5, 7), 1, torch.float16),
        ((1, 40, 2, 9, 11), 2, torch.float32),
        ((1, 33, 1, 2, 2), 1, torch.bfloat16),
    ]
    for shape, groups, dtype in cases:
        x = activations(shape, dtype, memory_format)
        assert_moments(triton_statistics(x, groups), group_statistics_reference(x, groups))
    x = activations((1, 96, 1, 3, 3), torch.bfloat16, torch.channels_last_3d)  # three channels to a group, three lane tiles
    assert_moments(triton_statistics(x, 32), group_statistics_reference(x, 32))


@needs_triton
@per_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_statistics_of_long_stretches(dtype: torch.dtype, memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that walk over several tiles, the last of them with a ragged one; parts that fill several pooling blocks."""
    from cvvae_kernels import gather

    monkeypatch.setattr(gather, "_PROGRAMS", 2)
    monkeypatch.setattr(gather, "_POOL_BLOCK", 4)
    x = activations((1, 24, 5, 31, 29), dtype, memory_format)
    plan = gather.plan_statistics(tuple(x.shape), dtype.itemsize, memory_format == torch.channels_last_3d, 2)
    assert plan.sizes[2] > 3 and plan.programs >= 2
    assert_moments(triton_statistics(x, 2), group_statistics_reference(x, 2))


@needs_triton
@per_format
def test_triton_statistics_keep_their_accuracy_at_a_large_mean(memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    from cvvae_kernels import gather

    monkeypatch.setattr(gather, "_PROGRAMS", 4)
    x = large_mean(memory_format, (1, 8, 5, 30, 30))
    actual, expected = triton_statistics(x, 2), group_statistics_reference(x, 2)
    torch.testing.assert_close(actual.m2.double(), expected.m2, rtol=1e-4, atol=0)
    torch.testing.assert_close(actual.mean.double(), expected.mean, rtol=1e-6, atol=0)


@needs_triton
@per_format
@per_mode
def test_triton_norm_equals_the_reference(time_mode: str, space_mode: str, memory_format: torch.memory_format) -> None:
    cases = [
        ((1, 4, 2, 3, 2), 2, torch.float32, (2, 1, 0, 2, 1, 3)),
        ((2, 2, 1, 1, 2), 2, torch.bfloat16, (0, 1, 1, 0, 0, 2)),
        ((1, 3, 2, 2, 3), 1, torch.float16, (2, 0, 0, 0, 0, 0)),
    ]
    for shape, groups, dtype, padding in cases:
        arguments = norm_arguments(activations(shape, dtype, memory_format), groups, dtype)
        actual = triton_norm_silu_pad(*arguments, padding, time_mode, space_mode)
        assert_rounded(actual, norm_silu_pad_reference(*arguments, padding, time_mode, space_mode))
        assert actual.is_contiguous(memory_format=memory_format)


@needs_triton
def test_triton_norm_covers_several_tiles_and_channels_that_are_no_power_of_two() -> None:
    for shape, groups, memory_format in (((1, 96, 1, 3, 7), 32, FORMATS[1]), ((1, 1, 1, 70, 35), 1, FORMATS[0])):
        arguments = norm_arguments(activations(shape, torch.float32, memory_format), groups)
        for padding in (NOTHING, (1, 0, 1, 1, 1, 1)):
            actual = triton_norm_silu_pad(*arguments, padding, "replicate", "replicate")
            assert_rounded(actual, norm_silu_pad_reference(*arguments, padding, "replicate", "replicate"))


@needs_triton
@per_format
@pytest.mark.filterwarnings("ignore:overflow")  # of the interpreter, where exp2 becomes infinite on purpose
def test_blank_borders_stay_zero_around_nan_and_extremes_stay_finite(memory_format: torch.memory_format) -> None:
    x = torch.tensor([torch.nan, 1e4, -1e4, 0.0], device=DEVICE).view(1, 4, 1, 1, 1).to(memory_format=memory_format)
    arguments = (x, torch.zeros(1, 2, device=DEVICE), torch.ones(1, 2, device=DEVICE), torch.ones(4, device=DEVICE))
    for path in (triton_norm_silu_pad, norm_silu_pad):
        out = path(*arguments, torch.zeros(4, device=DEVICE), (0, 0, 1, 1, 1, 1), "zeros", "zeros")
        middle = out[0, :, 0, 1, 1].tolist()
        assert middle[0] != middle[0] and middle[1:] == [1e4, 0.0, 0.0]
        out[0, :, 0, 1, 1] = 0
        assert torch.equal(out, torch.zeros(1, 4, 1, 3, 3, device=DEVICE))


@needs_triton
@per_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_triton_sum_equals_the_reference(dtype: torch.dtype, memory_format, monkeypatch: pytest.MonkeyPatch) -> None:
    from cvvae_kernels import gather
    from cvvae_kernels.ops import add_with_statistics_op

    monkeypatch.setattr(gather, "_PROGRAMS", 2)
    for shape, groups in (((2, 6, 1, 2, 3), 3), ((1, 24, 5, 31, 29), 1)):
        # Whole numbers, because the interpreter cuts bf16 off where the hardware rounds.
        h = activations(shape, dtype, memory_format).round()
        x = activations(shape, dtype).round().flip(2)  # contiguous, so in the other format once
        total, moments = add_with_statistics_reference(h, x, groups)
        gathered = add_with_statistics_op(h, x, groups)
        assert torch.equal(h, total)
        assert_moments(Moments(moments.count, *gathered), moments)


@needs_triton
def test_triton_operators_tell_the_truth_about_themselves() -> None:
    """Schema, what is overwritten, fake output (shape, strides, dtype), by torch's own checker."""
    from cvvae_kernels.ops import add_with_statistics_op, group_statistics_op, norm_silu_pad_op

    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    x = activations((1, 2, 1, 1, 2), torch.bfloat16, torch.channels_last_3d)
    torch.library.opcheck(group_statistics_op, (x, 1), test_utils=checks)
    torch.library.opcheck(add_with_statistics_op, (x.clone(), x, 1), test_utils=checks)
    for padding in (list(NOTHING), [1, 0, 1, 1, 1, 1]):
        torch.library.opcheck(norm_silu_pad_op, (*norm_arguments(x, 1), padding, "replicate", "zeros"), test_utils=checks)


def test_everything_compiles_into_a_graph_without_breaks() -> None:
    def forward(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        total, moments = add_with_statistics(h * 2, x, 2)
        moments = merge_statistics(moments, group_statistics(silu_pad(x * 2, (1, 0, 1, 1, 0, 0), "zeros", "replicate"), 2))
        return norm_silu_pad(total, moments.mean, moments.rstd(1e-2), weight, bias, (2, 0, 1, 1, 1, 1), "replicate", "zeros")

    weight, bias = affine(4)
    h = activations((1, 4, 1, 2, 2), memory_format=torch.channels_last_3d)
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")(h, h + 1)
    assert_rounded(compiled, forward(h, h + 1))
    assert compiled.is_contiguous(memory_format=torch.channels_last_3d)


@needs_triton
def test_triton_sum_in_place_survives_compilation() -> None:
    from cvvae_kernels.ops import add_with_statistics_op

    def forward(h: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        total = h * 2
        gathered = add_with_statistics_op(total, x, 2)
        return total + 0, gathered

    h = activations((1, 4, 1, 2, 2))
    total, gathered = torch.compile(forward, fullgraph=True, backend="aot_eager")(h, h)
    assert torch.equal(total, 3 * h)
    assert_moments(Moments(8, *gathered), group_statistics_reference(3 * h, 2))


AHEAD_OF_TIME = """
import json, re, sys
import torch, cvvae_kernels
x = torch.zeros(1, 4, 1, 2, 2)
cvvae_kernels.norm_silu_pad(x, *torch.zeros(2, 1, 2), x[0, :, 0, 0, 0], x[0, :, 0, 0, 0], [0] * 6, "zeros", "zeros")
cvvae_kernels.add_with_statistics(x, x, 2)
answer = {"triton_imported": "triton" in sys.modules, "refusal": "", "kernels": []}
try:
    cvvae_kernels.ops.group_statistics_op(x, 2)
except ValueError as error:
    answer["refusal"] = str(error)

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cvvae_kernels import gather, norm

def note(name, capability, channels_last, kernel, types, constants, warps):
    names = kernel.arg_names
    signature = {n: types.get(n, "constexpr" if n in constants else "i32") for n in names}
    aligned = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if n in types and types[n] != "i64"}
    source = ASTSource(kernel, signature, {(names.index(n),): value for n, value in constants.items()}, aligned)
    asm = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps}).asm
    answer["kernels"].append({
        "name": name, "capability": capability, "channels_last": channels_last, "cubin": len(asm["cubin"]),
        "target": re.search(r"\\.target (\\w+)", asm["ptx"])[1],
        "accesses": sorted(set(re.findall(r"(?:ld\\.global|st\\.global|cp\\.async)[.\\w]*", asm["ptx"]))),
        "corner_offsets": re.findall(r"tt\\.addptr [^\\n]*: !tt\\.ptr<\\w+>, (\\w+)", asm["ttir"]),
    })

for capability in (80, 90, 120):
    for channels_last in (False, True) if capability == 90 else (True,):
        shape = (1, 128, 17, 256, 256)
        plan = norm.plan_launch(shape, 2, channels_last, (2, 0, 1, 1, 1, 1), ("replicate", "replicate"))
        constants = plan.constants | {"CHANNELS": 128, "GROUP": 4, "CHANNELS_LAST": channels_last, "BLANKS": False}
        types = dict.fromkeys(("source", "target"), "*bf16") | dict.fromkeys(("mean", "rstd", "weight", "bias"), "*fp32")
        note("norm", capability, channels_last, norm._norm_silu_pad_kernel, types, constants, norm._WARPS)
        plan = gather.plan_statistics(shape, 2, channels_last, 32)
        types = {"h": "*bf16", "x": "*bf16", "parts": "*fp32", "length": "i64"}
        constants = plan.constants | {"ADD": channels_last}
        note("gather", capability, channels_last, gather._gather_kernel, types, constants, gather.WARPS)
    types = {"parts": "*fp32", "result": "*fp32"}
    note("pool", capability, None, gather._pool_kernel, types, {"BLOCK": 2048}, gather._POOL_WARPS)
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def ahead_of_time(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What a fresh Python says that interprets nothing, has an empty cache, and compiles for GPUs it may not have."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(Path(cvvae_kernels.__file__).parents[1])
    environment["TRITON_CACHE_DIR"] = str(tmp_path_factory.mktemp("triton"))
    command = [sys.executable, "-W", "ignore", "-c", AHEAD_OF_TIME]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


@needs_triton
def test_on_the_cpu_nothing_imports_triton_and_triton_refuses(ahead_of_time: dict) -> None:
    assert not ahead_of_time["triton_imported"]
    assert "Triton gathers statistics on CUDA, not on cpu" in ahead_of_time["refusal"]


@needs_triton
def test_kernels_compile_for_every_architecture(ahead_of_time: dict) -> None:
    assert len(ahead_of_time["kernels"]) == 3 * 3 + 2
    for kernel in ahead_of_time["kernels"]:
        assert kernel["target"].startswith(f"sm_{kernel['capability']}") and kernel["cubin"] > 1000


@needs_triton
def test_kernels_use_wide_accesses_and_64_bit_offsets(ahead_of_time: dict) -> None:
    for kernel in ahead_of_time["kernels"]:
        if kernel["name"] == "gather":
            assert set(kernel["corner_offsets"]) == {"i64"}, kernel
            assert "ld.global.v4.b32" in kernel["accesses"] and "cp.async.cg.shared.global" in kernel["accesses"], kernel
            assert ("st.global.v4.b32" in kernel["accesses"]) == kernel["channels_last"], kernel  # where it adds
        elif kernel["name"] == "norm" and kernel["channels_last"]:
            assert set(kernel["corner_offsets"]) == {"i64"}, kernel
            assert {"ld.global.v4.b32", "st.global.v4.b32"} <= set(kernel["accesses"]), kernel


@needs_triton
@per_format
def test_statistics_launches_cover_every_element_once(memory_format: torch.memory_format) -> None:
    from cvvae_kernels.gather import plan_statistics

    channels_last = memory_format == torch.channels_last_3d
    large, small = ((1, 128, 17, 1080, 1920), (2, 512, 17, 32, 32)), ((1, 96, 1, 5, 7), (3, 32, 1, 1, 1))
    for shape, groups in itertools.product(large + small, (1, 32)):
        plan = plan_statistics(shape, 2, channels_last, groups)
        length, chunks, tiles = plan.sizes
        stretch = tiles * plan.constants["BLOCK_ROWS"] * plan.constants["CHANNELS"]
        assert (chunks - 1) * stretch < length <= chunks * stretch < length + 2**31
        assert plan.programs <= 2**13 and stretch % plan.constants["ALIGN"] == length % plan.constants["ALIGN"] == 0
        assert plan.parts * shape[0] * groups <= 2**22
    if channels_last:
        with pytest.raises(ValueError, match="too large for one launch"):
            plan_statistics((1, 2**28, 1, 2, 2**11), 2, channels_last, 1)


@needs_triton
@pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA and 20 GB of its memory")
@per_format
def test_elements_beyond_two_to_the_31(memory_format: torch.memory_format) -> None:
    x = torch.zeros(1, 132, 1, 4096, 4096, dtype=torch.bfloat16, device=DEVICE, memory_format=memory_format)
    x[0, -2:, :, -1] = 3
    moments = group_statistics(x, 66)
    share = 1 / 4096
    assert torch.count_nonzero(moments.mean).item() == 1
    assert moments.mean[0, -1].item() == pytest.approx(3 * share)
    assert moments.variance()[0, -1].item() == pytest.approx(9 * share * (1 - share))
    weight, bias = torch.ones(132, device=DEVICE), torch.zeros(132, device=DEVICE)
    out = norm_silu_pad(x, 0 * moments.mean, 0 * moments.mean + 1, weight, bias, (0, 0, 0, 1, 0, 1), "zeros", "replicate")
    assert out.numel() > 2**31 and out.count_nonzero().item() == 2 * 2 * 4097
    assert out[0, -2:, 0, -2:].eq(torch.nn.functional.silu(torch.tensor(3.0)).bfloat16()).all()
    total, moments = add_with_statistics(x, x, 66)
    assert total.data_ptr() == x.data_ptr() and moments.mean[0, -1].item() == pytest.approx(6 * share)


@needs_triton
@pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA")
@per_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_shapes_of_the_networks(dtype: torch.dtype, memory_format: torch.memory_format) -> None:
    for shape in ((1, 128, 5, 97, 131), (2, 256, 3, 64, 64), (1, 512, 5, 33, 32), (1, 96, 2, 50, 51)):
        x = activations(shape, dtype, memory_format)
        moments = group_statistics(x, 32)
        assert_moments(moments, group_statistics_reference(x, 32), 1e-5)
        assert torch.equal(group_statistics(x, 32).m2, moments.m2)
        arguments = norm_arguments(x, 32, dtype)
        for padding in (NOTHING, (2, 0, 1, 1, 1, 1)):
            actual = norm_silu_pad(*arguments, padding, "replicate", "zeros")
            expected = norm_silu_pad_reference(*arguments, padding, "replicate", "zeros")
            torch.testing.assert_close(actual, expected, rtol=max(ROUNDING[dtype], 1e-5), atol=1e-5)
        total, expected_moments = add_with_statistics_reference(x, x, 32)
        summed, gathered = add_with_statistics(x, x, 32)
        assert torch.equal(summed, total)
        assert_moments(gathered, expected_moments, 1e-5)
