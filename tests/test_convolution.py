"""The convolution equals torch's own, gradients included, below and above the size where the paths part."""

import pytest
import torch
from torch.nn import functional as F

from cvvae_cli.convolution import Conv3d


@pytest.mark.parametrize(("batch", "channels", "frames", "rows"), [(1, 3, 2, 4), (1, 86, 7, 34), (1, 87, 7, 34), (2, 4, 3, 5)])
@pytest.mark.parametrize(("kernel", "padding", "stride"), [((3, 3, 3), (1, 1, 1), 1), ((1, 3, 3), (0, 1, 1), 1), ((3, 3, 3), (0, 0, 0), 2)])
def test_equals_float64(batch, channels, frames, rows, kernel, padding, stride):
    frames = max(frames, 3)
    torch.manual_seed(0)
    conv = Conv3d(channels, 5, kernel, padding=padding, stride=stride)
    x = torch.randn(batch, channels, frames, rows, 6).to(memory_format=torch.channels_last_3d)
    want = F.conv3d(x.double(), conv.weight.double(), conv.bias.double(), padding=padding, stride=stride)
    assert torch.allclose(conv(x).double(), want, atol=1e-4)


def test_gradients_of_a_small_batch_of_one():
    torch.manual_seed(0)
    conv, x = Conv3d(3, 4, 3, padding=1), torch.randn(1, 3, 3, 4, 4, requires_grad=True)
    conv(x).square().sum().backward()
    twin, y = conv.double(), x.detach().double().requires_grad_()
    ours = [x.grad.double(), conv.weight.grad.double()]
    twin.zero_grad()
    F.conv3d(y, twin.weight, twin.bias, padding=1).square().sum().backward()
    assert torch.allclose(ours[0], y.grad, atol=1e-4) and torch.allclose(ours[1], twin.weight.grad, atol=1e-4)


def test_a_small_batch_of_one_leaves_the_slow_path():
    conv, x = Conv3d(32, 32, 3, padding=1), torch.randn(1, 32, 9, 8, 8)
    with torch.profiler.profile() as profile, torch.no_grad():
        conv(x)
    assert not [e for e in profile.key_averages() if "slow_conv3d" in e.key]
