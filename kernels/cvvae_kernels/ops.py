"""The Triton kernels as torch operators: shapes for compilers, gradients for autograd, kernels imported at the first call.

`torch.compile` sees one opaque operator with known output, so nothing breaks the graph. Knows nothing of how the
kernels work (`pad.py`, `norm.py`, `gather.py`) and does not choose between them and plain torch
(`__init__.py`). Only the paddings have gradients; with the others, autograd goes through plain torch.
"""

from collections.abc import Sequence

import torch

from cvvae_kernels.layout import empty_padded, padded_shape


@torch.library.custom_op("cvvae_kernels::pad3d", mutates_args=())
def pad3d_op(x: torch.Tensor, padding: Sequence[int], time_mode: str, space_mode: str) -> torch.Tensor:
    """`pad3d_reference` by Triton; arguments are taken as checked."""
    from cvvae_kernels.pad import launch_pad

    return launch_pad(x, padding, (time_mode, space_mode))


@torch.library.custom_op("cvvae_kernels::pad3d_backward", mutates_args=())
def pad3d_backward_op(grad: torch.Tensor, padding: Sequence[int], time_mode: str, space_mode: str) -> torch.Tensor:
    """The adjoint of `pad3d_op`: each input position gets the sum of the output gradients that read it."""
    from cvvae_kernels.pad import launch_pad_backward

    return launch_pad_backward(grad, padding, (time_mode, space_mode))


@pad3d_op.register_fake
def _(x: torch.Tensor, padding: Sequence[int], time_mode: str, space_mode: str) -> torch.Tensor:
    return empty_padded(x, padded_shape(x.shape, padding))


@pad3d_backward_op.register_fake
def _(grad: torch.Tensor, padding: Sequence[int], time_mode: str, space_mode: str) -> torch.Tensor:
    return empty_padded(grad, padded_shape(grad.shape, [-amount for amount in padding]))


def _remember_arguments(ctx, inputs: tuple, output: torch.Tensor) -> None:
    ctx.arguments = inputs[1:]


def _pad_gradient(ctx, grad: torch.Tensor) -> tuple:
    return pad3d_backward_op(grad, *ctx.arguments), None, None, None


def _pad_backward_gradient(ctx, grad: torch.Tensor) -> tuple:
    # The adjoint of the adjoint is the padding itself, which gives second derivatives for nothing.
    return pad3d_op(grad, *ctx.arguments), None, None, None


pad3d_op.register_autograd(_pad_gradient, setup_context=_remember_arguments)
pad3d_backward_op.register_autograd(_pad_backward_gradient, setup_context=_remember_arguments)


@torch.library.custom_op("cvvae_kernels::group_statistics", mutates_args=())
def group_statistics_op(x: torch.Tensor, groups: int) -> torch.Tensor:
    """(2, B, groups), float32: mean and M2 of `group_statistics_reference` by Triton; arguments are taken as checked."""
    from cvvae_kernels.gather import launch_statistics

    return launch_statistics(x, None, groups)


@torch.library.custom_op("cvvae_kernels::add_with_statistics", mutates_args=("h",))
def add_with_statistics_op(h: torch.Tensor, x: torch.Tensor, groups: int) -> torch.Tensor:
    """Adds x to h, which has a memory format, in place; returns what `group_statistics_op` would for the sum."""
    from cvvae_kernels.gather import launch_statistics

    return launch_statistics(h, x, groups)


@torch.library.custom_op("cvvae_kernels::norm_silu_pad", mutates_args=())
def norm_silu_pad_op(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], time_mode: str, space_mode: str,
) -> torch.Tensor:  # fmt: skip
    """`norm_silu_pad_reference` by Triton; arguments are taken as checked."""
    from cvvae_kernels.norm import launch_norm_silu_pad

    return launch_norm_silu_pad(x, mean, rstd, weight, bias, padding, (time_mode, space_mode))


@group_statistics_op.register_fake
def _(x: torch.Tensor, groups: int) -> torch.Tensor:
    return x.new_empty(2, x.shape[0], groups, dtype=torch.float32)


@add_with_statistics_op.register_fake
def _(h: torch.Tensor, x: torch.Tensor, groups: int) -> torch.Tensor:
    return h.new_empty(2, h.shape[0], groups, dtype=torch.float32)


@norm_silu_pad_op.register_fake
def _(
    x: torch.Tensor, mean: torch.Tensor, rstd: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor,
    padding: Sequence[int], time_mode: str, space_mode: str,
) -> torch.Tensor:  # fmt: skip
    return empty_padded(x, padded_shape(x.shape, padding))
