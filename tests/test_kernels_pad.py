"""Padding kernels against their reference: through Triton's interpreter here, for real where CUDA is.

The interpreter takes some 50 ms per program, so tensors for Triton are tiny; the plain path gets the larger ones.
"""

import itertools

import pytest
import torch
from cvvae_kernels import pad3d, pad3d_reference
from cvvae_kernels.layout import PAD_MODES, memory_format_of
from cvvae_kernels.plain import pad3d_differentiable, pad3d_plain
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import (
    DEVICE,
    FORMATS,
    MODES,
    compiled_ahead_of_time,
    needs_triton,
    per_format,
    per_mode,
    poisoned_memory,  # noqa: F401 - makes torch.empty return NaN here
)


def noise(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, memory_format=torch.contiguous_format) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=torch.float64).mul(20).to(dtype)
    return x.to(DEVICE).to(memory_format=memory_format)


def small_integers(shape: tuple[int, ...], dtype: torch.dtype, memory_format: torch.memory_format) -> torch.Tensor:
    """Gradients whose sums are exact in every float dtype, so that sums can be compared bit for bit."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-3, 4, shape, generator=generator).to(dtype).to(DEVICE).to(memory_format=memory_format)


def assert_same_bits(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))


def naive_pad(x: torch.Tensor, padding: tuple[int, ...], time_mode: str, space_mode: str) -> torch.Tensor:
    """The definition, one element at a time: what the reference itself is checked against."""
    sizes, modes = x.shape[2:], (time_mode, space_mode, space_mode)
    out = torch.zeros(*x.shape[:2], *(n + padding[2 * a] + padding[2 * a + 1] for a, n in enumerate(sizes)), dtype=x.dtype)
    for position in itertools.product(*(range(n) for n in out.shape[2:])):
        wanted = [p - padding[2 * a] for a, p in enumerate(position)]
        blank = any(mode == "zeros" and not 0 <= w < n for w, n, mode in zip(wanted, sizes, modes, strict=True))
        if not blank:
            nearest = tuple(min(max(w, 0), n - 1) for w, n in zip(wanted, sizes, strict=True))
            out[(slice(None), slice(None), *position)] = x[(slice(None), slice(None), *nearest)]
    return out


@per_mode
def test_reference_follows_the_definition(time_mode: str, space_mode: str) -> None:
    x = noise((2, 3, 2, 3, 4))
    x[0, 0, 0, 0, 0] = torch.nan  # a blanked NaN must become zero, not stay NaN
    padding = (2, 1, 0, 3, 1, 2)
    assert_same_bits(pad3d_reference(x, padding, time_mode, space_mode).cpu(), naive_pad(x.cpu(), padding, time_mode, space_mode))


sizes = st.integers(1, 5)
amounts = st.integers(0, 3)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(sizes, sizes, sizes, sizes, sizes), padding=st.tuples(*[amounts] * 6), modes=st.sampled_from(MODES),
    memory_format=st.sampled_from(FORMATS), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.uint8]),
)  # fmt: skip
def test_plain_paths_equal_the_reference(shape, padding, modes, memory_format, dtype) -> None:
    x = noise(shape, dtype, memory_format)
    expected = pad3d_reference(x, padding, *modes)
    for path in (pad3d_plain, pad3d_differentiable):
        actual = path(x, padding, *modes)
        assert_same_bits(actual, expected)
        assert actual.is_contiguous(memory_format=memory_format)


@per_mode
def test_plain_gradients_equal_the_reference(time_mode: str, space_mode: str) -> None:
    x = noise((2, 3, 2, 3, 4), torch.float64).cpu().requires_grad_()
    padding = (2, 1, 0, 3, 1, 2)
    weights = noise((2, 3, 5, 6, 7), torch.float64).cpu()
    (expected,) = torch.autograd.grad((pad3d_reference(x, padding, time_mode, space_mode) * weights).sum(), x)
    (actual,) = torch.autograd.grad((pad3d(x, padding, time_mode, space_mode) * weights).sum(), x)
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def test_a_view_that_is_in_neither_format_is_padded_too() -> None:
    x = noise((1, 4, 3, 6, 5), memory_format=torch.channels_last_3d)[:, :, :, 1:4]
    actual = pad3d(x, (1, 0, 1, 1, 1, 1), "replicate", "zeros")
    assert_same_bits(actual, pad3d_reference(x, (1, 0, 1, 1, 1, 1), "replicate", "zeros"))
    assert actual.is_contiguous(memory_format=torch.channels_last_3d)


def test_nothing_to_add_returns_the_tensor_itself() -> None:
    x = noise((1, 2, 1, 2, 2))
    assert pad3d(x, (0, 0, 0, 0, 0, 0), "zeros", "replicate") is x


def test_memory_format_of_ambiguous_tensors_follows_the_strides() -> None:
    one_pixel = torch.empty(2, 3, 1, 1, 1)
    assert memory_format_of(one_pixel) == torch.contiguous_format
    assert memory_format_of(torch.empty(2, 3, 1, 1, 1, memory_format=torch.channels_last_3d)) == torch.channels_last_3d
    assert memory_format_of(torch.empty(2, 3, 4, 5, 6).transpose(3, 4)) == torch.contiguous_format


@pytest.mark.parametrize(
    "shape, padding, modes, said",
    [
        ((3, 2, 4, 4), (0, 0, 1, 1, 1, 1), ("zeros", "zeros"), "(3, 2, 4, 4)"),
        ((1, 3, 0, 4, 4), (0, 0, 1, 1, 1, 1), ("zeros", "zeros"), "empty axis"),
        ((1, 3, 2, 4, 4), (0, 0, 1, 1), ("zeros", "zeros"), "six numbers"),
        ((1, 3, 2, 4, 4), (0, 0, 1, -1, 1, 1), ("zeros", "zeros"), "-1"),
        ((1, 3, 2, 4, 4), (0, 0, 1, 1, 1, 1), ("reflect", "zeros"), "time_mode 'reflect'"),
        ((1, 3, 2, 4, 4), (0, 0, 1, 1, 1, 1), ("zeros", "zero"), "space_mode 'zero'"),
    ],
)
def test_wrong_arguments_are_refused_with_the_value(shape, padding, modes, said) -> None:
    with pytest.raises(ValueError) as caught:
        pad3d(torch.zeros(shape), padding, *modes)
    assert said in str(caught.value)


def triton_pad(x: torch.Tensor, padding: tuple[int, ...], time_mode: str, space_mode: str) -> torch.Tensor:
    """The operator that `pad3d` uses on CUDA, asked for by name so that the interpreter runs it here."""
    from cvvae_kernels.ops import pad3d_op

    return pad3d_op(x, padding, time_mode, space_mode)


@needs_triton
@per_format
@per_mode
def test_triton_equals_the_reference(time_mode: str, space_mode: str, memory_format: torch.memory_format) -> None:
    padding = (2, 1, 0, 2, 1, 3)
    cases = [
        ((1, 2, 2, 3, 5), torch.float32),
        ((1, 1, 1, 2, 1) if memory_format == torch.contiguous_format else (1, 3, 1, 2, 1), torch.bfloat16),
        ((1, 1, 1, 1, 3) if memory_format == torch.contiguous_format else (1, 16, 1, 1, 3), torch.float16),
    ]
    for shape, dtype in cases:
        x = noise(shape, dtype, memory_format)
        actual = triton_pad(x, padding, time_mode, space_mode)
        assert_same_bits(actual, pad3d_reference(x, padding, time_mode, space_mode))
        assert actual.is_contiguous(memory_format=memory_format)


@needs_triton
@pytest.mark.parametrize("space_mode", PAD_MODES)
def test_triton_covers_several_tiles(space_mode: str) -> None:
    for shape, padding in (((1, 1, 1, 70, 35), (0, 0, 1, 1, 1, 1)), ((1, 1, 2, 1, 1), (0, 0, 90, 0, 0, 70))):
        x = noise(shape)
        actual = triton_pad(x, padding, "replicate", space_mode)
        assert_same_bits(actual, pad3d_reference(x, padding, "replicate", space_mode))
    x = noise((1, 3, 1, 3, 200), memory_format=torch.channels_last_3d)
    assert_same_bits(triton_pad(x, padding, "zeros", space_mode), pad3d_reference(x, padding, "zeros", space_mode))


@needs_triton
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64, torch.int16])
def test_triton_moves_bits_of_any_dtype(dtype: torch.dtype) -> None:
    x = noise((1, 1, 1, 2, 3)).abs().to(dtype)
    for padding in ((1, 0, 1, 1, 1, 1), (0, 0, 0, 0, 0, 0)):
        assert_same_bits(triton_pad(x, padding, "replicate", "zeros"), pad3d_reference(x, padding, "replicate", "zeros"))


@needs_triton
def test_triton_keeps_nan_payloads_and_negative_zero() -> None:
    x = torch.tensor([0x7FC1, -0x8000, 0x7F81, 0x0001], dtype=torch.int16, device=DEVICE).view(1, 1, 1, 2, 2)
    padding = (1, 0, 1, 1, 1, 1)
    actual = triton_pad(x.view(torch.bfloat16), padding, "replicate", "replicate")
    assert torch.equal(actual.view(torch.int16), pad3d_reference(x, padding, "replicate", "replicate"))


@needs_triton
@per_format
@per_mode
def test_triton_gradient_equals_the_reference(time_mode: str, space_mode: str, memory_format: torch.memory_format) -> None:
    padding = (2, 1, 0, 2, 1, 3)
    for shape, dtype in (((1, 1, 2, 3, 2), torch.float32), ((1, 2, 1, 1, 1), torch.bfloat16)):
        x = noise(shape, dtype, memory_format).requires_grad_()
        expected_out = pad3d_reference(x, padding, time_mode, space_mode)
        grad = small_integers(tuple(expected_out.shape), dtype, memory_format)
        (expected,) = torch.autograd.grad(expected_out.float(), x, grad.float())
        (actual,) = torch.autograd.grad(triton_pad(x, padding, time_mode, space_mode), x, grad)
        assert actual.dtype == dtype and torch.equal(actual, expected)


@needs_triton
def test_triton_gradient_covers_several_tiles() -> None:
    for shape, memory_format in (((1, 1, 1, 70, 35), FORMATS[0]), ((1, 16, 1, 2, 50), FORMATS[1])):
        x = noise(shape, memory_format=memory_format).requires_grad_()
        expected_out = pad3d_reference(x, (0, 0, 1, 1, 1, 2), "replicate", "replicate")
        grad = small_integers(tuple(expected_out.shape), x.dtype, memory_format)
        (expected,) = torch.autograd.grad(expected_out, x, grad)
        (actual,) = torch.autograd.grad(triton_pad(x, (0, 0, 1, 1, 1, 2), "replicate", "replicate"), x, grad)
        assert torch.equal(actual, expected)


@needs_triton
def test_triton_gradient_is_summed_in_float32() -> None:
    # In bf16, 256 + 1 is 256 again; only a wider sum of 256 and eight ones reaches 264.
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.bfloat16, device=DEVICE, requires_grad=True)
    grad = torch.ones(1, 1, 9, 1, 1, dtype=torch.bfloat16, device=DEVICE)
    grad[0, 0, 0] = 256
    (actual,) = torch.autograd.grad(triton_pad(x, (8, 0, 0, 0, 0, 0), "replicate", "zeros"), x, grad)
    assert actual.item() == 264


@needs_triton
def test_triton_first_and_second_derivatives_are_numerically_right() -> None:
    x = noise((1, 1, 1, 2, 2), torch.float64).requires_grad_()

    def pad_smoothly(value: torch.Tensor) -> torch.Tensor:
        return triton_pad(value, (1, 0, 0, 1, 1, 1), "replicate", "replicate").div(20).sin()

    assert torch.autograd.gradcheck(pad_smoothly, x, fast_mode=True)
    assert torch.autograd.gradgradcheck(pad_smoothly, x, fast_mode=True)


@needs_triton
def test_triton_operator_tells_the_truth_about_itself() -> None:
    """Schema, fake output (shape, strides, dtype) and autograd registration, by torch's own checker."""
    from cvvae_kernels.ops import pad3d_backward_op, pad3d_op

    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    x = noise((1, 2, 1, 1, 1), memory_format=torch.channels_last_3d)
    for operator, shape in ((pad3d_op, (1, 2, 1, 1, 1)), (pad3d_backward_op, (1, 2, 2, 3, 3))):
        x = noise(shape, memory_format=torch.channels_last_3d)
        torch.library.opcheck(operator, (x, [1, 0, 1, 1, 1, 1], "replicate", "zeros"), test_utils=checks)


@needs_triton
def test_triton_compiles_into_a_graph_without_breaks() -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return triton_pad(x * 2, (1, 0, 1, 1, 1, 1), "replicate", "zeros") + 1

    x = noise((1, 2, 1, 2, 2), memory_format=torch.channels_last_3d).requires_grad_()
    compiled = torch.compile(forward, fullgraph=True, backend="aot_eager")(x)
    assert torch.equal(compiled, forward(x))
    assert compiled.is_contiguous(memory_format=torch.channels_last_3d)
    (actual,) = torch.autograd.grad(compiled.sum(), x)
    assert torch.equal(actual, torch.autograd.grad(forward(x).sum(), x)[0])


@per_mode
def test_pad3d_compiles_into_a_graph_without_breaks(time_mode: str, space_mode: str) -> None:
    def forward(x: torch.Tensor) -> torch.Tensor:
        return pad3d(x * 2, (2, 0, 1, 1, 1, 1), time_mode, space_mode) + 1

    x = noise((1, 2, 2, 3, 3))
    assert torch.equal(torch.compile(forward, fullgraph=True, backend="eager")(x), forward(x))


AHEAD_OF_TIME = """
import json, re, sys
import torch, cvvae_kernels
cvvae_kernels.pad3d(torch.zeros(1, 1, 1, 2, 2), (1, 0, 1, 1, 1, 1), "zeros", "zeros")
answer = {"triton_imported": "triton" in sys.modules, "refusal": "", "kernels": []}
try:
    cvvae_kernels.ops.pad3d_op(torch.zeros(1, 1, 1, 2, 2), (1, 0, 1, 1, 1, 1), "zeros", "zeros")
except ValueError as error:
    answer["refusal"] = str(error)

import triton, triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cvvae_kernels import pad

def compile_for(capability, shape, channels_last, modes, backward):
    kernel, element = (pad._pad_backward_kernel, "*bf16") if backward else (pad._pad_kernel, "*i16")
    plan = pad.plan_launch(shape, 2, channels_last, (2, 0, 1, 1, 1, 1), modes, backward)
    constants = plan.constants | ({"SUM_DTYPE": tl.float32} if backward else {})
    names = kernel.arg_names
    types = [element, element] + ["i32"] * len(plan.sizes) + ["constexpr"] * len(constants)
    source = ASTSource(
        kernel, dict(zip(names, types, strict=True)), {(names.index(name),): value for name, value in constants.items()},
        {(index,): [["tt.divisibility", 16]] for index in (0, 1)},
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": 4}).asm

for capability in (80, 86, 89, 90, 100, 120):
    for backward in (False, True):
        for channels_last, modes in ((False, ("replicate", "zeros")), (True, ("zeros", "replicate"))):
            small = (1, 64, 2, 8, 16) if channels_last else (1, 2, 2, 6, 6)  # unrolls little, so compiles quickly
            shape = (1, 128, 17, 256, 256) if capability == 90 else small
            asm = compile_for(capability, shape, channels_last, modes, backward)
            accesses = sorted(set(re.findall(r"(?:ld|st)\\.global[.\\w]*", asm["ptx"])))
            answer["kernels"].append({
                "capability": capability, "backward": backward, "channels_last": channels_last, "cubin": len(asm["cubin"]),
                "target": re.search(r"\\.target (\\w+)", asm["ptx"])[1], "accesses": accesses,
                "corner_offsets": re.findall(r"tt\\.addptr [^\\n]*: !tt\\.ptr<\\w+>, (\\w+)", asm["ttir"]),
            })
print(json.dumps(answer))
"""


@pytest.fixture(scope="module")
def ahead_of_time(tmp_path_factory: pytest.TempPathFactory) -> dict:
    return compiled_ahead_of_time(AHEAD_OF_TIME, tmp_path_factory.mktemp("triton"))


@needs_triton
def test_on_the_cpu_pad3d_does_not_import_triton_and_triton_refuses(ahead_of_time: dict) -> None:
    assert not ahead_of_time["triton_imported"]
    assert "Triton pads on CUDA, not on cpu" in ahead_of_time["refusal"]


@needs_triton
def test_kernels_compile_for_every_architecture(ahead_of_time: dict) -> None:
    assert len(ahead_of_time["kernels"]) == 6 * 2 * 2
    for kernel in ahead_of_time["kernels"]:
        assert kernel["target"].startswith(f"sm_{kernel['capability']}") and kernel["cubin"] > 1000


@needs_triton
def test_kernels_use_wide_accesses_and_64_bit_offsets(ahead_of_time: dict) -> None:
    for kernel in ahead_of_time["kernels"]:
        # Every tile's corner is a pointer plus an offset, and an offset may exceed 2^31 elements (17 x 1080p x 128).
        assert set(kernel["corner_offsets"]) == {"i64"}, kernel
        if kernel["channels_last"]:
            assert kernel["accesses"] == ["ld.global.v4.b32", "st.global.v4.b32"], kernel
        else:
            assert "st.global.b32" in kernel["accesses"], kernel


@needs_triton
def test_launches_stay_within_what_32_bits_count() -> None:
    from cvvae_kernels.pad import plan_launch

    padding, modes = (2, 0, 1, 1, 1, 1), ("replicate", "replicate")
    for backward, channels_last in itertools.product((False, True), (False, True)):
        plan = plan_launch((1, 128, 17, 1080, 1920), 2, channels_last, padding, modes, backward)
        covered = plan.programs * plan.constants["BLOCK_ROWS"] * plan.constants["BLOCK_LANES"]
        assert 128 * 17 * 1080 * 1920 <= covered <= 1.5 * 128 * 17 * 1080 * 1920
        assert plan.programs < 2**31
    with pytest.raises(ValueError, match="too large for one launch"):
        plan_launch((1, 2**20, 1, 2, 2**11), 2, True, padding, modes)


@needs_triton
@pytest.mark.skipif(DEVICE != "cuda", reason="needs CUDA and 5 GB of its memory")
def test_elements_beyond_two_to_the_31_are_padded() -> None:
    x = torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8, device=DEVICE).expand(1, 130, 1, 4096, 4096).contiguous()
    x[0, -1, -1, -1, -1] = 7
    out = pad3d(x, (1, 0, 0, 1, 0, 1), "replicate", "replicate")
    assert out.numel() > 2**31 and out.sum().item() == 2 * 4 * 7
    assert out[0, -1, :, -2:, -2:].eq(7).all()
