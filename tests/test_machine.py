"""The processor's name and abilities against what the system says."""

import platform
from pathlib import Path

import pytest
import torch

from cvvae_cli.machine import device_name, lists_amx_bf16


@pytest.mark.skipif(platform.system() != "Linux", reason="no /proc/cpuinfo")
def test_the_cpu_as_linux_lists_it() -> None:
    listed = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = device_name(torch.device("cpu"))
    assert name and (name in listed or name == platform.machine())
    assert lists_amx_bf16() == ("amx_bf16" in listed.split())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu() -> None:
    assert device_name(torch.device("cuda", 0)) == torch.cuda.get_device_name(0)
