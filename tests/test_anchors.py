"""Anchors: taken from every chunk, stored as they should be, and decoded with, whole and from the middle."""

import encoded_clip
import numpy as np
import pytest
import torch
from encoded_clip import PICTURES, decoded
from golden_weights import golden_video
from safetensors import safe_open

from cvvae_cli.anchors import with_anchors
from cvvae_cli.codec import Plan, decode_frames, draw_anchor, draw_latents, encode_frames, first_chunk_with, pad_to_cells, to_bytes
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import decode_file
from cvvae_cli.encoding import EncodeOptions, encode_file
from cvvae_cli.latent_file import LatentReader
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.roundtrip import check_latents

folder, model = encoded_clip.folder, encoded_clip.model

# Of 24 frames, 7 latent frames: chunks start at latent frames 0, 1, 2, 3, 4; and at 0, 2, 4.
TILINGS = [Tiling(chunk=9, chunk_overlap=4), Tiling(chunk=9, chunk_overlap=0)]


def pixels():
    """The clip as the encoder gets it: 25 frames, the last one twice."""
    frames = torch.from_numpy(np.stack([*PICTURES, PICTURES[-1]])).permute(3, 0, 1, 2)[None]
    return pad_to_cells(frames).float() / 127.5 - 1


def stored_anchors(path):
    """float32 [n, z, h, w], by the safetensors library."""
    with safe_open(path, "pt") as file:
        assert file.get_tensor("anchors").dtype == file.get_slice("latents")[:1].dtype
        return file.get_tensor("anchors").float().numpy()


def encode(folder, model, path, tiling, **options):
    encode_file(folder / "clip.mp4", path, model=model, tiling=tiling, options=EncodeOptions(anchors=True, **options))
    return path


@pytest.mark.parametrize("latent_dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("tiling", TILINGS)
def test_an_anchor_is_what_the_encoder_makes_of_a_chunks_first_frame(folder, model, tmp_path, tiling, latent_dtype):
    path = encode(folder, model, tmp_path / "x.latent", tiling, latent_dtype=latent_dtype)
    x, stride = pixels(), 2 - tiling.chunk_overlap // 4
    with torch.inference_mode():
        starts = range(4 * stride, 24 - tiling.chunk_overlap, 4 * stride)
        alone = [model.encode(x[:, :, start : start + 1])[0, :4, 0] for start in starts]  # a causal encoder sees no more
    want = torch.stack(alone).to(getattr(torch, latent_dtype)).float().numpy()
    found = stored_anchors(path)
    assert found.shape == want.shape == ({4: 4, 0: 2}[tiling.chunk_overlap], 4, 6, 8)
    assert np.allclose(found, want, atol=1e-5, rtol=2 * torch.finfo(getattr(torch, latent_dtype)).eps)


@pytest.mark.parametrize("tiling", [*TILINGS, Tiling(tile=64, overlap=24, chunk=9, chunk_overlap=4)])
def test_latents_are_the_same_with_anchors_and_without(folder, model, tmp_path, tiling):
    encode(folder, model, tmp_path / "with", tiling)
    encode_file(folder / "clip.mp4", tmp_path / "without", model=model, tiling=tiling)
    with LatentReader(tmp_path / "with") as a, LatentReader(tmp_path / "without") as b:
        assert np.array_equal(a.read(0, 7), b.read(0, 7)) and set(a.tensor_names) - set(b.tensor_names) == {"anchors", "anchors_xxh3"}


def test_every_window_but_the_videos_first_begins_with_its_anchor():
    windows = [(start, torch.full((1, 4, 3, 2, 2), 9.0)) for start in (0, 1, 2, 3)]
    got = list(with_anchors(windows, lambda start: torch.full((1, 4, 1, 2, 2), float(start))))
    assert [(start, z[0, 0, :, 0, 0].tolist()) for start, z in got] == [(0, [9, 9, 9]), *((i, [i, 9, 9]) for i in (1, 2, 3))]


def test_each_chunk_is_decoded_with_its_own_first_latent(folder, model, tmp_path):
    tiling = TILINGS[1]
    path = encode(folder, model, tmp_path / "x", tiling)
    with LatentReader(path) as reader:
        z = torch.from_numpy(reader.read(0, 7)).transpose(0, 1)[None]
    anchors = torch.from_numpy(stored_anchors(path))
    windows = [z[:, :, :3]]
    windows += [torch.cat([anchors[i][None, :, None], z[:, :, 2 * i + 3 : 2 * i + 5]], dim=2) for i in range(2)]
    with torch.inference_mode():
        parts = [model.decode(window)[:, :, 1 if i else 0 :] for i, window in enumerate(windows)]
    want = to_bytes(torch.cat(parts, dim=2))[0].permute(1, 2, 3, 0).numpy()[:24, :45, :61]
    found = decoded(path, model)
    assert np.array_equal(found, want)
    encode_file(folder / "clip.mp4", tmp_path / "plain", model=model, tiling=tiling)
    assert not np.array_equal(decoded(tmp_path / "plain", model)[9:], found[9:])


@pytest.mark.parametrize("tiling", TILINGS)
def test_decoding_from_the_middle_gives_the_same_frames(folder, model, tmp_path, tiling):
    path = encode(folder, model, tmp_path / "x", tiling)
    whole = decoded(path, model)
    for start, first in ((0.04, 1), (0.5, 7), (0.84, 11), (1.2, 15), (1.72, 22)):
        assert np.array_equal(decoded(path, model, start=start), whole[first:])


@pytest.mark.parametrize("norm", ["tile", "exact"])
def test_a_stream_in_tiles_is_decoded_with_the_anchors_that_its_encode_gave(model, norm):
    tiling, kept = Tiling(tile=128, overlap=24, chunk=9, norm=norm), {}
    with torch.inference_mode():
        moments = encode_frames(model, [golden_video(3, 33, 136, 64)], Plan(tiling), keep_anchor=kept.__setitem__)
        z = torch.cat(list(draw_latents(moments, None)), dim=2)
        assert list(kept) == [1, 2, 3, 4, 5, 6] and {tuple(m.shape) for m in kept.values()} == {(1, 8, 1, 17, 8)}
        anchors = {start: moments[:, :4] for start, moments in kept.items()}
        whole = torch.cat(list(decode_frames(model, [z], Plan(tiling), read_anchor=anchors.__getitem__)), dim=2)
        begin = first_chunk_with(20, tiling)
        pieces = z[:, :, begin:].split(2, dim=2)
        part = torch.cat(list(decode_frames(model, pieces, Plan(tiling), begin, None, anchors.__getitem__)), dim=2)
    assert begin > 0 and torch.equal(part[:, :, 20 - (4 * begin + 1) :], whole[:, :, 20:])


def test_the_check_decodes_with_anchors_as_a_decode_does(folder, model, tmp_path):
    options = EncodeOptions(anchors=True, check=True)
    report = encode_file(folder / "clip.mp4", tmp_path / "x", model=model, tiling=TILINGS[0], options=options)
    with LatentVideo.open(tmp_path / "x", model.config) as latents:
        assert check_latents(folder / "clip.mp4", latents, model) == report.quality
    assert report.latent_bytes == (7 + 4) * 4 * 6 * 8 * 2


def test_samples_of_anchors_depend_on_the_seed_and_the_chunks_start(folder, model, tmp_path):
    tilings = {"a": TILINGS[0], "b": TILINGS[0], "c": TILINGS[1], "other": TILINGS[0]}
    for name, tiling in tilings.items():
        encode(folder, model, tmp_path / name, tiling, seed=4 if name == "other" else 3)
    a, b, c, other = (stored_anchors(tmp_path / name) for name in tilings)
    assert np.array_equal(a, b) and not np.isclose(a, other).any(axis=(1, 2, 3)).all()
    assert np.allclose(a[1::2], c, atol=2e-3)  # chunks that start at latent frames 2 and 4


def test_the_noise_of_an_anchor_is_not_that_of_the_latent_frame_in_its_place():
    moments = torch.zeros(1, 8, 4, 30, 30)
    latents = torch.cat(list(draw_latents([moments], 3)), dim=2)
    anchors = torch.cat([draw_anchor(moments[:, :, :1], 3, start) for start in range(4)], dim=2)
    noise = torch.stack([*latents[0].transpose(0, 1), *anchors[0].transpose(0, 1)]).flatten(1)
    assert 0.95 < noise.std() < 1.05 and (torch.corrcoef(noise) - torch.eye(8)).abs().max() < 0.1
    assert torch.equal(draw_anchor(moments[:, :, :1] + 2, None, 3), torch.full((1, 4, 1, 30, 30), 2.0))


def test_anchors_of_other_chunks_are_left_out_with_a_note(folder, model, tmp_path):
    path = encode(folder, model, tmp_path / "x", TILINGS[0])
    encode_file(folder / "clip.mp4", tmp_path / "plain", model=model, tiling=TILINGS[0])
    for other in (TILINGS[1], Tiling()):
        frames = {}
        for name in ("x", "plain"):
            seen = []
            report = decode_file(tmp_path / name, None, model=model, tiling=other, observe=lambda frame: seen.append(frame.copy()))
            assert [("anchors" in note) for note in report.notes] == ([True] if name == "x" else [])
            frames[name] = np.stack(seen)
        assert np.array_equal(frames["x"], frames["plain"])
    smaller = Tiling(tile=64, overlap=16, chunk=9)  # other tiles of the same chunks
    assert decode_file(path, None, model=model, tiling=smaller).notes == ()


def test_a_video_of_one_chunk_has_none(folder, model, tmp_path):
    path = encode(folder, model, tmp_path / "x", Tiling(chunk=25, chunk_overlap=0))
    with LatentVideo.open(path, model.config) as latents:
        assert not latents.has_anchors
    assert decode_file(path, None, model=model).notes == ()
