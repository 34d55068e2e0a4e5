"""Whole videos through chunks and tiles: streams against wholes, and what happens when memory runs out."""

import numpy as np
import pytest
import torch
from golden_weights import golden_video
from tiny_model import TINY

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import (
    Plan,
    decode_frames,
    decode_tensor,
    draw_latents,
    encode_frames,
    encode_tensor,
    first_chunk_with,
    pad_to_cells,
    to_bytes,
    to_pixels,
    to_words,
)
from cvvae_cli.config import Tiling
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.stage_clock import StageClock


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
        moments = torch.cat(list(encode_frames(model, x.split(1, dim=2), Plan(tiling))), dim=2)
        assert torch.equal(moments, encode_tensor(model, x, tiling))
        frames = torch.cat(list(decode_frames(model, moments[:, :4].split(2, dim=2), Plan(tiling))), dim=2)
        assert torch.equal(frames, to_bytes(decode_tensor(model, moments[:, :4], tiling)))


@pytest.mark.parametrize("chunk_overlap", [0, 4, 8])
def test_decoding_from_the_middle_gives_the_same_frames(model, chunk_overlap):
    tiling = Tiling(chunk_overlap=chunk_overlap)
    torch.manual_seed(1)
    z = torch.randn(1, 4, 14, 2, 2)
    with torch.inference_mode():
        whole = torch.cat(list(decode_frames(model, [z], Plan(tiling))), dim=2)
        for frame in range(0, 53, 3):
            begin = first_chunk_with(frame, tiling)
            part = torch.cat(list(decode_frames(model, [z[:, :, begin:]], Plan(tiling), begin)), dim=2)
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_pixels_are_computed_in_single_precision_and_rounded_once(dtype):
    frames = torch.arange(256, dtype=torch.uint8).view(1, 1, 4, 8, 8).expand(2, 3, 4, 8, 8)
    pixels = to_pixels(frames, dtype)
    assert pixels.dtype == dtype and pixels.is_contiguous(memory_format=torch.channels_last_3d)
    error = (pixels.double() - (frames.double() / 127.5 - 1)).abs().max()
    assert error <= torch.finfo(dtype).eps / 4 + 2e-7  # values below 1 are at most half of eps / 2 away from a number
    assert torch.equal(to_bytes(pixels), frames)
    assert to_pixels(pixels, torch.float64) is pixels


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_pixels_of_16_bits_are_rounded_once_too(dtype):
    frames = torch.arange(65536, dtype=torch.int32).to(torch.uint16).view(1, 1, 4, 128, 128).expand(2, 3, 4, 128, 128)
    pixels = to_pixels(frames, dtype)
    assert pixels.dtype == dtype and pixels.is_contiguous(memory_format=torch.channels_last_3d)
    error = (pixels.double() - (frames.double() / 32767.5 - 1)).abs().max()
    assert error <= torch.finfo(dtype).eps / 4 + 2e-7
    assert dtype == torch.bfloat16 or torch.equal(to_words(pixels), frames)


@pytest.mark.parametrize("tiling", [Tiling(64, 16, 4, 9), Tiling(72, 16, 0, 17, "official")])
def test_words_are_encoded_as_the_values_that_they_stand_for(model, tiling):
    """Odd sizes and several chunks and tiles, so that words are padded, cut and regrouped."""
    words = torch.randint(0, 65536, (1, 3, 21, 75, 91), dtype=torch.int32, generator=torch.Generator().manual_seed(3))
    moments = encode_tensor(model, words.to(torch.uint16), tiling)
    assert torch.allclose(moments, encode_tensor(model, words.float() / 32767.5 - 1, tiling), atol=1e-5)
    levels = words // 257
    moments = encode_tensor(model, (levels * 257).to(torch.uint16), tiling)
    assert torch.allclose(moments, encode_tensor(model, levels.to(torch.uint8), tiling), atol=1e-5)


def test_bytes_of_half_precision_are_rounded_in_single():
    values = torch.linspace(-1.1, 1.1, 4001).bfloat16()
    assert to_bytes(values).tolist() == [round(float(v)) for v in (values.double().clamp(-1, 1) + 1) * 127.5]


class Small(Autoencoder):
    """A model on a device that holds windows up to a size, in cells."""

    encodable = decodable = 10**9

    def encode(self, x):
        self._require(x.shape[0] * x.shape[3] * x.shape[4] // 64, self.encodable)
        return super().encode(x)

    def decode(self, z):
        self._require(z.shape[0] * z.shape[3] * z.shape[4], self.decodable)
        return super().decode(z)

    def _require(self, cells, most):
        if cells > most:
            raise torch.OutOfMemoryError("out of memory")


@pytest.fixture
def small(model):
    small = Small(TINY).eval()
    small.load_state_dict(model.state_dict())
    return small


def test_a_run_out_of_memory_goes_on_with_smaller_tiles_and_says_so(model, small):
    x, fitting = video(33, 192, 160), Tiling(tile=128, overlap=32)
    small.encodable = small.decodable = 16 * 16
    with torch.inference_mode():
        plan = Plan(Tiling(tile=256, overlap=64, batch=2))
        moments = torch.cat(list(encode_frames(small, [x], plan)), dim=2)
        assert torch.equal(moments, encode_tensor(model, x, fitting)) and plan.tiling == fitting
        plan = Plan(Tiling(tile=256, overlap=64))
        frames = torch.cat(list(decode_frames(small, [moments[:, :4]], plan)), dim=2)
        assert torch.equal(frames, to_bytes(decode_tensor(model, moments[:, :4], fitting))) and plan.tiling == fitting
    assert plan.notes == ["The device ran out of memory; the run went on with tiles of 128 px, 1 at a time."]


def test_batches_are_given_up_before_tiles_are_made_smaller(small):
    small.encodable = 8 * 8
    plan = Plan(Tiling(tile=64, overlap=16, batch=4))
    with torch.inference_mode():
        whole = torch.cat(list(encode_frames(small, [video(5, 64, 160)], plan)), dim=2)
        assert torch.equal(whole, encode_tensor(small, video(5, 64, 160), Tiling(tile=64, overlap=16)))
    assert plan.tiling == Tiling(tile=64, overlap=16) and plan.notes[0].endswith("64 px, 1 at a time.") and len(plan.notes) == 1


def test_both_sides_of_a_plan_retreat_together(small):
    """A check during encoding decodes by the same plan: what one side has given up, the other does not try again."""
    small.encodable, small.decodable = 8 * 8, 16 * 16
    plan = Plan(Tiling(tile=256, overlap=64))
    with torch.inference_mode():
        latents = draw_latents(encode_frames(small, [video(17, 192, 192)], plan), None)
        frames = torch.cat(list(decode_frames(small, latents, plan)), dim=2)
    assert frames.shape == (1, 3, 17, 192, 192)
    assert plan.tiling.tile == 64 and len(plan.notes) == 2
    small.decodable = 8 * 8
    plan = Plan(Tiling(tile=128, overlap=32))
    with torch.inference_mode():
        latents = draw_latents(encode_frames(small, [video(17, 192, 192)], plan), None)
        assert sum(piece.shape[2] for piece in decode_frames(small, latents, plan)) == 17
    assert plan.tiling.tile == 64 and len(plan.notes) == 1


@pytest.mark.parametrize("tiling", [Tiling(), Tiling(tile=64, overlap=16, batch=3), Tiling.official(144)])
def test_nothing_smaller_left_is_a_sentence(small, tiling):
    small.encodable = small.decodable = 4
    for run in (lambda: encode_tensor(small, video(5, 64, 64), tiling), lambda: decode_tensor(small, torch.zeros(1, 4, 2, 8, 8), tiling)):
        with pytest.raises(DeviceError) as caught:
            run()
        said = str(caught.value)
        assert said.endswith(".") and said.count(". ") == 0 and f"tile of {72 if tiling.mode == 'official' else 64} px" in said
        assert isinstance(caught.value.__cause__, torch.OutOfMemoryError)


def test_other_errors_are_no_reason_to_retreat(small):
    small._require = lambda cells, most: torch.zeros(2) + torch.zeros(3)
    plan = Plan(Tiling())
    with pytest.raises(RuntimeError, match="size of tensor"), torch.inference_mode():
        list(encode_frames(small, [video(5, 64, 64)], plan))
    assert plan.tiling == Tiling() and plan.notes == []


def test_frames_that_do_not_fit_are_a_sentence_too(model):
    """Smaller tiles do not help there; 2^61 bytes are more than any process can name."""
    vast, plan = torch.zeros(1, 4, 1, 1, 1).expand(1, 4, 2, 2**28, 2**28), Plan(Tiling())
    with pytest.raises(DeviceError, match="frames of a chunk") as caught, torch.inference_mode():
        list(decode_frames(model, [vast], plan))
    assert str(caught.value).count(". ") == 0 and plan.notes == []


def test_the_clock_counts_each_stage(model):
    clock = StageClock()
    with torch.inference_mode():
        moments = torch.cat(list(encode_frames(model, [to_bytes(video(9, 16, 16))], Plan(Tiling()), clock=clock)), dim=2)
        assert set(clock.seconds) == {"blend", "to device", "encode"}
        list(decode_frames(model, [moments[:, :4]], Plan(Tiling()), clock=clock))
    assert set(clock.seconds) == {"blend", "to device", "encode", "decode", "from device"} and min(clock.seconds.values()) > 0
