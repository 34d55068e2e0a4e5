"""Files for the readers: sound ones, and what chance or malice may make of them."""

import functools
import io
import json
import tempfile
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch
from golden_weights import official_config
from hypothesis import strategies as st
from test_latent_file import forge, header_of
from test_safetensors_header import JSON
from tiny_model import TINY
from xxhash import xxh3_64_hexdigest

from cvvae_cli import latent_writer
from cvvae_cli.colour import Colour
from cvvae_cli.config import SD21, Tiling, config_to_dict
from cvvae_cli.container_tags import Chapter, ContainerTags
from cvvae_cli.latent_writer import LatentWriter
from cvvae_cli.tiling import chunk_count
from cvvae_cli.video_info import VideoInfo

FRAMES = 9
LARGE = [2**31, 2**53, 2**63, 2**64, 10**400, 1e308]
NUMBERS = st.sampled_from([0, -1, 1, 2, 3, 9, 17, 0.5, -0.0, float("nan"), float("inf"), *LARGE])
WORDS = st.sampled_from(["", "x", "1/0", "1e999999999", "1/3", "-1/9", "9" * 5000, "\n\x1b[2J", "../x", "é" * 300, "[" * 2000])
DEEP = st.integers(1, 3000).map(lambda depth: functools.reduce(lambda inner, _: [inner], range(min(depth, 400)), 0))
ODD = JSON | NUMBERS | WORDS | DEEP
"""A value in the place of another."""


@functools.cache
def sound_latents(dtype: str = "float16") -> bytes:
    """A small latent file of everything: a description, odd times, sound, a pad and a tensor of a later version."""
    rates = (Fraction(25), Fraction(1, 12800))
    info = VideoInfo(13, 16, *rates, 9, 0.36, Fraction(4, 3), 0, "yuv420p", 8, Colour(), "h264", ("aac",), ())
    video = {"width": 13, "height": 16, "num_frames": FRAMES, "start": 0.0, "to_end": True, "origin": "0"}
    video["source"] = info.to_dict()
    encoding = {"tiling": asdict(Tiling(chunk=5, chunk_overlap=0)), "latents": "mean", "seed": None, "compute_dtype": "float32"}
    model = {"name": "tiny.safetensors", "sha256": "0" * 64, "revision": None, "config": config_to_dict(TINY)}
    texts = {"model": model, "video": video, "encoding": encoding, "later": [1]}
    rng = np.random.default_rng(3)
    tags = ContainerTags((("title", "A clip"),), (Chapter(Fraction(0), Fraction(1, 3), (("title", "One"),)),))
    tensors = {
        "tags": np.frombuffer(tags.to_bytes(), np.uint8),
        "pts": np.cumsum(rng.integers(300, 900, FRAMES)), "durations": np.full(FRAMES, 512),
        "sidecar": rng.integers(0, 256, 11, dtype=np.uint8), "later": np.arange(3, dtype=np.uint16),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent_writer, "HEADER_RESERVE", 4096)
        with LatentWriter(Path(folder) / "a", 4, 2, 2, dtype) as writer:
            for frames in (1, 2):
                writer.append(rng.normal(size=(frames, 4, 2, 2)).astype(np.float32))
            for _ in range(1, chunk_count(3, Tiling(**encoding["tiling"]))):
                writer.append_anchor(rng.normal(size=(4, 2, 2)).astype(np.float32))
            writer.close({key: json.dumps(value) for key, value in texts.items()}, tensors)
        return (Path(folder) / "a").read_bytes()


@st.composite
def damaged(draw: st.DrawFn, sound: bytes, other: bytes) -> bytes:
    """What chance makes of a file: flipped bits, a missing or doubled piece, a piece of another file."""
    size = len(sound)
    kind = draw(st.integers(0, 3))
    if kind == 0:
        data = bytearray(sound)
        for bit in draw(st.lists(st.integers(0, 8 * size - 1), min_size=1, max_size=6)):
            data[bit // 8] ^= 1 << bit % 8
        return bytes(data)
    start = draw(st.integers(0, size))
    if kind == 1:
        return sound[:start] + draw(st.binary(max_size=20))
    stop = min(size, start + draw(st.integers(0, 200)))
    if kind == 2:
        return sound[:start] + draw(st.binary(max_size=40)) + sound[stop:]
    begin = draw(st.integers(0, len(other)))
    return sound[:start] + other[begin : begin + stop - start] + sound[stop:]


def put(draw: st.DrawFn, tree: object, value: object) -> None:
    """Put a value somewhere into a tree of dictionaries and lists."""
    while True:
        keys = sorted(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key = draw(st.sampled_from(keys)) if keys else None
        inner = tree[key] if keys else None
        if keys and isinstance(inner, dict | list) and inner and draw(st.booleans()):
            tree = inner
            continue
        if isinstance(tree, dict) and (not keys or draw(st.integers(0, 9)) == 0):
            tree[draw(st.text(max_size=5))] = value
        elif keys and draw(st.integers(0, 9)) == 0:
            del tree[key]
        elif keys:
            tree[key] = value
        return


@st.composite
def forged_latents(draw: st.DrawFn) -> bytes:
    """What malice makes of a latent file: all checksums are right."""
    data = sound_latents()
    kind = draw(st.integers(0, 3))
    if kind == 0:  # a small tensor
        name = draw(st.sampled_from(["pts", "durations", "chunk_end", "chunk_xxh3", "sidecar", "tags", "anchors", "anchors_xxh3"]))
        entry, base = header_of(data)[name], 8 + int.from_bytes(data[:8], "little")
        start, stop = (base + offset for offset in entry["data_offsets"])
        content = draw(st.binary(min_size=stop - start, max_size=stop - start))
        changed = data[:start] + content + data[stop:]

        def change(header: dict) -> None:
            sums = json.loads(header["__metadata__"]["tensors_xxh3"])
            header["__metadata__"]["tensors_xxh3"] = json.dumps(sums | {name: xxh3_64_hexdigest(content)})

        return forge(changed, change)

    def change_header(header: dict) -> None:
        if kind == 1:  # the description
            key = draw(st.sampled_from(["video", "encoding", "model"]))
            described = json.loads(header["__metadata__"][key])
            put(draw, described, draw(ODD))
            header["__metadata__"][key] = json.dumps(described)
        elif kind == 2:  # a whole string
            key = draw(st.sampled_from(["video", "encoding", "model", "tensors_xxh3", "requires", "later"]))
            header["__metadata__"][key] = draw(WORDS | st.text(max_size=20) | ODD.map(json.dumps))
        else:  # the tensors
            name = draw(st.sampled_from(sorted(header.keys() - {"__metadata__"})))
            put(draw, header[name] if draw(st.booleans()) else header, draw(ODD | st.lists(st.integers(-1, 2**64), max_size=5)))
            header["__metadata__"] = header_of(data)["__metadata__"]  # the forger needs the seal

    return forge(data, change_header)


def latent_files() -> st.SearchStrategy[bytes]:
    """Latent files, mostly bad."""
    noise = st.tuples(st.sampled_from([b"", sound_latents()[:100], sound_latents()[:4096]]), st.binary(max_size=200))
    return damaged(sound_latents(), sound_latents("float32")) | forged_latents() | noise.map(b"".join)


def plain_files() -> st.SearchStrategy[bytes]:
    """Tensors of other programs, mostly bad."""
    values = np.random.default_rng(0).normal(size=(3, 4, 2, 2)).astype(np.float32)
    npy, zipped, old = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.save(npy, values)
    torch.save({"latents": torch.from_numpy(values)}, zipped)
    torch.save({"latents": torch.from_numpy(values)}, old, _use_new_zipfile_serialization=False)
    sound = [safetensors.numpy.save({"latents": values, "other": values}), npy.getvalue(), zipped.getvalue(), old.getvalue()]
    return st.one_of([damaged(one, other) for one, other in zip(sound, sound[1:] + sound[:1])])


@st.composite
def recipe_files(draw: st.DrawFn) -> bytes:
    """Recipes, mostly bad: lines that are missing, doubled or have other values, and torn text."""
    text = (Path(__file__).parents[2] / "recipes" / "default.toml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if draw(st.integers(0, 4)) == 0:
        return draw(damaged("\n".join(lines).encode(), b"[[streams]]\nx = {a.b = 1979-05-27T07:32:00Z}\n" * 9))
    words = ["nan", "-inf", "0x" + "f" * 40, "1e400", "1979-05-27", "'''x"]
    texts = ODD.map(json.dumps) | st.sampled_from(words)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, equals, _ = lines[place].partition("=")
        kind = draw(st.integers(0, 5))
        if kind == 0:
            del lines[place]
        elif kind == 1:
            odd = ["[x]", "[[streams]]", "x = 1", "a" + ".a" * 3000 + " = 1", "[model]", "é"]
            lines.insert(place, draw(st.sampled_from(odd)))
        elif equals:
            lines[place] = f"{key}= {draw(texts)}"
    return "\n".join(lines).encode()


@st.composite
def config_files(draw: st.DrawFn) -> bytes:
    """Configs of models as JSON, mostly bad."""
    config = json.loads(json.dumps(draw(st.sampled_from([config_to_dict(TINY), config_to_dict(SD21)]))))
    for _ in range(draw(st.integers(1, 3))):
        put(draw, config, draw(ODD))
    return json.dumps(draw(JSON) if draw(st.integers(0, 9)) == 0 else config).encode()


def official_configs() -> st.SearchStrategy[dict]:
    """What a release's config.json may say."""

    @st.composite
    def changed(draw: st.DrawFn) -> dict:
        config = json.loads(json.dumps(official_config(draw(st.sampled_from(["sd21", "sd3"])))))
        for _ in range(draw(st.integers(1, 3))):
            put(draw, config, draw(ODD))
        return config

    return changed()


def time_tables() -> st.SearchStrategy[bytes]:
    """Tables of packet times, mostly bad."""
    sound = b"1/44100 -1024 1024*3,-48*1 1024*3,500*1,0*1"
    words = st.text("0123456789*,-/ e.", max_size=40).map(str.encode)
    return damaged(sound, b"9" * 60 + b"*1,5*99999999999 1e999999999 - ") | words
