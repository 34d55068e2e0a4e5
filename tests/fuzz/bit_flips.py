"""Single flipped bits in small latent files: is each found by verifying, and by decoding's reader where it reads it?

`python tests/fuzz/bit_flips.py 10000` flips so many, each in a sound file, and prints a JSON line; it ends with exit status 1
where one is missed.
"""

import json
import random
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]

from files import header_of, sound_latents
from tiny_model import TINY

from cvvae_cli.errors import LatentFileError
from cvvae_cli.geometry import chunk_stride
from cvvae_cli.latent_file import LatentReader, is_latent_file
from cvvae_cli.latent_video import LatentVideo
from cvvae_cli.tiling import chunk_count

UNREAD = ("_pad", "later")
"""Tensors that decoding does not read."""


def found_by_verify(path: Path) -> bool:
    """Whether verifying finds damage."""
    try:
        with LatentReader(path) as reader:
            return bool(reader.verify())
    except LatentFileError:
        return True


def found_by_decode(path: Path) -> bool:
    """Whether the reader that decoding uses finds damage in what it reads: description, times, latents and sound."""
    if not is_latent_file(path):
        return False  # it would be read as another program's tensor, unchecked
    try:
        with LatentVideo.open(path, TINY) as video:
            for start in range(video.latent_frames):
                video.read(start, start + 1)
            video.tags()
            assert video.has_anchors and video.tiling is not None
            stride = chunk_stride(video.tiling.chunk, video.tiling.chunk_overlap)
            for number in range(1, chunk_count(video.latent_frames, video.tiling)):
                video.anchors().read(number * stride)
            sound = video.sidecar()
            assert sound is not None
            sound.read()
    except LatentFileError:
        return True
    return False


def is_read(data: bytes, position: int) -> bool:
    """Whether decoding reads a byte of a file."""
    base = 8 + int.from_bytes(data[:8], "little")
    spans = [header_of(data)[name]["data_offsets"] for name in UNREAD if name in header_of(data)]
    return not any(base + start <= position < base + stop for start, stop in spans)


def flip(count: int, seed: int, folder: Path) -> dict:
    """Flip `count` bits, one at a time, in files of every latent dtype.

    Returns:
        How many were flipped, found by each and missed by each, with the first missed bits.
    """
    chance = random.Random(seed)
    files = [sound_latents(dtype) for dtype in ("float16", "float32", "bfloat16")]
    unread = missed = 0
    first_missed: list[list[int]] = []
    path = folder / "a.latent"
    for _ in range(count):
        which = chance.randrange(len(files))
        data = bytearray(files[which])
        bit = chance.randrange(8 * len(data))
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        needed = is_read(files[which], bit // 8)
        unread += not needed
        if not found_by_verify(path) or (needed and not found_by_decode(path)):
            missed += 1
            first_missed = [*first_missed, [which, bit]][:8]
    return {"flips": count, "read_by_decode": count - unread, "missed": missed, "first_missed": first_missed, "seed": seed}


def main() -> int:
    """Run as told on the command line."""
    count, seed = (int(word) for word in (sys.argv[1:] + ["10000", "1"][len(sys.argv) - 1 :]))
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = flip(count, seed, Path(folder))
    print(json.dumps(result | {"seconds": round(time.perf_counter() - began, 1)}))
    return 1 if result["missed"] else 0


if __name__ == "__main__":
    sys.exit(main())
