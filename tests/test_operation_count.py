"""Operations against counts by hand and known figures of the official models."""

import pytest
import torch
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import SD3, SD21, ModelConfig
from cvvae_cli.operation_count import WindowWork, count_flops, count_plain_flops

SPREAD = 2 + 2 * 2  # the shared channels, and the two others once per code


@pytest.fixture(scope="module")
def model() -> Autoencoder:
    return Autoencoder(TINY).eval()


def on_meta(config: ModelConfig) -> Autoencoder:
    with torch.device("meta"):
        return Autoencoder(config)


def convolution(positions: int, inputs: int, outputs: int, taps: int) -> int:
    return 2 * positions * inputs * outputs * taps


def block(positions: int) -> int:
    return convolution(positions, 8, 8, 27) + convolution(positions, 8, 8, 9)


def test_flops_of_the_compact_family_by_hand(model: Autoencoder) -> None:
    # 5 x 16 x 24: quarter size and half rate is 3 x 4 x 6, eighth size and half rate 3 x 2 x 3, the latent grid 2 x 2 x 3.
    fine, middle, latent = 72, 18, 12
    gate = convolution(latent, 2, 8, 2 * 3 * 3) + convolution(latent, 8, 2, 1)
    encode = (
        convolution(latent, 768, SPREAD, 1)  # analysis of 3 x 4 x 8 x 8 values
        + gate
        + convolution(fine, 96, 8, 1)  # patches of 3 x 2 x 4 x 4 values
        + block(fine)
        + convolution(middle, 4 * 8, 8, 1)
        + block(middle)
        + convolution(latent, 2 * 8, 8, 1)
        + block(latent)
        + convolution(latent, 8, 2 * 4, 27)
    )
    decode = (
        gate
        + convolution(latent, SPREAD, 768, 27)  # synthesis
        + convolution(latent, SPREAD, 8, 27)
        + block(latent)
        + convolution(latent, 8, 2 * 8, 1)
        + block(middle)
        + convolution(middle, 8, 4 * 8, 1)
        + block(fine)
        + convolution(fine, 8, 96, 1)
    )
    assert count_flops(model, 5, 16, 24) == count_plain_flops(model, 5, 16, 24) == WindowWork(encode, decode)


def test_flops_of_the_official_models() -> None:
    plain = count_plain_flops(on_meta(SD21), 17, 256, 256)
    # Known to two digits after the point; without attention they would be 5.66 and 17.10.
    assert (round(plain.encode / 1e12, 2), round(plain.decode / 1e12, 2)) == (5.67, 17.12)
    # sd3 differs by twelve more latent channels at both ends and by the decoder's attention over time: four linear
    # maps of 512 channels and two products of 5 x 5 x 512 at each of 32 x 32 positions.
    positions = 5 * 32 * 32
    temporal = 4 * convolution(positions, 512, 512, 1) + 32 * 32 * 2 * (2 * 5 * 5 * 512)
    third = count_plain_flops(on_meta(SD3), 17, 256, 256)
    assert third.encode - plain.encode == convolution(positions, 512, 2 * 12, 27)
    assert third.decode - plain.decode == convolution(positions, 12, 512, 27) - temporal


@pytest.mark.parametrize("config", [SD21, SD3], ids=["sd21", "sd3"])
def test_flops_that_folded_kernels_save(config: ModelConfig) -> None:
    model = on_meta(config)
    plain, work = count_plain_flops(model, 17, 256, 256), count_flops(model, 17, 256, 256)
    # The plain decoder convolves after upsampling to 64, 128 and 256 pixels; kernels on the small grid need 4/9 of it.
    grids = ((5 * 64**2, 512, 1024), (9 * 128**2, 512, 512), (9 * 256**2, 256, 512))
    upsampling = sum(convolution(positions, inputs, outputs, 27) for positions, inputs, outputs in grids)
    # Of the two that double time (the first and the last) the first frame's first half of the channels is dropped, so not made.
    dropped = convolution(64**2, 512, 512, 27) + convolution(256**2, 256, 256, 27)
    assert work == WindowWork(plain.encode, plain.decode - upsampling * 5 // 9 - dropped * 4 // 9)


def test_counting_leaves_the_model_alone(model: Autoencoder) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    count_flops(model, 1, 8, 8)
    assert model.device == torch.device("cpu")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
