"""A short fuzz of every reader of files; `python tests/fuzz/run.py` is the long one."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import pytest
from files import official_configs, sound_latents
from hypothesis import given
from hypothesis import strategies as st
from readers import READERS, Reader, attempt
from test_safetensors_header import fuzz

from cvvae_cli.config import CVVAEConfig
from cvvae_cli.errors import ModelError
from cvvae_cli.official_names import config_from_official


def test_the_sound_file_is_taken(tmp_path: Path) -> None:
    latents = next(reader for reader in READERS if reader.name == "latents")
    for dtype in ("float16", "float32", "bfloat16"):
        assert attempt(latents, tmp_path / "a", sound_latents(dtype))


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_fuzz(reader: Reader, tmp_path: Path) -> None:
    @fuzz()
    @given(st.data())
    def run(data: st.DataObject) -> None:
        attempt(reader, tmp_path / "a", data.draw(reader.files))

    run()


@fuzz()
@given(official_configs())
def test_fuzz_official_configs(config: dict) -> None:
    try:
        assert isinstance(config_from_official(config), CVVAEConfig)
    except ModelError as error:
        assert str(error)
