"""Comparing a video with its latents or its copy, and the whole round trip.

The source is read a second time, frame by frame beside the decoded ones; no video codec lies between.
"""

import resource
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from cvvae_cli.autoencoder import Autoencoder
from cvvae_cli.codec import Plan, Progress, no_progress
from cvvae_cli.config import Tiling
from cvvae_cli.decoded_frames import decoded_frames
from cvvae_cli.decoding import DecodeOptions, DecodeReport, decode_file
from cvvae_cli.encoding import EncodeOptions, EncodeReport, encode_file
from cvvae_cli.errors import QualityError
from cvvae_cli.fidelity import ErrorProfile, Harm, cut_of, harm_of
from cvvae_cli.geometry import DEEP_LEVELS, frame_count
from cvvae_cli.host_memory import peak_bytes
from cvvae_cli.latent_video import LatentVideo, check_model
from cvvae_cli.media import keep_inputs
from cvvae_cli.memory_model import tiling_within
from cvvae_cli.metrics import Comparison, Quality
from cvvae_cli.picture_writer import PICTURE_CODECS, PictureWriter, names_pictures
from cvvae_cli.reading import PLAIN
from cvvae_cli.video_encoder import Pictures
from cvvae_cli.video_io import Frame, VideoReader, probe
from cvvae_cli.video_writer import VideoWriter, default_codec


def peak_mib(device: torch.device) -> float:
    """Peak memory of this process in MiB: of the device's allocator on CUDA, resident memory on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    counted = peak_bytes()
    if counted is not None:
        return counted / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


class SourceComparison:
    """A comparison that draws the source's frames itself.

    Args:
        source: the video.
        latents: which part and size of it the decoded frames show, and how it was read; None for all of it.
        with_ssim: whether to measure SSIM, most of the work.
        skip: source frames to pass over first.
        profile: takes the same pairs, at 8 bits.

    Attributes:
        source: the video.
        settings: what else decides on the figures, JSON-ready.
        deep: the source's frames have 16 bits, because it has more than 8.
    """

    def __init__(
        self,
        source: str | Path,
        latents: LatentVideo | None,
        with_ssim: bool = True,
        skip: int = 0,
        profile: ErrorProfile | None = None,
    ) -> None:
        self.source, self.settings = Path(source), {"ssim": with_ssim, "skip": skip}
        self._profile, self._with_ssim, self._passed = profile, with_ssim, skip
        self._comparison = Comparison(with_ssim)
        size = None if latents is None else (latents.width, latents.height)
        start = 0.0 if latents is None else latents.start
        self._reader = VideoReader(source, start=start, size=size, reading=latents.reading if latents else PLAIN, deep=True)
        self.deep = self._reader.deep
        self._frames = self._partners()
        self._compared = 0

    def _partners(self) -> Iterator[Frame]:
        for _ in self._reader.skip(self._passed):
            pass
        yield from self._reader

    @property
    def sums(self) -> dict:
        """All that `go_on` needs; JSON-ready."""
        return self._comparison.sums

    def go_on(self, done: int, sums: dict) -> None:
        """Begin where an earlier comparison was.

        Args:
            done: decoded frames that it had taken, 1 or more. The last of them is to be added first, once more.
            sums: its `sums` then.
        """
        assert self._profile is None, "a profile is not kept"
        # Here and not in the thread that adds: an interrupt need not wait for it.
        for _ in self._reader.skip(self._passed + done - 1):
            pass
        self._passed = 0
        # Where the source ended before, nothing is added any more.
        self._comparison, self._compared = Comparison(self._with_ssim, sums), min(sums["frames"], done - 1)

    def add(self, decoded: np.ndarray) -> None:
        """Compare the next decoded frame with the next source frame, at the deeper one's depth.

        Args:
            decoded: uint8 or uint16 [H, W, 3].

        Raises:
            QualityError: their sizes differ.
        """
        frame = next(self._frames, None)
        if frame is None:  # frames after the source's end show nothing that could be compared
            return
        if frame.rgb.shape != decoded.shape:
            (height, width, _), (own_height, own_width, _) = frame.rgb.shape, decoded.shape
            sizes = f"The source has {width}x{height} px and the copy {own_width}x{own_height}"
            raise QualityError(f"{sizes}; compare the source with the latent file, or with a copy of its size.")
        self._comparison.add(frame.rgb, decoded)
        if self._profile is not None:
            self._profile.add(_bytes_of(frame.rgb), _bytes_of(decoded))
        self._compared += 1

    def result(self, expected: int = 0, to_end: bool = True) -> Quality:
        """The quality; frames without a partner are counted as missing.

        Args:
            expected: decoded frames, each of which should have had a partner in the source.
            to_end: source frames behind the last decoded one should have had one too.
        """
        missing = max(0, expected - self._compared)
        return self._comparison.result(missing + (sum(1 for _ in self._frames) if to_end else 0))

    def close(self) -> None:
        """Close the source."""
        self._reader.close()


def _bytes_of(frame: np.ndarray) -> np.ndarray:
    """A frame at 8 bits, rounded."""
    return frame if frame.dtype == np.uint8 else ((frame.astype(np.uint32) + 128) // DEEP_LEVELS).astype(np.uint8)


def check_latents(
    source: str | Path, latents: LatentVideo, model: Autoencoder, tiling: Tiling | None = None, progress: Progress = no_progress
) -> Quality:
    """Compare the part of `source` that `latents` hold with what they decode to.

    Raises:
        VideoError, LatentFileError: one cannot be read, or the latents are another model's.
    """
    check_model(latents, model)
    with closing(SourceComparison(source, latents)) as comparison, torch.inference_mode():
        deep = comparison.deep
        size = (frame_count(latents.latent_frames), latents.height, latents.width)
        plan = Plan(tiling or tiling_within(model, latents.tiling, *size, deep))
        for index, frame in enumerate(decoded_frames(latents, model, plan, 0, latents.num_frames, deep=deep), 1):
            comparison.add(frame)
            progress(index, latents.num_frames)
        return comparison.result(latents.num_frames, latents.to_end)


def check_video(source: str | Path, copy: str | Path, progress: Progress = no_progress) -> Quality:
    """Compare a video with its copy, frame by frame in order.

    Raises:
        VideoError: one cannot be read.
        QualityError: their sizes differ.
    """
    with closing(SourceComparison(source, None)) as comparison, VideoReader(copy, deep=True) as reader:
        index = 0
        for index, frame in enumerate(reader, 1):
            comparison.add(frame.rgb)
            progress(index, reader.info.num_frames)
        return comparison.result(index)


@dataclass(frozen=True)
class RoundtripReport:
    """Attributes:
    encode, decode: how each half went.
    quality: before any video codec.
    harm: what is to be seen of tiles and chunks, in the same frames.
    psnr_file_db: of the written video, None where none was.
    peak_mib: peak memory of the process (CPU) or the device's allocator (CUDA).
    """

    encode: EncodeReport
    decode: DecodeReport
    quality: Quality
    harm: Harm
    psnr_file_db: float | None
    peak_mib: float

    def to_dict(self) -> dict:
        """JSON-ready, with the keys that `cvvae roundtrip --json` promises."""
        return {
            **self.quality.to_dict(),
            "harm": asdict(self.harm),
            "psnr_file_db": self.psnr_file_db,
            "width": self.encode.width,
            "height": self.encode.height,
            "latent_bytes": self.encode.latent_bytes,
            "bits_per_pixel": self.encode.bits_per_pixel,
            "encode_seconds": self.encode.seconds,
            "decode_seconds": self.decode.seconds,
            "encode_fps": self.encode.fps,
            "decode_fps": self.decode.fps,
            "peak_mib": self.peak_mib,
            "notes": [*self.encode.notes, *self.decode.notes],
        }


def roundtrip_file(
    source: str | Path,
    output: str | Path | None,
    *,
    model: Autoencoder,
    tiling: Tiling | None = None,
    encode: EncodeOptions | None = None,
    decode: DecodeOptions | None = None,
    latents: str | Path | None = None,
    progress: Progress = no_progress,
) -> RoundtripReport:
    """Encode a video, decode it and compare.

    Args:
        source: the video.
        output: the decoded video; None decodes without writing one.
        model, tiling: as for `encode_file`.
        encode, decode: options of the halves.
        latents: keep the latent file here; None deletes it.
        progress: called after every chunk of either half.

    Raises:
        As `encode_file` and `decode_file`; an output that cannot be written is found out at the beginning.
    """
    if output is not None:
        keep_inputs(output, source)
        _try_output(source, output, encode or EncodeOptions(), decode or DecodeOptions())
    with tempfile.TemporaryDirectory(prefix="cvvae-") as folder:
        kept = Path(latents) if latents else Path(folder) / "roundtrip.latent"
        encoded = encode_file(source, kept, model=model, tiling=tiling, options=encode, progress=progress)
        profile = ErrorProfile()
        with (
            LatentVideo.open(kept, model.config) as opened,
            closing(SourceComparison(source, opened, profile=profile)) as comparison,
        ):
            decoded = decode_file(opened, output, model=model, options=decode, progress=progress, observe=comparison.add)
            quality = comparison.result(opened.num_frames, opened.to_end)
            of_file = _file_psnr(source, output, opened) if output else None
    harm = harm_of(profile, cut_of(decoded.tiling, len(profile.frames), decoded.height, decoded.width))
    return RoundtripReport(encoded, decoded, quality, harm, of_file, peak_mib(model.device))


def _try_output(source: str | Path, output: str | Path, encode: EncodeOptions, decode: DecodeOptions) -> None:
    """Open the output and discard it: hours of encoding should not end at a name or an option that is refused."""
    info, path = probe(source, encode.reading), Path(output)
    width, height = encode.size or (info.width, info.height)
    pictures = Pictures(width, height, decode.frame_rate or info.frame_rate, info.time_base)
    if names_pictures(path):
        PictureWriter(path, pictures, decode.encoding(PICTURE_CODECS[path.suffix.lower()]), decode.overwrite).abort()
    else:
        VideoWriter(path, pictures, decode.encoding(default_codec(path)), overwrite=decode.overwrite).abort()


def _file_psnr(source: str | Path, output: str | Path, latents: LatentVideo) -> float:
    with closing(SourceComparison(source, latents, with_ssim=False)) as comparison, VideoReader(output, deep=True) as reader:
        for frame in reader:
            comparison.add(frame.rgb)
        return comparison.result(to_end=False).psnr_db
