"""Group statistics, norm-SiLU-pad and residual sums on their plain path, against references and definitions."""

from importlib.util import find_spec

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
    norms_while_padding,
    merge_statistics,
    norm_silu_pad,
    norm_silu_pad_reference,
    pad3d_reference,
    silu_pad,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    DEVICE,
    FORMATS,
    MODES,
    NOTHING,
    ROUNDING,
    activations,
    affine,
    assert_moments,
    assert_rounded,
    large_mean,
    norm_arguments,
    per_format,
    per_mode,
    poisoned_memory,  # noqa: F401 - makes torch.empty return NaN here
)

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


def test_norms_are_part_of_padding_where_that_saves_a_tensor() -> None:
    x, kernels = activations((1, 2, 1, 2, 2)), DEVICE == "cuda" and find_spec("triton") is not None
    assert not norms_while_padding(x, (2, 0, 0, 0, 0, 0))
    with torch.no_grad():
        assert norms_while_padding(x, (2, 0, 0, 0, 0, 0)) == (DEVICE == "cpu" or kernels)
        assert norms_while_padding(x, NOTHING) == kernels


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
