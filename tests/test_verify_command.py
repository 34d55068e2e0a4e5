"""`cvvae verify`: sound files are said to be sound, and of damaged ones what is damaged."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from command_line import cvvae, folder, latent
from xxhash import xxh3_64_hexdigest

from cvvae_cli.latent_writer import LatentWriter

fixtures = cvvae, folder, latent
FRAME_BYTES = 4 * 3 * 5 * 2
PAYLOAD = 16 * 1024
"""Where the latents of a file with a small header begin."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Three equal files of chunks of 1, 4, 4 and 2 latent frames, which stand for 41 frames, of which the video has 39."""
    rng = np.random.default_rng(0)
    parts = [rng.normal(size=(n, 4, 3, 5)).astype(np.float32) for n in (1, 4, 4, 2)]
    sound = rng.integers(0, 256, 13, dtype=np.uint8)
    for name in ("a", "b", "c"):
        with LatentWriter(tmp_path / name, 4, 3, 5) as writer:
            for part in parts:
                writer.append(part)
            writer.close({"video": '{"num_frames": 39}'}, {"pts": np.arange(39), "sidecar": sound})
    return tmp_path


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


def place_of(path: Path, name: str) -> int:
    """Where the bytes of a tensor begin."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return 8 + size + json.loads(data[8 : 8 + size])[name]["data_offsets"][0]


def test_sound_files_and_a_file_of_our_own_encoder(cvvae, latent, archive, monkeypatch):
    monkeypatch.chdir(archive)
    status, out, err = cvvae("verify", "a", "b", latent)
    assert status == 0 and out.count("intact: 39 frames in 4 chunks") == 2 and "intact: 20 frames in" in out
    status, out, err = cvvae("verify", archive / "a", "--json", "-q")
    told = json.loads(out)
    assert (status, err, told["intact"], told["damaged"]) == (0, "", 1, 0)
    assert told["files"] == [
        {"path": str(archive / "a"), "bytes": (archive / "a").stat().st_size, "frames": 39, "chunks": 4, "error": None,
         "damaged_tensors": [], "damaged_chunks": [], "intact": True}
    ]  # fmt: skip


def test_damaged_chunks_are_named_with_their_frames_and_the_next_file_is_checked(cvvae, archive, monkeypatch):
    flip(archive / "a", PAYLOAD + 6 * FRAME_BYTES)  # in latent frame 6
    flip(archive / "a", PAYLOAD + 11 * FRAME_BYTES - 1)  # in the last one
    flip(archive / "b", PAYLOAD)
    status, out, err = cvvae("verify", archive / "a", archive / "b", archive / "c", "--json")
    files = json.loads(out)["files"]
    assert status == 4 and [file["intact"] for file in files] == [False, False, True]
    assert files[0]["damaged_chunks"] == [
        {"chunk": 2, "latent_frames": [5, 8], "frames": [17, 32]},
        {"chunk": 3, "latent_frames": [9, 10], "frames": [33, 38]},
    ]
    assert files[1]["damaged_chunks"] == [{"chunk": 0, "latent_frames": [0, 0], "frames": [0, 0]}]
    assert err.splitlines()[-1].startswith("cvvae: 2 of 3 files damaged") and str(archive / "b") in err
    monkeypatch.chdir(archive)
    status, out, _ = cvvae("verify", "a", "c")
    rows = [re.findall(r"[^│]+", line) for line in out.splitlines() if line.startswith("│")]
    assert status == 4 and [[cell.strip() for cell in row] for row in rows] == [
        ["a", "chunk 2", "damaged: frames 17 to 32, latent frames 5 to 8"],
        ["a", "chunk 3", "damaged: frames 33 to 38, latent frames 9 to 10"],
        ["c", "all", "intact: 39 frames in 4 chunks"],
    ]


@pytest.mark.parametrize("name", ["pts", "sidecar", "chunk_end", "chunk_xxh3", "_pad"])
def test_damaged_small_tensors_are_named_and_the_chunks_beside_them(cvvae, tmp_path, name):
    path = tmp_path / "a"
    with LatentWriter(path, 3, 1, 3) as writer:
        for frames in (1, 4):
            writer.append(np.ones((frames, 3, 1, 3), np.float32))
        writer.close({}, {"pts": np.arange(17), "sidecar": np.zeros(5, np.uint8)})
    flip(path, place_of(path, name))
    flip(path, PAYLOAD)
    status, out, err = cvvae("verify", path, "--json")
    (told,) = json.loads(out)["files"]
    assert (status, told["damaged_tensors"], told["frames"]) == (4, [name], 17)
    if name.startswith("chunk"):
        assert "table of chunks" in told["error"] and told["damaged_chunks"] == []
    else:
        assert told["error"] is None and [bad["chunk"] for bad in told["damaged_chunks"]] == [0]


def test_what_cannot_be_opened_is_one_sentence_each(cvvae, archive):
    flip(archive / "a", 300)
    (archive / "b").write_bytes((archive / "b").read_bytes()[:-1])
    (archive / "text").write_text("not a latent file")
    names = [archive / name for name in ("a", "b", "text", "missing", ".", "c")]
    status, out, err = cvvae("verify", *names, "--json")
    told = json.loads(out)
    errors = [file["error"] for file in told["files"]]
    assert status == 4 and (told["intact"], told["damaged"]) == (1, 5) and errors[5] is None
    for error, words in zip(errors, ("damaged header", "cut off", "no latent file", "does not exist", "not a file")):
        assert words in error and error.endswith(".") and "\n" not in error


def test_a_file_without_frames_of_its_own_counts_those_of_its_latents(cvvae, archive):
    for stated in ('{"num_frames": "9"}', '{"num_frames": 41e0}', "[]", "[" * 5000, '{"num_frames": 36}', '{"num_frames": -1}'):
        with LatentWriter(archive / "x", 4, 3, 5, overwrite=True) as writer:
            writer.append(np.ones((11, 4, 3, 5), np.float32))
            writer.close({"video": stated}, {})
        status, out, _ = cvvae("verify", archive / "x", "--json")
        assert status == 0 and json.loads(out)["files"][0]["frames"] == 41


def test_verify_loads_no_torch_and_no_video(archive):
    code = (
        "import sys; from cvvae_cli.commands.verify import verify; from pathlib import Path\n"
        "verify([Path(sys.argv[1])], True, True); sys.exit(any(m in sys.modules for m in ('torch', 'av')))"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, archive / "a"], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and json.loads(done.stdout)["intact"] == 1, done.stderr


def test_the_checksums_are_what_the_format_says(archive):
    data = (archive / "a").read_bytes()
    begin = place_of(archive / "a", "chunk_xxh3")
    spans = ((0, 1), (1, 5), (5, 9), (9, 11))
    chunks = [data[PAYLOAD + a * FRAME_BYTES : PAYLOAD + b * FRAME_BYTES] for a, b in spans]
    stored = np.frombuffer(data[begin : begin + 32], "<u8")
    assert [int(xxh3_64_hexdigest(chunk), 16) for chunk in chunks] == stored.tolist()
