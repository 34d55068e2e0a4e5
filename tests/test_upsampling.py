"""Upsampling against a slow reference that makes the large grid; kernels that are kept and follow their weight."""

import copy
import pickle
from collections.abc import Callable

import pytest
import torch
from layer_references import slow_pad, video
from torch import Tensor
from torch.nn import functional as F

from cvvae_cli.layers import STYLES
from cvvae_cli.upsampling import Upsample, unstack_time


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("variant", ["sd21", "sd3"])
@pytest.mark.parametrize("doubles_time", [True, False])
@pytest.mark.parametrize("size", [(3, 3, 2), (1, 2, 3), (2, 1, 1)])
def test_upsample(variant: str, doubles_time: bool, size: tuple[int, int, int]) -> None:
    padding = STYLES[variant].upsample
    up, x = Upsample(4, padding, doubles_time), video(2, 4, *size)
    large = x.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    expected = F.conv3d(slow_pad(large, padding), up.conv.weight, up.conv.bias)
    if doubles_time:
        frames = [expected[:, 4 * n : 4 * n + 4, k] for k in range(size[0]) for n in range(2)]
        expected = torch.stack(frames[1:], dim=2)
    torch.testing.assert_close(up(x), expected)
    with torch.no_grad():
        folded = up(x)
        assert folded.is_contiguous(memory_format=torch.channels_last_3d)
        torch.testing.assert_close(folded, expected)
    up, x = up.double(), x.double()
    with torch.no_grad():
        folded = up(x)
    torch.testing.assert_close(folded, up(x), rtol=1e-12, atol=1e-12)


def replace_weights(up: Upsample) -> None:
    up.load_state_dict({name: 2 * tensor for name, tensor in up.state_dict().items()}, assign=True)


def kept_by(up: Upsample) -> list[Tensor]:
    return [kernel for _, _, kernel in up._folded.of(up.conv.weight)]


@torch.no_grad()
def test_folded_kernels_are_kept_in_eval_mode_alone() -> None:
    up, x = Upsample(4, STYLES["sd21"].upsample, True), video(1, 4, 2, 2, 2)
    expected = up(x)
    assert up._folded._kernels == []
    up.eval()
    assert torch.equal(up(x), expected)
    kept = kept_by(up)
    assert torch.equal(up(x), expected) and all(a is b for a, b in zip(kept_by(up), kept, strict=True))
    up.train()
    assert up._folded._kernels == []


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda up: up.conv.weight.mul_(2), id="in-place"),
        pytest.param(lambda up: up.load_state_dict({name: 2 * t for name, t in up.state_dict().items()}), id="load"),
        pytest.param(replace_weights, id="assign"),
        pytest.param(lambda up: up.bfloat16().double(), id="dtype"),
        pytest.param(lambda up: up.bfloat16().float(), id="there-and-back"),
    ],
)
@torch.no_grad()
def test_folded_kernels_follow_the_weight(change: Callable[[Upsample], object]) -> None:
    up, x = Upsample(4, STYLES["sd3"].upsample, True).eval(), video(1, 4, 2, 2, 2)
    before = up(x)
    change(up)
    fresh = Upsample(4, STYLES["sd3"].upsample, True).to(up.conv.weight.dtype)
    fresh.load_state_dict(up.state_dict())
    x = x.to(up.conv.weight.dtype)
    assert torch.equal(up(x), fresh(x)) and not torch.equal(up(x), before.to(x.dtype))


def test_folded_kernels_of_inference_tensors_follow_too() -> None:
    with torch.inference_mode():
        up, x = Upsample(4, STYLES["sd3"].upsample, False).eval(), video(1, 4, 2, 2, 2)
        up.conv.bias.zero_()
        before = up(x)
        up.conv.weight.mul_(2)
        assert torch.equal(up(x), 2 * before)


@torch.no_grad()
def test_folded_kernels_stay_at_home() -> None:
    up, x = Upsample(4, STYLES["sd21"].upsample, True).eval(), video(1, 4, 2, 2, 2)
    expected = up(x)
    assert set(up.state_dict()) == {"conv.weight", "conv.bias"}
    for twin in (copy.deepcopy(up), pickle.loads(pickle.dumps(up))):
        assert twin._folded._kernels == [] and torch.equal(twin(x), expected)


def test_unstack_time_keeps_one_frame_of_a_picture() -> None:
    x = video(2, 6, 1, 2, 2)
    assert torch.equal(unstack_time(x), x[:, 3:])
