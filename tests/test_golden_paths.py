"""The official code's outputs by every path the networks can take; float32 on the CPU, the plainest, is in test_autoencoder.py.

The paths: bfloat16; upsampled grids that are made, as with gradients; statistics handed from sum to norm; Triton's kernels,
in the interpreter where there is no GPU; CUDA.
"""

import copy
from importlib.util import find_spec

import cvvae_kernels
import pytest
import torch
from cvvae_kernels import Moments
from golden_weights import GoldenCase, golden_case, relative_error
from test_autoencoder import TOLERANCE, golden_model  # noqa: F401 - a fixture
from torch import Tensor

from cvvae_cli import layers
from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import CVVAEConfig

HALF_TOLERANCE = 3e-2  # the official code in bfloat16 is 1.4e-2 away from itself at full size
CASES = ["image", "clip"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
needs_interpreter = pytest.mark.skipif(
    find_spec("triton") is None or torch.cuda.is_available(), reason="triton is not installed, or does not interpret"
)


def case_of(model: Autoencoder, name: str) -> GoldenCase:
    assert isinstance(model.config, CVVAEConfig)
    return golden_case(model.config.variant, name)


def errors(model: Autoencoder, golden: GoldenCase) -> tuple[float, float]:
    """Relative errors of the moments and of the reconstruction."""
    latents = golden.moments.chunk(2, dim=1)[0]
    moments, reconstruction = model.encode(golden.video.to(model.device)), model.decode(latents.to(model.device))
    assert moments.shape == golden.moments.shape and reconstruction.shape == golden.reconstruction.shape
    assert moments.dtype == reconstruction.dtype == model.dtype
    pairs = ((moments, golden.moments), (reconstruction, golden.reconstruction))
    of_moments, of_reconstruction = (relative_error(found.detach().cpu(), expected) for found, expected in pairs)
    return of_moments, of_reconstruction


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_bfloat16(golden_model: Autoencoder, case: str) -> None:  # noqa: F811
    model = copy.deepcopy(golden_model).bfloat16()
    assert 1e-4 < max(errors(model, case_of(model, case))) < HALF_TOLERANCE


@pytest.mark.parametrize("case", CASES)
def test_upsampled_grids_that_are_made(golden_model: Autoencoder, case: str) -> None:  # noqa: F811
    """The way of training, which folds no kernels and computes nothing in place."""
    assert torch.is_grad_enabled()
    assert max(errors(golden_model, case_of(golden_model, case))) < TOLERANCE


def use_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "has_norm_kernels", lambda x: True)
    monkeypatch.setattr(layers, "norms_while_padding", lambda x, padding: True)


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_statistics_handed_on(golden_model: Autoencoder, case: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """What CUDA does, by the plain forms of its kernels."""
    gathered: list[int] = []

    def gather(x: Tensor, groups: int) -> Moments:
        gathered.append(groups)
        return cvvae_kernels.group_statistics(x, groups)

    use_kernels(monkeypatch)
    monkeypatch.setattr(layers, "group_statistics", gather)
    assert max(errors(golden_model, case_of(golden_model, case))) < TOLERANCE
    # Encoder: 6 blocks with two norms and one at the end, without those behind the last level, the attention and the middle.
    # Decoder: 10 blocks; there the middle, its end, the first block of each of four levels and the last hand on.
    assert len(gathered) == (2 * 6 + 1 - 3) + (2 * 10 + 1 - 7)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts Triton's operators in the place of the CPU's functions, in few programs because each takes a while."""
    from cvvae_kernels import ops, tiles

    def statistics(x: Tensor, groups: int) -> Moments:
        return Moments(x.numel() // (len(x) * groups), *ops.group_statistics_op(x, groups))

    def add(h: Tensor, x: Tensor, groups: int) -> Moments:
        return Moments(h.numel() // (len(h) * groups), *ops.add_with_statistics_op(h, x, groups))

    use_kernels(monkeypatch)
    monkeypatch.setattr(cvvae_kernels, "pad3d_plain", ops.pad3d_op)
    monkeypatch.setattr(cvvae_kernels, "group_statistics_plain", statistics)
    monkeypatch.setattr(cvvae_kernels, "add_with_statistics_plain", add)
    monkeypatch.setattr(cvvae_kernels, "norm_silu_pad_plain", ops.norm_silu_pad_op)
    monkeypatch.setattr(tiles, "_PROGRAM_BYTES", 1 << 19)
    monkeypatch.setattr(tiles, "_MAX_ROW_BYTES", 1 << 13)


@needs_interpreter
@torch.inference_mode()
def test_interpreted_kernels(golden_model: Autoencoder, interpreted: None) -> None:  # noqa: F811
    assert max(errors(golden_model, case_of(golden_model, "image"))) < TOLERANCE


@needs_cuda
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, TOLERANCE), (torch.bfloat16, HALF_TOLERANCE)])
def test_cuda(golden_model: Autoencoder, case: str, dtype: torch.dtype, tolerance: float) -> None:  # noqa: F811
    """With a graph and without, so by torch's norms on made grids and by Triton's on folded ones."""
    model = copy.deepcopy(golden_model).to("cuda", dtype)
    for gradients in (False, True):
        with torch.set_grad_enabled(gradients), torch.backends.cudnn.flags(allow_tf32=False):
            assert max(errors(model, case_of(model, case))) < tolerance
