"""A 3-D convolution that never takes torch's slow path on a CPU. It knows nothing of the networks that use it."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Below this product of batch, channels, frames and rows torch 2.13 sends a batch of one to a plain loop.
_SLOW_PATH_SIZE = 20_480


def conv3d(
    x: Tensor, weight: Tensor, bias: Tensor | None, padding: tuple[int, int, int] = (0, 0, 0), stride: tuple[int, int, int] = (1, 1, 1)
) -> Tensor:
    """`torch.nn.functional.conv3d`, small batches of one included in what oneDNN computes on a CPU.

    The plain loop that torch takes there is several times slower and would dominate the default model's decode.
    """
    if x.device.type == "cpu" and len(x) == 1 and math.prod(x.shape[:4]) <= _SLOW_PATH_SIZE and _onednn_takes(x):
        return torch.mkldnn_convolution(x, weight, bias, padding, stride, (1, 1, 1), 1)
    return F.conv3d(x, weight, bias, stride, padding)


class Conv3d(nn.Conv3d):
    """`torch.nn.Conv3d` through `conv3d`, without groups and dilation."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return conv3d(x, weight, bias, self.padding, self.stride)


def _onednn_takes(x: Tensor) -> bool:
    return x.dtype == torch.float32 and torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled
