"""How close norms and residual sums come to a plain copy, in the same run and beside torch's separate calls.

    python benchmarks/norm_bandwidth.py [--device cuda|cpu] [--repeats 20] [--threads N]

On CUDA it measures the Triton kernels; on the CPU the plain-torch path, on small tensors, and says so. Prints a table,
then one line of JSON. Results are compared with the references before anything is timed. Bandwidth counts each byte
that has to be read or written once; `torch ms` is what the same work takes in torch's separate calls.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from cvvae_kernels import (
    add_with_statistics,
    add_with_statistics_reference,
    group_statistics,
    group_statistics_reference,
    norm_silu_pad,
    norm_silu_pad_reference,
    pad3d,
)
from pad_bandwidth import CAUSAL, median_ms

GROUPS, EPS = 32, 1e-6
NOTHING, TIME_ALONE = (0, 0, 0, 0, 0, 0), (2, 0, 0, 0, 0, 0)
# Shape, padding, time mode, space mode: levels of one 17 x 256 x 256 chunk; `sd21` pads time and leaves the zeros around
# to its convolutions, `sd3` repeats everything.
CUDA_CASES = [
    ((1, 128, 17, 256, 256), TIME_ALONE, "replicate", "zeros"),
    ((1, 128, 17, 256, 256), CAUSAL, "replicate", "replicate"),
    ((1, 256, 17, 128, 128), CAUSAL, "replicate", "replicate"),
    ((1, 512, 9, 64, 64), NOTHING, "zeros", "zeros"),
    ((1, 512, 5, 32, 32), TIME_ALONE, "replicate", "zeros"),
]
CPU_CASES = [
    ((1, 128, 5, 64, 64), TIME_ALONE, "replicate", "zeros"),
    ((1, 128, 5, 64, 64), CAUSAL, "replicate", "replicate"),
    ((1, 512, 5, 16, 16), NOTHING, "zeros", "zeros"),
]


@dataclass(frozen=True)
class Row:
    """One measurement: median milliseconds and the bandwidth that they mean, beside a copy's and torch's calls'."""

    what: str
    shape: tuple[int, ...]
    padding: tuple[int, ...]
    modes: str
    memory_format: str
    mbytes: float
    ms: float
    gb_per_s: float
    copy_gb_per_s: float
    share_of_copy: float
    torch_ms: float


@dataclass(frozen=True)
class Call:
    """Work to time: what moves, how many bytes at least, and the same in torch's separate calls."""

    what: str
    moved: int
    ours: Callable[[], object]
    torchs: Callable[[], object]


def refuse(what: str, case: tuple, actual: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Stops where a result is wrong, so that nothing wrong is timed."""
    if not torch.allclose(actual.double(), expected.double(), rtol=tolerance, atol=tolerance):
        raise SystemExit(f"{what} differs from its reference at {case}; nothing was timed.")


def calls_of(case: tuple, x: torch.Tensor) -> list[Call]:
    """The checked calls of one case."""
    _, padding, *modes = case
    weight, bias = torch.rand(2, x.shape[1], device=x.device).to(x.dtype)
    moments, truth = group_statistics(x, GROUPS), group_statistics_reference(x, GROUPS)
    refuse("group_statistics", case, moments.m2 / truth.count, truth.m2 / truth.count, 1e-4)
    mean, rstd = moments.mean, moments.rstd(EPS)
    padded = norm_silu_pad(x, mean, rstd, weight, bias, padding, *modes)
    refuse("norm_silu_pad", case, padded, norm_silu_pad_reference(x, mean, rstd, weight, bias, padding, *modes), 2e-2)
    # Zeros are added, so that what is overwritten again and again stays the same.
    h, nothing = x.clone(), torch.zeros_like(x)
    total, truth = add_with_statistics_reference(h, nothing, GROUPS)
    summed, gathered = add_with_statistics(h, nothing, GROUPS)
    refuse("add_with_statistics", case, summed, total, 0)
    refuse("add_with_statistics", case, gathered.m2 / truth.count, truth.m2 / truth.count, 1e-4)

    def statistics_then_norm() -> torch.Tensor:
        moments = group_statistics(x, GROUPS)
        return norm_silu_pad(x, moments.mean, moments.rstd(EPS), weight, bias, padding, *modes)

    def separate(x: torch.Tensor) -> torch.Tensor:
        return pad3d(F.silu(F.group_norm(x, GROUPS, weight, bias, EPS), inplace=True), padding, *modes)

    def norm() -> torch.Tensor:
        return norm_silu_pad(x, mean, rstd, weight, bias, padding, *modes)

    size, out = x.numel() * x.element_size(), padded.numel() * x.element_size()
    return [
        Call("group_statistics", size, lambda: group_statistics(x, GROUPS), lambda: torch.var_mean(x, (2, 3, 4))),
        Call("norm_silu_pad", size + out, norm, lambda: separate(x)),
        Call("both", 2 * size + out, statistics_then_norm, lambda: separate(x)),
        Call("add_with_statistics", 3 * size, lambda: add_with_statistics(h, nothing, GROUPS), lambda: h.add_(nothing)),
    ]


@torch.no_grad()
def measure(case: tuple, memory_format: torch.memory_format, device: str, repeats: int) -> list[Row]:
    """Every call of one case in bf16."""
    shape, padding, *modes = case
    x = torch.randn(shape, device=device).to(torch.bfloat16).to(memory_format=memory_format)
    copy = 2 * x.numel() * x.element_size() / median_ms(lambda: x.clone(), repeats, device) / 1e6
    layout = "channels_last_3d" if memory_format == torch.channels_last_3d else "contiguous"
    rows = []
    for call in calls_of(case, x):
        ms = median_ms(call.ours, repeats, device)
        rate = call.moved / ms / 1e6
        figures = (round(call.moved / 1e6, 1), round(ms, 4), round(rate, 1), round(copy, 1), round(rate / copy, 3))
        torch_ms = round(median_ms(call.torchs, repeats, device), 4)
        rows.append(Row(call.what, shape, padding, "-".join(modes), layout, *figures, torch_ms))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Bandwidth of norms and residual sums beside that of a copy.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per figure")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = arguments.device
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, bf16, {GROUPS} groups")
    if device == "cpu":
        print("This times the plain-torch path on small tensors, not the Triton kernels.")
    print(
        f"{'':20}{'shape':>19} {'padding':>12} {'format':>17} {'MB':>8} {'ms':>9} "
        f"{'GB/s':>8} {'copy':>8} {'share':>6} {'torch ms':>9}"
    )
    rows = []
    for case in CUDA_CASES if device == "cuda" else CPU_CASES:
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            for row in measure(case, memory_format, device, arguments.repeats):
                rows.append(row)
                shape, padding = "x".join(map(str, row.shape)), "".join(map(str, row.padding))
                print(
                    f"{row.what:20}{shape:>19} {padding:>12} {row.memory_format:>17} {row.mbytes:8.1f} {row.ms:9.3f} "
                    f"{row.gb_per_s:8.1f} {row.copy_gb_per_s:8.1f} {row.share_of_copy:6.2f} {row.torch_ms:9.3f}"
                )
    print(json.dumps({"device": name, "torch": torch.__version__, "dtype": "bfloat16", "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
