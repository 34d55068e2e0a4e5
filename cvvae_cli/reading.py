"""How a video file is read, apart from which part of it. Opens nothing."""

from dataclasses import dataclass
from fractions import Fraction

from cvvae_cli.checked_values import ratio_of, whole_of


@dataclass(frozen=True)
class Reading:
    """Attributes:
    stream: number of the video stream in the file, as FFmpeg counts all streams; None takes the first real video.
    frame_rate: pictures per second of numbered pictures; None is 24 for them, and the only choice for other files.
    deinterlace: make whole pictures of those that are marked as interlaced.
    strict: stop at the first damaged packet, lost frame or wrong timestamp, where players would go on.
    """

    stream: int | None = None
    frame_rate: Fraction | None = None
    deinterlace: bool = False
    strict: bool = False

    def to_dict(self) -> dict:
        """What shapes the frames, JSON-ready; the rate is an "n/d" string."""
        return {
            "stream": self.stream,
            "frame_rate": str(self.frame_rate) if self.frame_rate else None,
            "deinterlace": self.deinterlace,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Reading":
        """The inverse of `to_dict`, of which nothing is believed.

        Raises:
            KeyError, ValueError, TypeError: the dictionary was not made by it.
        """
        stream, rate = values["stream"], values["frame_rate"]
        return cls(
            None if stream is None else whole_of(stream, 0, 2**31 - 1),
            None if rate is None else ratio_of(rate),
            values["deinterlace"] is True,
        )


PLAIN = Reading()
"""How a video is read where nobody says."""
