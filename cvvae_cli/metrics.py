"""How close a decoded video is to its source: PSNR, SSIM and flicker, one pair of frames at a time.

Everything is measured on RGB frames of 8 or 16 bits as arrays [H, W, 3], in numpy, with sums in exact integers where
the definition allows it. Two frames of unlike depth are compared at 16 bits, the 8-bit values times 257. This module
knows no video file, no model and no torch. What it keeps between frames is one frame of errors, so several comparisons
can run side by side.
"""

import math
from dataclasses import asdict, dataclass

import numpy as np

from cvvae_cli.errors import QualityError, UsageError
from cvvae_cli.geometry import DEEP_LEVELS

PSNR_CAP_DB = 100.0
"""PSNR of identical frames, and the most that any frame is given: infinity would swallow every mean."""

SSIM_WINDOW = 11
SSIM_SIGMA = 1.5
SSIM_C1 = (0.01 * 255) ** 2
SSIM_C2 = (0.03 * 255) ** 2
LUMA_WEIGHTS = np.array([0.299, 0.587, 0.114], np.float32)
"""BT.601 luma of gamma-coded RGB, the grey that Wang et al. and most SSIM tables use."""

_EXACT_TERMS = 2**19
"""The square of a change of two 16-bit errors, 131070 at most, is below 2^34, and float64 counts to 2^53."""

_STRIP_ROWS = 32
"""Rows of SSIM handled at once: the working set of a 1080p strip stays in a core's second-level cache."""


@dataclass(frozen=True)
class Quality:
    """The result of a comparison.

    Attributes:
        psnr_db: mean over frames of the PSNR of each frame, in dB; each is at most 100 dB.
        psnr_worst_db: the least PSNR of a frame, in dB.
        worst_frame: index of that frame (the first of equals), counted from 0 in the order they were added.
        ssim: mean over frames of the SSIM of luma, at most 1; None where it was not asked for.
        flicker: root mean square of decoded frame differences minus source frame differences, in 8-bit
            levels whatever the depth; 0 for a single frame.
        frames: frames compared.
        frames_missing: source frames that had no decoded frame; the other figures leave them out.
    """

    psnr_db: float
    psnr_worst_db: float
    worst_frame: int
    ssim: float | None
    flicker: float
    frames: int
    frames_missing: int

    def to_dict(self) -> dict:
        """A JSON-ready dictionary with one key per attribute."""
        return asdict(self)


class Comparison:
    """Takes pairs of frames in order and sums up their quality.

    Memory: one frame of int16 errors [H, W, 3] (int32 where one of the two has 16 bits) beside a few numbers, whatever the
    number of frames.
    """

    def __init__(self, with_ssim: bool = True, sums: dict | None = None) -> None:
        """Starts with no frames, or where an earlier comparison was.

        Args:
            with_ssim: False leaves SSIM out, which is most of the work.
            sums: those of the earlier one. The first pair to be added is then its last one again, which is counted already
                and only tells what the error changes from.
        """
        self._with_ssim = with_ssim
        self._frames, self._values = 0, 0
        self._psnr_sum = 0.0
        self._worst = (math.inf, 0)
        self._ssim_sum = 0.0
        self._flicker_sum = 0
        self._error: np.ndarray | None = None
        if sums is not None:
            self._frames, self._values, self._psnr_sum = sums["frames"], sums["values"], sums["psnr"]
            self._worst = (sums["worst"][0], sums["worst"][1])
            self._ssim_sum, self._flicker_sum = sums["ssim"], sums["flicker"]

    @property
    def sums(self) -> dict:
        """All that a later comparison needs to go on behind the last pair; JSON-ready, and JSON loses nothing of it."""
        return {
            "frames": self._frames, "values": self._values, "psnr": self._psnr_sum, "worst": list(self._worst),
            "ssim": self._ssim_sum, "flicker": self._flicker_sum,
        }  # fmt: skip

    def add(self, source: np.ndarray, decoded: np.ndarray) -> None:
        """Adds the next pair of frames.

        Args:
            source, decoded: uint8 or uint16 RGB [H, W, 3], each of its depth, of one size; all pairs are alike.

        Raises:
            UsageError: another dtype or shape, or a size that differs from its partner's or the first pair's, or a depth that
                differs from the first pair's.
        """
        source, decoded = _alike(source, decoded)
        error = _error(source, decoded)
        if self._error is not None and self._error.shape != error.shape:
            before = _size(self._error)
            raise UsageError(f"Frame {self._frames} is {_size(error)}, but the frames before it are {before}; compare one size.")
        if self._error is not None and self._error.dtype != error.dtype:
            raise UsageError(f"Frame {self._frames} has another depth than the frames before it; compare one depth.")
        if self._error is None and self._frames:  # the last pair of an earlier comparison
            self._error = error
            return
        psnr = _psnr_db(error)
        self._psnr_sum += psnr
        self._worst = min(self._worst, (psnr, self._frames))
        if self._with_ssim:
            self._ssim_sum += frame_ssim(source, decoded)
        if self._error is not None:
            # (d1 - d0) - (s1 - s0) = (d1 - s1) - (d0 - s0): the change of the error.
            # Counted in 16-bit levels whatever the depth.
            unit = 1 if error.dtype == np.int32 else DEEP_LEVELS**2
            self._flicker_sum += unit * _sum_of_squares(np.subtract(error, self._error, out=self._error))
        self._error, self._values = error, error.size
        self._frames += 1

    def result(self, frames_missing: int = 0) -> Quality:
        """The quality of all pairs so far; more may be added afterwards.

        Args:
            frames_missing: source frames without a decoded partner, >= 0; passed on as it is.

        Raises:
            QualityError: no pair was added.
        """
        if self._frames == 0:
            raise QualityError(f"No frame was compared and {frames_missing} are missing; compare two videos that hold frames.")
        differences = (self._frames - 1) * self._values
        return Quality(
            psnr_db=self._psnr_sum / self._frames,
            psnr_worst_db=self._worst[0],
            worst_frame=self._worst[1],
            ssim=self._ssim_sum / self._frames if self._with_ssim else None,
            flicker=math.sqrt(self._flicker_sum / differences) / DEEP_LEVELS if differences else 0.0,
            frames=self._frames,
            frames_missing=frames_missing,
        )


def frame_psnr(source: np.ndarray, decoded: np.ndarray) -> float:
    """PSNR of one frame in dB: 10 log10(255^2 / MSE), the MSE over all pixels and the three channels of RGB.

    The peak is 65535 where one of the two has 16 bits.

    Args:
        source, decoded: uint8 or uint16 RGB [H, W, 3] of one size, each of its depth.

    Returns:
        At most `PSNR_CAP_DB`, which identical frames get.

    Raises:
        UsageError: another dtype or shape, or two sizes.
    """
    return _psnr_db(_error(*_alike(source, decoded)))


def frame_ssim(source: np.ndarray, decoded: np.ndarray) -> float:
    """SSIM of one frame's luma: the mean of the SSIM map where the whole window lies inside the frame.

    Window: 11 x 11 Gaussian of sigma 1.5 that sums to 1; K1 = 0.01, K2 = 0.03, L = 255; population
    (not sample) variances; luma is 0.299 R + 0.587 G + 0.114 B in 8-bit levels, not rounded. Along an axis shorter than
    11 px the window is the longest odd one that fits, of the same sigma.

    Args:
        source, decoded: uint8 or uint16 RGB [H, W, 3] of one size, each of its depth.

    Returns:
        A value in [-1, 1]; exactly 1 for identical frames.

    Raises:
        UsageError: another dtype or shape, or two sizes.

    Source: Wang, Bovik, Sheikh, Simoncelli, "Image quality assessment", 2004.
    """
    source, decoded = _alike(source, decoded)
    height, width, _ = source.shape
    rows, columns = _gaussian(height), _gaussian(width)
    valid_rows = height - len(rows) + 1
    total = 0.0
    for top in range(0, valid_rows, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, valid_rows) + len(rows) - 1
        total += _ssim_sum(source[top:bottom], decoded[top:bottom], rows, columns)
    return total / (valid_rows * (width - len(columns) + 1))


def _ssim_sum(source: np.ndarray, decoded: np.ndarray, rows: list[float], columns: list[float]) -> float:
    """Sum of the SSIM map of a strip.

    Written in the sum s and the difference d of the two lumas, because the map needs only the mean of
    each, var s and var d: 4 cov = var s - var d and 2 (var x + var y) = var s + var d. So four planes are
    filtered instead of five, and identical frames give exactly 1.
    """
    # Grey 128 is taken off first: it leaves variances alone and keeps the squares small for float32.
    x, y = _luma(source) - 128, _luma(decoded) - 128
    planes = np.empty((4, *x.shape), np.float32)
    np.add(x, y, out=planes[0])
    np.subtract(y, x, out=planes[1])
    np.multiply(planes[:2], planes[:2], out=planes[2:])
    mean_s, mean_d, square_s, square_d = _filter_columns(_filter_rows(planes, rows), columns)
    var_s = np.maximum(square_s - mean_s * mean_s, 0)
    var_d = np.maximum(square_d - mean_d * mean_d, 0)
    level = mean_s + 256
    level *= level
    mean_d *= mean_d
    # Numerator and denominator differ only by the sign of d's terms; both are multiplied by 2 per factor.
    numerator = (level - mean_d + 2 * SSIM_C1) * (var_s - var_d + 2 * SSIM_C2)
    numerator /= (level + mean_d + 2 * SSIM_C1) * (var_s + var_d + 2 * SSIM_C2)
    return float(numerator.sum(dtype=np.float64))


def _luma(frame: np.ndarray) -> np.ndarray:
    weights = LUMA_WEIGHTS / np.float32(DEEP_LEVELS) if frame.dtype == np.uint16 else LUMA_WEIGHTS
    return frame.astype(np.float32) @ weights


def _gaussian(size: int) -> list[float]:
    taps = min(SSIM_WINDOW, size - 1 + size % 2)
    raw = [math.exp(-0.5 * ((i - taps // 2) / SSIM_SIGMA) ** 2) for i in range(taps)]
    return [value / sum(raw) for value in raw]


def _filter_rows(planes: np.ndarray, taps: list[float]) -> np.ndarray:
    """Correlates axis 1 of [planes, H, W] with symmetric taps, valid part only."""
    size, half = planes.shape[1] - len(taps) + 1, len(taps) // 2
    out = planes[:, half : half + size] * np.float32(taps[half])
    pair = np.empty_like(out)
    for i in range(half):
        j = len(taps) - 1 - i
        np.add(planes[:, i : i + size], planes[:, j : j + size], out=pair)
        pair *= np.float32(taps[i])
        out += pair
    return out


def _filter_columns(planes: np.ndarray, taps: list[float]) -> np.ndarray:
    """Correlates axis 2 of [planes, H, W] with symmetric taps, valid part only."""
    size, half = planes.shape[2] - len(taps) + 1, len(taps) // 2
    out = planes[:, :, half : half + size] * np.float32(taps[half])
    pair = np.empty_like(out)
    for i in range(half):
        j = len(taps) - 1 - i
        np.add(planes[:, :, i : i + size], planes[:, :, j : j + size], out=pair)
        pair *= np.float32(taps[i])
        out += pair
    return out


def _error(source: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Decoded minus source, two frames of one depth, in a type that also holds the change of such errors."""
    return np.subtract(decoded, source, dtype=np.int16 if source.dtype == np.uint8 else np.int32)


def _sum_of_squares(error: np.ndarray) -> int:
    """The exact sum of squares of integers whose values lie in [-131070, 131070]."""
    flat, total = error.reshape(-1), 0
    for start in range(0, flat.size, _EXACT_TERMS):
        values = flat[start : start + _EXACT_TERMS].astype(np.float64)
        total += int(np.dot(values, values))
    return total


def _psnr_db(error: np.ndarray) -> float:
    """PSNR of a frame's errors, int16 of 8-bit frames and int32 of 16-bit ones."""
    squares, peak = _sum_of_squares(error), 255 if error.dtype == np.int16 else 65535
    return PSNR_CAP_DB if squares == 0 else min(PSNR_CAP_DB, 10 * math.log10(peak**2 * error.size / squares))


def _alike(source: np.ndarray, decoded: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both frames at the deeper one's depth.

    Raises:
        UsageError: another dtype or shape, or two sizes.
    """
    for frame in (source, decoded):
        if frame.dtype not in (np.uint8, np.uint16) or frame.ndim != 3 or frame.shape[2] != 3 or frame.size == 0:
            found = f"A frame of {frame.dtype} {list(frame.shape)} cannot be compared"
            raise UsageError(f"{found}; pass uint8 or uint16 RGB [H, W, 3].")
    if source.shape != decoded.shape:
        raise UsageError(f"The source is {_size(source)} and the decoded frame {_size(decoded)}; compare frames of one size.")
    if source.dtype == decoded.dtype:
        return source, decoded
    return _deepened(source), _deepened(decoded)


def _deepened(frame: np.ndarray) -> np.ndarray:
    return frame if frame.dtype == np.uint16 else frame * np.uint16(DEEP_LEVELS)


def _size(frame: np.ndarray) -> str:
    return f"{frame.shape[1]}x{frame.shape[0]}"
