"""The adversarial term: shapes and reach of the PatchGAN, hinge losses by hand, the adaptive weight, who gets gradients."""

import copy

import pytest
import torch
from tiny_model import TINY
from torch import Tensor, nn
from torch.nn import functional as F

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.errors import UsageError
from cvvae_cli.training.discriminator import (
    PatchDiscriminator3d,
    adaptive_weight,
    discriminator_step,
    hinge_discriminator_loss,
    hinge_generator_loss,
)


@pytest.fixture(scope="module")
def small() -> PatchDiscriminator3d:
    torch.manual_seed(0)
    return PatchDiscriminator3d(channels=8)


def windows(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize(("frames", "latent_frames"), [(1, 1), (5, 2), (9, 3), (17, 5)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 70)])
def test_every_window_gets_a_map_of_logits(small, frames, latent_frames, height, width):
    logits = small(windows(2, 3, frames, height, width))
    assert logits.shape == (2, 1, latent_frames, height // 16, width // 16)
    assert logits.isfinite().all()


def test_the_published_size_has_64_channels_and_four_strides():
    model = PatchDiscriminator3d()
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv3d)]
    strided = [(64, 3, 3, 4, 4), (128, 64, 3, 4, 4), (256, 128, 3, 4, 4), (512, 256, 3, 4, 4)]
    assert shapes == [*strided, (512, 512, 3, 3, 3), (1, 512, 3, 3, 3)]
    assert [m.num_groups for m in model.modules() if isinstance(m, nn.GroupNorm)] == [8, 16, 32, 32]


def test_weights_start_as_in_pix2pix():
    torch.manual_seed(0)
    for module in PatchDiscriminator3d(channels=32).modules():
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 10_000:
            assert module.weight.std().item() == pytest.approx(0.02, rel=0.03) and abs(module.weight.mean().item()) < 1e-3
        if isinstance(module, nn.GroupNorm):
            assert module.weight.mean().item() == pytest.approx(1.0, abs=0.01)
        if isinstance(module, (nn.Conv3d, nn.GroupNorm)) and module.bias is not None:
            assert module.bias.eq(0).all()


def test_one_logit_sees_110_px_and_39_frames_of_past_and_future(small):
    linear = copy.deepcopy(small)
    linear.network = nn.Sequential(*[m for m in linear.network if isinstance(m, nn.Conv3d)])  # norms would see everything
    with torch.no_grad():
        for convolution in linear.network:
            convolution.weight.fill_(0.01)
    x = torch.zeros(1, 3, 65, 32, 160, requires_grad=True)
    logits = linear(x)
    logits[0, 0, 8, 1, 5].backward()
    reached = x.grad[0, 0].ne(0)
    frames = reached.any(dim=2).any(dim=1).nonzero().flatten()
    columns = reached.any(dim=1).any(dim=0).nonzero().flatten()
    assert (frames[0].item(), frames[-1].item()) == (32 - 19, 32 + 19)
    assert columns[-1].item() - columns[0].item() + 1 == 110


def test_a_window_is_judged_on_its_own(small):
    x = windows(3, 3, 5, 32, 48)
    together = small(x)
    alone = torch.cat([small(one[None]) for one in x])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert torch.equal(small.eval()(x), together)
    small.train()


def test_a_picture_meets_only_the_middle_taps(small):
    spoiled = copy.deepcopy(small)
    with torch.no_grad():
        for module in spoiled.modules():
            if isinstance(module, nn.Conv3d):
                module.weight[:, :, [0, 2]] = 7.0
    x = windows(2, 3, 1, 32, 32)
    torch.testing.assert_close(spoiled(x), small(x))


def test_half_precision_under_autocast(small):
    x = windows(2, 3, 5, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits = small(x)
    assert hinge_generator_loss(logits.bfloat16()).dtype == torch.float32
    torch.testing.assert_close(logits.float(), small(x), rtol=0.1, atol=0.05)


def test_sizes_out_of_range_are_refused(small):
    with pytest.raises(UsageError, match="Frames of 32x8 px are too small to discriminate; crop at least 16 px"):
        small(windows(1, 3, 1, 8, 32))
    for channels, layers in ((12, 4), (0, 4), (64, 0)):
        with pytest.raises(UsageError, match=f"{channels} channels and {layers} layers needs a multiple of 8 channels"):
            PatchDiscriminator3d(channels, layers)


def test_hinge_losses_by_hand():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    # real: 0, 0.5, 2; fake: 0, 1.
    assert hinge_discriminator_loss(real, fake).item() == pytest.approx(0.5 * (2.5 / 3 + 0.5))
    assert hinge_discriminator_loss(torch.zeros(3), torch.zeros(5)).item() == 1.0
    assert hinge_generator_loss(fake).item() == pytest.approx(1.5)
    assert hinge_discriminator_loss(real.bfloat16(), fake.bfloat16()).dtype == torch.float32


def test_hinge_gradients_equal_finite_differences():
    torch.manual_seed(0)
    logits = [torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(hinge_discriminator_loss, logits)
    assert torch.autograd.gradcheck(hinge_generator_loss, logits[:1])


def test_adaptive_weight_by_hand():
    last = nn.Parameter(torch.tensor([1.0, 2.0]))
    y = 3 * last  # what the decoder makes
    reconstruction = (y * torch.tensor([1.0, 0.0])).sum() + y[1] * 4 / 3  # gradient (3, 4): norm 5
    adversarial = 0.5 * y[0]  # gradient (1.5, 0)
    weight = adaptive_weight(reconstruction, adversarial, last)
    assert weight.item() == pytest.approx(5 / 1.5001)
    assert weight.dtype == torch.float32 and not weight.requires_grad
    assert last.grad is None
    (reconstruction + weight * adversarial).backward()  # the graphs are still there
    assert last.grad[0].item() == pytest.approx(3 + 5 / 1.5001 * 1.5)


def test_adaptive_weight_over_processes_is_that_of_all_windows():
    last = nn.Parameter(torch.tensor([1.0, 2.0]))
    reconstructions = [(last * torch.tensor([3.0, 0.0])).sum(), (last * torch.tensor([1.0, 4.0])).sum()]
    adversarials = [last[1] * 2, -last[1]]

    others = iter([torch.tensor([1.0, 4.0]), torch.tensor([0.0, -1.0])])  # what the second process adds to each mean
    weight = adaptive_weight(reconstructions[0], adversarials[0], last, average=lambda own: (own + next(others)) / 2)
    whole = adaptive_weight(sum(reconstructions) / 2, sum(adversarials) / 2, last)
    assert weight.item() == pytest.approx(8**0.5 / 0.5001)  # gradients (2, 2) and (0, 0.5)
    assert torch.equal(weight, whole)


def test_adaptive_weight_is_limited_and_survives_half_precision():
    last = nn.Parameter(torch.tensor([1.0]))
    assert adaptive_weight(2 * last.sum(), 0 * last.sum(), last).item() == 1e4
    assert adaptive_weight(2 * last.sum(), 0 * last.sum(), last, limit=3.0).item() == 3.0
    half = nn.Parameter(torch.full((300,), 1.0, dtype=torch.bfloat16))
    weight = adaptive_weight(half.sum(), 0.5 * half.sum(), half)
    assert weight.dtype == torch.float32
    assert weight.item() == pytest.approx(2.0, rel=1e-4)


def test_adaptive_weight_makes_both_gradients_alike():
    torch.manual_seed(0)
    decoder, judge = nn.Conv3d(4, 3, 3, padding=1), PatchDiscriminator3d(channels=8, layers=2)
    y = decoder(torch.randn(1, 4, 5, 32, 32))
    losses = F.l1_loss(y, torch.zeros_like(y)), hinge_generator_loss(judge(y))
    weight = adaptive_weight(*losses, decoder.weight)
    wanted, plain = (torch.autograd.grad(loss, decoder.weight, retain_graph=True)[0].norm() for loss in losses)
    assert (weight * plain).item() == pytest.approx((wanted * plain / (plain + 1e-4)).item(), rel=1e-5)
    assert (weight * plain).item() == pytest.approx(wanted.item(), rel=0.05)  # the 1e-4 hardly shows


def test_a_discriminator_step_trains_the_discriminator_alone():
    torch.manual_seed(0)
    generator, judge = Autoencoder(TINY), PatchDiscriminator3d(channels=8)
    real = windows(2, 3, 5, 32, 32)
    with torch.no_grad():
        fake = generator.decode(generator.encode(real).chunk(2, dim=1)[0])
    loss = discriminator_step(judge, real, fake)
    torch.testing.assert_close(loss, hinge_discriminator_loss(judge(real), judge(fake)), rtol=1e-5, atol=1e-6)
    loss.backward()
    assert all(p.grad is None for p in generator.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in judge.parameters())
    with pytest.raises(AssertionError, match="no_grad"):
        discriminator_step(judge, real, generator.decode(generator.encode(real).chunk(2, dim=1)[0]))


def test_a_generator_step_passes_through_a_frozen_discriminator():
    torch.manual_seed(0)
    generator, judge = Autoencoder(TINY), PatchDiscriminator3d(channels=8).requires_grad_(False)
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.normal_(0, 0.05)
    y = generator.decode(generator.encode(windows(1, 3, 5, 32, 32)).chunk(2, dim=1)[0])
    hinge_generator_loss(judge(y)).backward()
    assert all(p.grad is None for p in judge.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in generator.parameters())
    assert all(p.grad.abs().sum() > 0 for p in generator.decoder.parameters())


def test_a_few_steps_tell_noise_from_smooth_windows():
    torch.manual_seed(0)
    judge = PatchDiscriminator3d(channels=8, layers=2)
    optimiser = torch.optim.Adam(judge.parameters(), 2e-3, betas=(0.5, 0.9))
    smooth = F.interpolate(windows(4, 3, 2, 4, 4), (5, 32, 32), mode="trilinear")
    losses = []
    for step in range(12):
        loss = discriminator_step(judge, smooth, 0.5 * windows(4, 3, 5, 32, 32, seed=step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(1.0, abs=0.1) and losses[-1] < 0.5
