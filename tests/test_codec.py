"""Whole videos through chunks and tiles: the official modes against official tensors, streams against wholes."""


import numpy as np
import pytest
import torch
from golden_weights import golden_video
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import (
    decode_frames,
    decode_tensor,
    draw_latents,
    encode_frames,
    encode_tensor,
    first_chunk_with,
    pad_to_cells,
    to_bytes,
)
from cvvae_cli.config import Tiling
from cvvae_cli.errors import UsageError


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    model = Autoencoder(TINY).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(0, 0.15)
    return model


def video(frames, height, width, seed=5):
    return golden_video(seed, frames, height, width)


def test_any_size_and_count_comes_back_filled_up(model):
    moments = encode_tensor(model, video(19, 37, 50), Tiling(tile=64, overlap=16))
    assert moments.shape == (1, 8, 6, 5, 7)
    assert decode_tensor(model, moments[:, :4], Tiling(tile=64, overlap=16)).shape == (1, 3, 21, 40, 56)


def test_official_time_is_each_chunk_alone_without_its_first(model):
    x = video(33, 16, 16)
    parts = [model.encode(x[:, :, :17]), model.encode(x[:, :, 16:])[:, :, 1:]]
    tiling = Tiling(chunk_overlap=0)
    with torch.inference_mode():
        moments = encode_tensor(model, x, tiling)
        assert torch.allclose(moments, torch.cat(parts, dim=2), atol=1e-5)
        z = moments[:, :4]
        frames = torch.cat([model.decode(z[:, :, :5]), model.decode(z[:, :, 4:])[:, :, 1:]], dim=2)
        assert torch.allclose(decode_tensor(model, z, tiling), frames, atol=1e-5)


def test_bytes_and_floats_encode_alike(model):
    x = to_bytes(video(9, 16, 16))
    floats = x.float() / 127.5 - 1
    assert torch.equal(encode_tensor(model, x), encode_tensor(model, floats))


def test_a_stream_of_single_frames_equals_the_whole(model):
    tiling = Tiling(tile=64, overlap=24)
    x = video(37, 96, 80)
    with torch.inference_mode():
        moments = torch.cat(list(encode_frames(model, x.split(1, dim=2), tiling)), dim=2)
        assert torch.equal(moments, encode_tensor(model, x, tiling))
        frames = torch.cat(list(decode_frames(model, moments[:, :4].split(2, dim=2), tiling)), dim=2)
        assert torch.equal(frames, to_bytes(decode_tensor(model, moments[:, :4], tiling)))


@pytest.mark.parametrize("chunk_overlap", [0, 4, 8])
def test_decoding_from_the_middle_gives_the_same_frames(model, chunk_overlap):
    tiling = Tiling(chunk_overlap=chunk_overlap)
    torch.manual_seed(1)
    z = torch.randn(1, 4, 14, 2, 2)
    with torch.inference_mode():
        whole = torch.cat(list(decode_frames(model, [z], tiling)), dim=2)
        for frame in range(0, 53, 3):
            begin = first_chunk_with(frame, tiling)
            part = torch.cat(list(decode_frames(model, [z[:, :, begin:]], tiling, begin)), dim=2)
            first = 4 * begin + 1 if begin else 0
            assert first <= frame
            assert torch.equal(part[:, :, frame - first :], whole[:, :, frame:])


def test_noise_depends_on_seed_and_position_not_on_pieces():
    moments = torch.zeros(1, 8, 7, 2, 3)
    whole = torch.cat(list(draw_latents([moments], seed=3)), dim=2)
    parts = torch.cat(list(draw_latents(moments.split(2, dim=2), seed=3)), dim=2)
    other = torch.cat(list(draw_latents([moments], seed=4)), dim=2)
    assert torch.equal(whole, parts) and not torch.equal(whole, other)
    assert 0.7 < whole.std() < 1.3
    assert torch.equal(torch.cat(list(draw_latents([moments], None)), dim=2), moments[:, :4])


def test_padding_repeats_the_last_row_and_column():
    x = torch.arange(6, dtype=torch.uint8).view(1, 1, 1, 2, 3)
    want = np.pad(x.numpy()[0, 0, 0], ((0, 6), (0, 5)), mode="edge")
    assert np.array_equal(pad_to_cells(x)[0, 0, 0].numpy(), want)


def test_bytes_are_clamped_and_rounded():
    values = torch.tensor([-2.0, -1.0, 0.0, 0.003, 1.0, 3.0])
    assert to_bytes(values).tolist() == [0, 0, 128, 128, 255, 255]


@pytest.mark.parametrize("shape", [(3, 9, 8, 8), (1, 4, 9, 8, 8), (1, 3, 0, 8, 8)])
def test_wrong_shapes_are_refused(model, shape):
    with pytest.raises(UsageError, match="shape"):
        encode_tensor(model, torch.zeros(shape))
    with pytest.raises(UsageError, match="shape"):
        decode_tensor(model, torch.zeros(1, 5, 2, 2, 2))
