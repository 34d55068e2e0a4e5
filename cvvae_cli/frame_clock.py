"""Rising times for decoded frames, whatever their stream says. Files and pixels are unknown here."""


class FrameClock:
    """Gives frames rising times.

    Missing times are filled in; where a stream starts its count anew (broadcasts do) counting goes on; where
    presentation times go to and fro (B-frames in AVI) decoding times are used, by FFmpeg's own rule: whichever
    of the two has failed to rise less often.

    Attributes:
        repaired: frames so far whose time was missing or did not rise.
        untimed: no frame so far had a time.
    """

    def __init__(self, step: int, second: int) -> None:
        """
        Args:
            step: ticks between frames.
            second: ticks in a second.
        """
        self._step, self._second = step, second
        self._last: int | None = None
        self._last_pts = self._last_dts = self._offset = 0
        self._pts_faults = self._dts_faults = 0
        self.repaired = 0
        self.untimed = True

    def place(self, pts: int | None, dts: int | None) -> int:
        """The time of the next frame, ticks.

        Args:
            pts: the frame's presentation time, or None.
            dts: the time at which its packet was due for decoding, or None.
        """
        stated = self._choose(pts, dts)
        self.untimed &= stated is None
        if self._last is None:
            time = pts if pts is not None else 0
            self.repaired += pts is None
        elif stated is not None and stated + self._offset > self._last:
            time = stated + self._offset
            self.repaired += stated != pts
        else:
            time = self._last + 1
            if stated is None:
                time = self._last + self._step
            elif self._last - (stated + self._offset) > self._second:
                time = self._last + self._step
                self._offset = time - stated
            self.repaired += 1
        self._last = time
        return time

    def _choose(self, pts: int | None, dts: int | None) -> int | None:
        if self._last is not None:
            self._pts_faults += pts is not None and pts <= self._last_pts
            self._dts_faults += dts is not None and dts <= self._last_dts
        self._last_pts = self._last_pts if pts is None else pts
        self._last_dts = self._last_dts if dts is None else dts
        return dts if pts is None or (dts is not None and self._pts_faults > self._dts_faults) else pts
