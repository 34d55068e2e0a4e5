"""The matrix product keeps to the size and the time that it is given."""

import pytest
import torch

from cvvae_cli import matmul_rate as measured
from cvvae_cli.matmul_rate import matmul_rate


def test_matmul_rate_keeps_to_its_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "LONGEST_PRODUCT_SECONDS", 0.01)
    rate = matmul_rate("cpu", torch.float32, size=96, repeats=2)
    assert rate.size == 96
    assert 1e6 < rate.flops_per_second < 1e15
    # 256 is where the search begins; the next size costs eight times the limit's hundredth of a second or less.
    assert matmul_rate("cpu", torch.bfloat16, size=1 << 14, repeats=1).size < 1 << 14
