"""How close padding comes to a plain copy, in the same run: GB/s of `pad3d` beside GB/s of `torch.clone`.

    python benchmarks/pad_bandwidth.py [--repeats 20] [--threads N]

On CUDA it measures the Triton kernels, forward and backward; elsewhere the plain-torch path against the reference,
and says so. Prints a table, then one line of JSON. Results are compared with the reference before anything is timed.
Bandwidth counts each input byte once and each output byte once.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from cvvae_kernels import pad3d, pad3d_reference

# Paddings of the official convolutions: causal encoder, decoder with a frame on each side, downsampling.
CAUSAL, CENTRED, DOWNSAMPLE = (2, 0, 1, 1, 1, 1), (1, 1, 1, 1, 1, 1), (2, 0, 0, 1, 0, 1)
# Shape, padding, time mode, space mode: level 0, level 1 and a decoder level of one 17 x 256 x 256 chunk.
CUDA_CASES = [
    ((1, 128, 17, 256, 256), CAUSAL, "replicate", "zeros"),
    ((1, 128, 17, 256, 256), CAUSAL, "replicate", "replicate"),
    ((1, 128, 17, 256, 256), DOWNSAMPLE, "replicate", "zeros"),
    ((1, 256, 17, 256, 256), CENTRED, "zeros", "zeros"),
    ((1, 256, 9, 128, 128), CAUSAL, "replicate", "replicate"),
]
CPU_CASES = [
    ((1, 128, 5, 64, 64), CAUSAL, "replicate", "zeros"),
    ((1, 128, 5, 64, 64), CAUSAL, "replicate", "replicate"),
    ((1, 128, 5, 64, 64), CENTRED, "zeros", "zeros"),
]


@dataclass(frozen=True)
class Row:
    """One measurement: median milliseconds and the bandwidth that they mean, beside a copy's."""

    what: str
    shape: tuple[int, ...]
    padding: tuple[int, ...]
    modes: str
    memory_format: str
    ms: float
    gb_per_s: float
    copy_gb_per_s: float
    share_of_copy: float
    reference_ms: float | None


def median_ms(function: Callable[[], object], repeats: int, device: str) -> float:
    """Median duration of one call after three to warm up (and compile)."""
    for _ in range(3):
        function()
    durations = []
    for _ in range(repeats):
        if device == "cuda":
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            durations.append(start.elapsed_time(end))
        else:
            begin = time.perf_counter()
            function()
            durations.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(durations)


def measure(case: tuple, memory_format: torch.memory_format, device: str, repeats: int) -> list[Row]:
    """Forward, and on CUDA backward too, of one case in bf16."""
    shape, padding, *modes = case
    x = torch.randn(shape, device=device).to(torch.bfloat16).to(memory_format=memory_format)
    out = pad3d(x, padding, *modes)
    if not torch.equal(out, pad3d_reference(x, padding, *modes)):
        raise SystemExit(f"pad3d differs from its reference at {case}; nothing was timed.")
    moved = (x.numel() + out.numel()) * x.element_size()
    copy = 2 * out.numel() * out.element_size() / median_ms(lambda: out.clone(), repeats, device) / 1e6
    calls: dict[str, Callable[[], object]] = {"forward": lambda: pad3d(x, padding, *modes)}
    reference_ms = None
    if device == "cuda":
        from cvvae_kernels.ops import pad3d_backward_op

        calls["backward"] = lambda: pad3d_backward_op(out, padding, *modes)
    else:
        reference_ms = round(median_ms(lambda: pad3d_reference(x, padding, *modes), 3, device), 3)
    layout = "channels_last_3d" if memory_format == torch.channels_last_3d else "contiguous"
    rows = []
    for what, call in calls.items():
        ms = median_ms(call, repeats, device)
        rate = moved / ms / 1e6
        figures = (round(ms, 4), round(rate, 1), round(copy, 1), round(rate / copy, 3))
        rows.append(Row(what, shape, padding, "-".join(modes), layout, *figures, reference_ms))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Bandwidth of pad3d beside that of a copy.")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls per figure")
    parser.add_argument("--threads", type=int, default=None, help="CPU threads (default: torch's own choice)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{name}, torch {torch.__version__}, bf16")
    if device == "cpu":
        print("No CUDA here: this times the plain-torch path against the reference, not the Triton kernels.")
    print(f"{'':9}{'shape':>20} {'modes':>20} {'format':>17} {'ms':>9} {'GB/s':>8} {'copy GB/s':>10} {'share':>6} {'ref ms':>8}")
    rows = []
    for case in CUDA_CASES if device == "cuda" else CPU_CASES:
        for memory_format in (torch.contiguous_format, torch.channels_last_3d):
            for row in measure(case, memory_format, device, arguments.repeats):
                rows.append(row)
                shape = "x".join(map(str, row.shape))
                reference = "" if row.reference_ms is None else f"{row.reference_ms:8.1f}"
                print(
                    f"{row.what:9}{shape:>20} {row.modes:>20} {row.memory_format:>17} {row.ms:9.3f} {row.gb_per_s:8.1f} "
                    f"{row.copy_gb_per_s:10.1f} {row.share_of_copy:6.2f} {reference:>8}"
                )
    print(json.dumps({"device": name, "torch": torch.__version__, "dtype": "bfloat16", "rows": [asdict(row) for row in rows]}))


if __name__ == "__main__":
    main()
