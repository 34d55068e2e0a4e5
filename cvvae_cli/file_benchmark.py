"""How fast a clip goes through the tool from file to file, and where the time goes, stage by stage.

The same functions as `cvvae encode` and `cvvae decode`, with a clock that waits for the device at the end of each
stage. It knows no table and no command line.
"""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.config import Tiling
from cvvae_cli.decoding import DecodeOptions, DecodeReport, decode_file
from cvvae_cli.encoding import EncodeOptions, EncodeReport, encode_file
from cvvae_cli.machine import device_name
from cvvae_cli.memory_model import double_work, fitting_tiling
from cvvae_cli.peak_memory import peak_memory
from cvvae_cli.stage_clock import StageClock

NETWORK_STAGES = ("encode", "decode")


@dataclass(frozen=True)
class FileRow:
    """One direction, from file to file.

    Attributes:
        direction: "encode" or "decode".
        seconds: model loaded, file to file.
        fps: frames per second of that.
        stages: seconds of each stage. "read" of an encode and "write" of a decode run beside the others, in a thread of their own.
        network_fps: frames per second of the network's stage alone, what tiles and chunks share counted once.
        peak_mib: most memory: of the process on a CPU, of torch's allocator on CUDA; None where it cannot be read.
    """

    direction: str
    seconds: float
    fps: float
    stages: dict[str, float]
    network_fps: float
    peak_mib: float | None


@dataclass(frozen=True)
class FileBenchReport:
    """Attributes:
    device, device_name, dtype, model, torch, threads, commit: as in `BenchReport`.
    frames, width, height: of the clip as encoded.
    preset: of the video encoder.
    tiling: how the video was cut.
    double_work: pixels that the network computed for each pixel of the video.
    rows: encode and decode.
    """

    device: str
    device_name: str
    dtype: str
    model: str | None
    torch: str
    threads: int
    commit: str | None
    frames: int
    width: int
    height: int
    preset: str
    tiling: Tiling
    double_work: float
    rows: tuple[FileRow, ...]

    def to_dict(self) -> dict:
        """A JSON-ready dictionary."""
        return asdict(self)


def measure_file(
    model: Autoencoder, clip: Path, max_frames: int, preset: str, shown_model: str | None = None, commit: str | None = None
) -> FileBenchReport:
    """Encode the first frames of a clip and decode them again, in a temporary folder.

    Args:
        model: the autoencoder, on the device to measure.
        clip: a video file.
        max_frames: how many at most.
        preset: of libx264.
        shown_model: the model's name, for the record.
        commit: of the program, for the record.

    Raises:
        As `encode_file` and `decode_file`.
    """
    reports: list[EncodeReport | DecodeReport] = []
    with tempfile.TemporaryDirectory(prefix="cvvae-") as folder:
        latents, video = Path(folder) / "clip.latent", Path(folder) / "clip.mp4"
        # Looked for beforehand: what fits is measured once per model, and not a part of any stage.
        fitting_tiling(model, 64, 64)
        peaks = []
        for direction in (
            lambda: encode_file(clip, latents, model=model, options=EncodeOptions(max_frames=max_frames), clock=_clock(model)),
            lambda: decode_file(latents, video, model=model, options=DecodeOptions(preset=preset), clock=_clock(model)),
        ):
            peaks.append(peak_memory(model.device, lambda: reports.append(direction()))[0])  # noqa: B023 - called at once
    encoded = reports[0]
    cut = double_work(encoded.tiling, encoded.height, encoded.width)
    rows = tuple(_row(name, report, peak) for name, report, peak in zip(NETWORK_STAGES, reports, peaks))
    return FileBenchReport(
        device=str(model.device), device_name=device_name(model.device), dtype=str(model.dtype).removeprefix("torch."),
        model=shown_model, torch=torch.__version__, threads=torch.get_num_threads(), commit=commit,
        frames=encoded.frames, width=encoded.width, height=encoded.height, preset=preset,
        tiling=encoded.tiling, double_work=cut, rows=rows,
    )  # fmt: skip


def _clock(model: Autoencoder) -> StageClock:
    if model.device.type != "cuda":
        return StageClock()
    return StageClock(lambda: torch.cuda.synchronize(model.device))


def _row(direction: str, report: EncodeReport | DecodeReport, peak: float | None) -> FileRow:
    network = report.frames / report.stages[direction]
    return FileRow(direction, report.seconds, report.fps, report.stages, network, peak)
