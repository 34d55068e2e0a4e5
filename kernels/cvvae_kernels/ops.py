"""The Triton paddings as torch operators: shapes for compilers, gradients for autograd, kernels imported at the first call.

`torch.compile` sees one opaque operator with known output, so nothing breaks the graph. Knows nothing of how the
kernels work (`pad.py`) and does not choose between them and plain torch (`__init__.py`).
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
