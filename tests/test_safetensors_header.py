"""The front of a safetensors file: no bytes surprise the reader, and numbers are rounded as torch rounds them."""

import contextlib
import functools
import json
import os
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cvvae_cli.errors import LatentFileError
from cvvae_cli.safetensors_header import check_own_header, open_for_reading, parse_header, read_header, to_float, to_stored

EXAMPLES = int(os.environ.get("CVVAE_FUZZ_EXAMPLES", "15"))
"""Few by default; each run draws others."""
fuzz = functools.partial(
    settings, max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=8,
)


@contextlib.contextmanager
def peak_below(limit: float) -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < limit


def only_typed_errors(path: Path, data: bytes, attempt: Callable[[Path], object]) -> None:
    """Tries to read a file of these bytes: it must work or be refused in one line, and take little memory."""
    path.write_bytes(data)
    with peak_below(8 * 2**20):
        try:
            attempt(path)
        except LatentFileError as error:
            assert "\n" not in str(error)


def parse(path: Path) -> None:
    file, size = open_for_reading(str(path))
    with file:
        parse_header(read_header(file, size, str(path)), size, str(path))


def check(path: Path) -> None:
    file, size = open_for_reading(str(path))
    with file:
        check_own_header(read_header(file, size, str(path)), str(path))


@fuzz()
@given(st.binary(max_size=300), st.integers(0, 2**64 - 1) | st.integers(0, 300), st.booleans())
def test_fuzz_random_bytes(tmp_path: Path, body: bytes, size: int, brace: bool) -> None:
    for attempt in (parse, check):
        only_typed_errors(tmp_path / "a", body, attempt)
        only_typed_errors(tmp_path / "a", struct.pack("<Q", size) + b"{" * brace + body, attempt)


@fuzz()
@given(st.dictionaries(st.sampled_from(["latents", "__metadata__", "a"]), JSON, max_size=3), st.integers(0, 64))
def test_fuzz_random_headers(tmp_path: Path, header: dict, data: int) -> None:
    text = json.dumps(header).encode()
    only_typed_errors(tmp_path / "a", struct.pack("<Q", len(text)) + text + b"\0" * data, parse)


def test_deep_json_is_refused(tmp_path: Path) -> None:
    text = b'{"a":' + b"[" * 200_000
    only_typed_errors(tmp_path / "a", struct.pack("<Q", len(text)) + text, parse)
    with pytest.raises(LatentFileError, match="damaged header"):
        parse(tmp_path / "a")


def test_bfloat16_rounds_as_torch_does() -> None:
    rng = np.random.default_rng(0)
    around_one = np.arange(0x3F7FFFF0, 0x3F830010, dtype=np.uint32)  # every tie and its neighbours
    bits = np.concatenate([rng.integers(0, 2**32, 20_000, dtype=np.uint32), around_one])
    edges = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, 3.3895314e38, 1e-45, 1.00390625, 1.01171875], np.float32)
    values = np.concatenate([bits.view(np.float32), edges])
    expected = torch.from_numpy(values).bfloat16()
    number = ~np.isnan(values)
    found = to_stored(values, "BF16")
    assert np.array_equal(found[number], expected.view(torch.uint16).numpy()[number])
    assert np.isnan(to_float(found, "BF16")[~number]).all()
    assert np.array_equal(to_float(found, "BF16")[number], expected.float().numpy()[number])
