"""Keyframe maps by hand, both sides of the regularisation against a frame-by-frame loop, and where gradients flow."""

import pytest
import torch
from tiny_model import TINY_PICTURE, random_model
from torch import Tensor

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.errors import UsageError
from cvvae_cli.image_model import ImageModel, as_image_model
from cvvae_cli.training.regularisation import decoder_side_error, encoder_side_error, keyframe_map


def counted(frames: int) -> Tensor:
    """Two windows whose every pixel is the frame's number, the second's plus 100."""
    numbers = torch.arange(frames, dtype=torch.float32)
    return torch.stack([numbers, numbers + 100])[:, None, :, None, None].expand(2, 3, frames, 2, 2)


def numbers_of(x: Tensor) -> list[list[float]]:
    assert torch.equal(x, x[:, :1, :, :1, :1].expand_as(x))
    return x[:, 0, :, 0, 0].tolist()


@pytest.mark.parametrize(
    ("kind", "expected"), [("first", [0, 1, 5]), ("slice", [0, 4, 8]), ("average", [0, 2.5, 6.5])]
)
def test_maps_on_counted_frames(kind, expected) -> None:
    assert numbers_of(keyframe_map(counted(9), kind)) == [expected, [n + 100 for n in expected]]


def test_random_draws_one_index_per_call() -> None:
    seen = set()
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        drawn = numbers_of(keyframe_map(counted(9), "random", generator))
        index = drawn[0][1] - 1
        assert drawn == [[0, 1 + index, 5 + index], [100, 101 + index, 105 + index]]
        assert drawn == numbers_of(keyframe_map(counted(9), "random", torch.Generator().manual_seed(seed)))
        seen.add(index)
    assert seen == {0, 1, 2, 3}
    assert numbers_of(keyframe_map(counted(5), "random"))[0][0] == 0


@pytest.mark.parametrize("kind", ["first", "slice", "average", "random"])
def test_a_picture_is_its_own_keyframe(kind) -> None:
    x = torch.rand(2, 3, 1, 4, 4)
    assert torch.equal(keyframe_map(x, kind), x)


def test_maps_refuse_other_windows_and_words() -> None:
    with pytest.raises(UsageError, match="4 frames"):
        keyframe_map(torch.zeros(1, 3, 4, 2, 2), "first")
    with pytest.raises(UsageError, match="'last'"):
        keyframe_map(torch.zeros(1, 3, 5, 2, 2), "last")


@pytest.fixture(scope="module")
def image() -> ImageModel:
    return as_image_model(random_model(TINY_PICTURE, seed=1)).frozen()


@pytest.fixture(scope="module")
def video() -> Autoencoder:
    return random_model(seed=2)


def distance(a: Tensor, b: Tensor, norm: str) -> float:
    return float((a - b).abs().mean() if norm == "l1" else (a - b).pow(2).mean())


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("frames", [1, 9])
def test_sides_against_a_loop(image: ImageModel, video: Autoencoder, norm, frames: int) -> None:
    x = torch.rand(2, 3, frames, 16, 24) * 2 - 1
    targets = keyframe_map(x, "average")
    with torch.no_grad():
        z = video.encode(x).chunk(2, dim=1)[0]
        decoder_side = decoder_side_error(image, z, targets, norm)
        encoder_side = encoder_side_error(video.decode, image, x, targets, norm)
        for b in range(2):
            steps = range(z.shape[2])
            each = [distance(image.decode(z[b : b + 1, :, k])[0], targets[b, :, k], norm) for k in steps]
            assert float(decoder_side[b]) == pytest.approx(sum(each) / len(each), rel=1e-5)
            latents = torch.stack([image.encode(targets[b : b + 1, :, k])[0] for k in steps], dim=1)
            assert float(encoder_side[b]) == pytest.approx(distance(video.decode(latents[None])[0], x[b], norm), rel=1e-5)
    assert decoder_side.shape == encoder_side.shape == (2,) and decoder_side.dtype == torch.float32


def has_gradient(module: torch.nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.abs().sum() > 0) for p in module.parameters())


@pytest.mark.parametrize("frames", [1, 5])
def test_decoder_side_teaches_the_video_encoder_alone(frames: int) -> None:
    image, video = as_image_model(random_model(TINY_PICTURE, 1)).frozen(), random_model(seed=2)
    x = torch.rand(1, 3, frames, 16, 16)
    z = video.encode(x).chunk(2, dim=1)[0]
    z.retain_grad()
    decoder_side_error(image, z, keyframe_map(x, "first")).sum().backward()
    assert z.grad is not None and (z.grad.abs().sum(dim=(0, 1, 3, 4)) > 0).all()
    assert has_gradient(video.encoder) and not has_gradient(video.decoder)
    assert all(p.grad is None for p in image.parameters())


@pytest.mark.parametrize("frames", [1, 5])
def test_encoder_side_teaches_the_video_decoder_alone(frames: int) -> None:
    image, video = as_image_model(random_model(TINY_PICTURE, 1)), random_model(seed=2)  # not even frozen
    x = torch.rand(1, 3, frames, 16, 16)
    encoder_side_error(video.decode, image, x, keyframe_map(x, "slice")).sum().backward()
    assert has_gradient(video.decoder) and not has_gradient(video.encoder)
    assert all(p.grad is None for p in image.parameters())


def test_gradient_of_the_latents_is_that_of_finite_differences() -> None:
    image = as_image_model(random_model(TINY_PICTURE, 3).double()).frozen()
    targets = torch.rand(1, 3, 2, 8, 8, dtype=torch.float64)
    z = torch.randn(1, 4, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda latents: decoder_side_error(image, latents, targets, "l2"), (z,))


def test_latents_of_another_model_and_unknown_norms_are_refused(image: ImageModel) -> None:
    with pytest.raises(UsageError, match="4, H, W"):
        decoder_side_error(image, torch.zeros(1, 16, 1, 2, 2), torch.zeros(1, 3, 1, 16, 16))
    with pytest.raises(UsageError, match="'l3'"):
        decoder_side_error(image, torch.zeros(1, 4, 1, 2, 2), torch.zeros(1, 3, 1, 16, 16), "l3")
