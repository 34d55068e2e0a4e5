"""A few flipped bits, other ones each run; `python tests/fuzz/bit_flips.py` flips many."""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from bit_flips import flip, found_by_decode, found_by_verify, is_read
from files import header_of, sound_latents


def test_every_flipped_bit_is_found(tmp_path: Path) -> None:
    result = flip(200, random.randrange(2**32), tmp_path)
    assert result["flips"] == 200 and result["missed"] == 0, result


def test_a_sound_file_is_not_called_damaged(tmp_path: Path) -> None:
    for dtype in ("float16", "float32", "bfloat16"):
        (tmp_path / "a").write_bytes(sound_latents(dtype))
        assert not found_by_verify(tmp_path / "a") and not found_by_decode(tmp_path / "a")


def test_only_what_decoding_has_no_use_for_is_unread() -> None:
    data = sound_latents()
    base = 8 + int.from_bytes(data[:8], "little")
    start, stop = header_of(data)["later"]["data_offsets"]
    unread = [position for position in range(len(data)) if not is_read(data, position)]
    assert unread == list(range(base + start, base + stop))
