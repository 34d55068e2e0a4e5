"""A report of hand-made figures as JSON."""

import json

from tiny_model import TINY

from cvvae_cli.bench_report import BenchReport, BenchRow, PlainComparison
from cvvae_cli.config import config_from_dict

PLAIN = PlainComparison(20.0, 21.0, 3000, 0.15, 900.0, 800.0, 5.0, 0.3, 0.5, 0.01, None)
ROWS = (
    BenchRow("encode", 64, 5, 4.0, 4.5, 1.25, 0.00512, 2500, 0.6, 0.4, 700.0, 300.0, PLAIN),
    BenchRow("decode", 64, 5, 4.0, 4.5, 1.25, 0.00512, 2500, 0.6, 0.4, None, None, None),
)


def test_a_report_survives_json() -> None:
    report = BenchReport(
        device="cpu", device_name="a chip", dtype="bfloat16", weights_mib=1.5, plain_dtype="float32", plain_weights_mib=3.0,
        model=None, sha256=None, config=TINY, torch="2", threads=2, cpu_capability="AVX512", amx=False, commit=None,
        repeats=1, warmup=1, matmul_size=4096, matmul_tflops=1.5, rows=ROWS, notes=("one",),
    )  # fmt: skip
    values = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert config_from_dict(values["config"]) == TINY
    assert (values["weights_mib"], values["plain_dtype"], values["notes"]) == (1.5, "float32", ["one"])
    assert [row["direction"] for row in values["rows"]] == ["encode", "decode"]
    assert values["rows"][0]["plain"]["speed_ratio"] == 5.0 and values["rows"][0]["plain"]["psnr_db"] is None
    assert values["rows"][1]["plain"] is None
