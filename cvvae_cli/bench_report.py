"""What a benchmark says: the figures of each run, and what they were measured on. Data alone; nothing is measured here."""

from dataclasses import asdict, dataclass
from typing import Literal

from cvvae_cli.config import ModelConfig, config_to_dict

RunDirection = Literal["encode", "decode"]


@dataclass(frozen=True)
class PlainComparison:
    """The same network in plain form on the same window, run in turns with the model.

    Attributes:
        seconds, median_seconds: of the plain form's best and median run.
        flops: of the plain form, which folds no kernel, as `operation_count` counts.
        tflops: 1e12 of those per second of its best run.
        peak_mib, growth_mib: of the plain form, as in `BenchRow`.
        speed_ratio: `seconds` over the model's.
        memory_ratio: weights and growth of the model over those of the plain form: what each takes by itself beside
            the interpreter and its libraries. None where memory cannot be read.
        plain_flops_matmul_share: the plain form's `flops` over the model's seconds, as a share of the matrix product's
            rate in the model's dtype. Work that the model saves counts as done.
        relative_error: L2 norm of the difference between the outputs over that of the plain form's; of moments the
            larger of the mean's and the log-variance's. None where an output is not finite.
        psnr_db: decode: of the model's pixels against the plain form's, in [-1, 1], not clamped, at most 100 dB.
            None for encode and where an output is not finite.
    """

    seconds: float
    median_seconds: float
    flops: int
    tflops: float
    peak_mib: float | None
    growth_mib: float | None
    speed_ratio: float
    memory_ratio: float | None
    plain_flops_matmul_share: float
    relative_error: float | None
    psnr_db: float | None


@dataclass(frozen=True)
class BenchRow:
    """One direction at one tile size; rates come from the best run.

    Attributes:
        direction: "encode" or "decode".
        tile: width and height of the window in pixels.
        frames: frames in the window.
        seconds, median_seconds: of the best and the median run, input and output on the device.
        fps: frames per second.
        mpixel_per_s: million pixels (of all frames) per second.
        flops: as `operation_count` counts.
        tflops: 1e12 of those per second.
        matmul_share: `tflops` over the report's `matmul_tflops`; above 1 where convolutions run by a quicker algorithm.
        peak_mib: most memory at any time of an untimed run. CUDA: of torch's allocator, weights included. CPU:
            resident memory of the whole process, interpreter, libraries and weights included. None where it cannot be
            read. Beside a plain form both include its weights.
        growth_mib: what of it was not there before the run began, so the window's own, without weights and input.
        plain: beside the plain form; None where that did not run.
    """

    direction: RunDirection
    tile: int
    frames: int
    seconds: float
    median_seconds: float
    fps: float
    mpixel_per_s: float
    flops: int
    tflops: float
    matmul_share: float
    peak_mib: float | None
    growth_mib: float | None
    plain: PlainComparison | None

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


@dataclass(frozen=True)
class BenchReport:
    """What was measured, and on what.

    Attributes:
        device: as torch names it, e.g. "cuda:0".
        device_name: the processor's or GPU's own name.
        dtype: of weights and activations, e.g. "bfloat16".
        weights_mib: of the model.
        plain_dtype, plain_weights_mib: of the plain form beside it; None where that did not run.
        model, sha256: from the model's identity, without a local path; None for weights that came from no file.
        config: the architecture.
        torch: version.
        threads: CPU threads of one operation.
        cpu_capability: vector instructions that torch uses, e.g. "AVX512".
        amx: the CPU lists AMX's bfloat16 tiles.
        commit: of the program, as the caller gave it.
        repeats, warmup: timed and untimed runs of each row.
        matmul_size, matmul_tflops: the matrix product that `matmul_share` refers to.
        rows: encode and decode of each tile, in the order asked for.
        notes: sentences about what is missing.
    """

    device: str
    device_name: str
    dtype: str
    weights_mib: float
    plain_dtype: str | None
    plain_weights_mib: float | None
    model: str | None
    sha256: str | None
    config: ModelConfig
    torch: str
    threads: int
    cpu_capability: str
    amx: bool
    commit: str | None
    repeats: int
    warmup: int
    matmul_size: int
    matmul_tflops: float
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        lists = {"rows": [row.to_dict() for row in self.rows], "notes": list(self.notes)}
        return {**asdict(self), "config": config_to_dict(self.config), **lists}
