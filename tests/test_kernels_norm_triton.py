"""Triton's kernels of norms and sums against the references: interpreted here, for real where CUDA is.

The interpreter takes some 50 ms per program, so its tensors are tiny.
"""

import itertools

import pytest
import torch
from cvvae_kernels import (
    Moments,
    add_with_statistics,
    add_with_statistics_reference,
    group_statistics,
    group_statistics_reference,
    merge_statistics,
    norm_silu_pad,
    norm_silu_pad_reference,
    silu_pad,
)
from kernel_cases import (
    DEVICE,
    FORMATS,
    NOTHING,
    ROUNDING,
    activations,
    affine,
    assert_moments,
    assert_rounded,
    large_mean,
    needs_triton,
    norm_arguments,
    per_format,
    per_mode,
    poisoned_memory,  # noqa: F401 - makes torch.empty return NaN here
)

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
    from cvvae_kernels.ops import (
        add_with_statistics_op,
        group_statistics_op,
        norm_silu_pad_op,
    )

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
