"""Whole videos under the norm contracts: `exact` against untiled networks and official tensors, in float32 and bf16."""

import copy
from dataclasses import replace

import pytest
import torch
from golden_weights import golden_case, golden_state_dict, golden_video, relative_error
from safetensors.torch import save_file
from tiny_model import TINY as COMPACT
from tiny_model import random_model

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.checkpoint import load_model
from cvvae_cli.codec import decode_tensor, encode_tensor
from cvvae_cli.config import CVVAEConfig, Tiling, Variant
from cvvae_cli.errors import DeviceError, UsageError
from cvvae_cli.geometry import Window, tile_windows
from cvvae_cli.norm_contract import cells_seen, fields_of, run_chunk
from cvvae_cli.tiling import DECODE, ENCODE, Direction, core_weights, core_windows

VARIANTS: tuple[Variant, ...] = ("sd21", "sd3")


@pytest.fixture(scope="module", params=VARIANTS)
def model(request: pytest.FixtureRequest) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(CVVAEConfig(request.param, 4, (8, 16, 16, 16), 1, norm_groups=8)).requires_grad_(False)


@pytest.fixture(scope="module")
def truth(model: Autoencoder) -> Autoencoder:
    return copy.deepcopy(model).double()


@pytest.mark.parametrize(
    ("frames", "height", "width", "tile"), [(5, 13, 9, 64), (5, 21, 4, 72), (5, 4, 19, 64), (9, 8, 11, 64), (1, 27, 23, 96)]
)
def test_exact_equals_the_untiled_network(
    model: Autoencoder, truth: Autoencoder, frames: int, height: int, width: int, tile: int
) -> None:
    tiling = Tiling(tile, 16, norm="exact")
    x = golden_video(3, frames, 8 * height, 8 * width)
    z = torch.randn(1, 4, 1 + frames // 4, height, width)
    # Of the same weights in float64: torch's own group norm loses more than 1e-5 in float32.
    assert relative_error(encode_tensor(model, x, tiling), truth.encode(x.double())) < 1e-5
    assert relative_error(decode_tensor(model, z, tiling), truth.decode(z.double())) < 1e-5


@pytest.mark.parametrize("variant", VARIANTS)
def test_exact_gives_the_official_tensors(variant: Variant, tmp_path) -> None:
    save_file(golden_state_dict(variant), tmp_path / "weights.safetensors")
    model, tiling = load_model(tmp_path / "weights.safetensors"), Tiling(64, 16, norm="exact")
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 3e-2)):
        model.to(dtype)
        for case in ("image", "clip"):
            golden = golden_case(variant, case)
            assert relative_error(encode_tensor(model, golden.video, tiling), golden.moments) < tolerance
            z = golden.moments.chunk(2, dim=1)[0]
            assert relative_error(decode_tensor(model, z, tiling), golden.reconstruction) < tolerance


def test_chunks_of_whole_frames_are_crossfaded_as_ever(model: Autoencoder) -> None:
    """Four chunks of 9 frames, against the same chunks in one tile."""
    exact, untiled = Tiling(64, 16, 4, 9, norm="exact"), Tiling(256, 16, 4, 9)
    x, z = golden_video(4, 21, 72, 80), torch.randn(1, 4, 6, 9, 10)
    assert relative_error(encode_tensor(model, x, exact), encode_tensor(model, x, untiled)) < 1e-4
    assert relative_error(decode_tensor(model, z, exact), decode_tensor(model, z, untiled)) < 1e-4


def test_global_with_one_tile_is_the_untiled_network_and_with_several_is_nearer_to_it(model: Autoencoder) -> None:
    x = golden_video(5, 5, 128, 160)
    untiled = encode_tensor(model, x, Tiling(256))
    assert relative_error(encode_tensor(model, x, Tiling(256, norm="global")), untiled) < 1e-4
    apart, pooled = (encode_tensor(model, x, Tiling(64, 16, norm=norm)) for norm in ("tile", "global"))
    assert relative_error(pooled, untiled) < relative_error(apart, untiled)


@pytest.mark.parametrize("norm", ["global", "exact"])
def test_bytes_and_batches(model: Autoencoder, norm: str) -> None:
    tiling = Tiling(64, 16, norm=norm)
    x = torch.randint(0, 256, (2, 3, 5, 72, 80), dtype=torch.uint8)
    moments = encode_tensor(model, x, tiling)
    assert torch.equal(moments, encode_tensor(model, x.float() / 127.5 - 1, tiling))
    torch.testing.assert_close(encode_tensor(model, x[1:], tiling), moments[1:], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("direction", [ENCODE, DECODE])
def test_a_compact_model_sees_as_far_as_it_says(direction: Direction) -> None:
    model, reach = random_model(COMPACT).double().requires_grad_(False), cells_seen(COMPACT, direction)
    network, channels = (model.encode, 3) if direction is ENCODE else (model.decode, COMPACT.latent_channels)
    x = torch.randn(1, channels, 1, direction.read_cell, direction.read_cell * (reach + 4), dtype=torch.float64)
    other = x.clone()
    other[..., : direction.read_cell] += 1
    changed = (network(other) != network(x)).flatten(0, 3).any(dim=0).unflatten(0, (-1, direction.write_cell)).any(dim=1)
    assert changed[reach] and not changed[reach + 1 :].any()


def test_exact_of_a_compact_model_is_the_untiled_result() -> None:
    model = random_model(COMPACT, encoder=0.04).requires_grad_(False)
    x, z = golden_video(6, 9, 8 * 22, 8 * 17), torch.randn(1, 4, 3, 17, 22)
    exact, untiled = Tiling(128, 16, norm="exact"), Tiling(256)
    assert relative_error(encode_tensor(model, x, exact), encode_tensor(model, x, untiled)) < 1e-5
    assert relative_error(decode_tensor(model, z, exact), decode_tensor(model, z, untiled)) < 1e-5
    shared, apart = (encode_tensor(model, x, Tiling(64, 16, norm=norm)) for norm in ("global", "tile"))
    assert torch.equal(shared, apart)
    with pytest.raises(UsageError, match="Tile 64 px .* pass --tile 120"):
        encode_tensor(model, x, Tiling(64, 16, norm="exact"))
    assert encode_tensor(model, x[..., :64, :64], Tiling(64, 16, norm="exact")).shape[3:] == (8, 8)


@pytest.mark.parametrize(("encoder_blocks", "decoder_blocks"), [((1, 1, 1), (1, 1, 2)), ((1, 2, 1), (1, 1, 1))])
def test_a_tile_that_is_refused_and_its_advice_are_the_same_both_ways(
    encoder_blocks: tuple[int, int, int], decoder_blocks: tuple[int, int, int]
) -> None:
    """One side sees 7 cells and the other 9, so 19 cells are the least."""
    config = replace(COMPACT, encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks)
    model = random_model(config, encoder=0.04).requires_grad_(False)
    x, z = golden_video(6, 1, 64, 8 * 21), torch.randn(1, 4, 1, 8, 21)
    for tile in (64, 144):
        for run, values in ((encode_tensor, x), (decode_tensor, z)):
            with pytest.raises(UsageError, match=f"Tile {tile} px is too small .* pass --tile 152"):
                run(model, values, Tiling(tile, 16, norm="exact"))
    exact, untiled = Tiling(152, 16, norm="exact"), Tiling(256)
    assert relative_error(encode_tensor(model, x, exact), encode_tensor(model, x, untiled)) < 1e-5
    assert relative_error(decode_tensor(model, z, exact), decode_tensor(model, z, untiled)) < 1e-5


def test_what_does_not_fit_the_machine_is_refused_before_anything_is_computed(model: Autoencoder) -> None:
    x = torch.zeros(1, 3, 1, 1, 1).expand(1, 3, 17, 800_000, 800_000)
    with pytest.raises(DeviceError, match="pass --norm tile"):
        next(run_chunk(model, lambda v: v, model.encode, x, Tiling(norm="exact"), ENCODE))


@pytest.mark.parametrize("arguments", [dict(norm="whole"), dict(tile=576, chunk_overlap=0, mode="official", norm="global")])
def test_contracts_that_do_not_exist(arguments: dict) -> None:
    with pytest.raises(UsageError, match="--norm"):
        Tiling(**arguments)


@pytest.mark.parametrize(("cells", "tile", "overlap"), [(11, 4, 0), (11, 4, 1), (40, 8, 7), (3, 8, 2), (17, 8, 3)])
def test_cores_cover_each_cell_once(cells: int, tile: int, overlap: int) -> None:
    windows = tile_windows(cells, tile, overlap)
    cores = core_windows(windows)
    assert [cell for core in cores for cell in range(core.start, core.stop)] == list(range(cells))
    assert all(w.start <= core.start < core.stop <= w.stop for w, core in zip(windows, cores))
    for w, core, weights in zip(windows, cores, core_weights(windows, 2)):
        assert weights == [float(core.start <= cell < core.stop) for cell in range(w.start, w.stop) for _ in range(2)]
    fields = fields_of(windows, [Window(0, 2), Window(2, 5)])
    assert [(f.core_rows, f.cols) for f in fields[:2]] == [(cores[0], Window(0, 2)), (cores[0], Window(2, 5))]
    assert len(fields) == 2 * len(windows)
