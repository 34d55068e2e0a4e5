"""Exit statuses and one error class per kind of failure.

Every error a user can cause is a `CvvaeError` whose message is one sentence: the value, the rule and the
next step. The command line turns it into that sentence on stderr and `exit_status`; library callers can
catch the class. Errors about arguments are also `ValueError`s, so that Python callers need not know us.
"""

from enum import IntEnum


class ExitStatus(IntEnum):
    """What the process tells the shell."""

    OK = 0
    UNEXPECTED = 1
    USAGE = 2
    VIDEO = 3
    LATENT_FILE = 4
    MODEL = 5
    DEVICE = 6
    QUALITY = 7
    OUTPUT = 8
    BATCH = 9
    INTERRUPTED = 130


class CvvaeError(Exception):
    """Base of all expected failures."""

    exit_status = ExitStatus.UNEXPECTED


class UsageError(CvvaeError, ValueError):
    """An argument is out of its range or contradicts another."""

    exit_status = ExitStatus.USAGE


class VideoError(CvvaeError):
    """A video or picture cannot be read."""

    exit_status = ExitStatus.VIDEO


class LatentFileError(CvvaeError):
    """A latent file is damaged, of another version or of another model."""

    exit_status = ExitStatus.LATENT_FILE


class ModelError(CvvaeError):
    """A model cannot be found, fetched or loaded."""

    exit_status = ExitStatus.MODEL


class DeviceError(CvvaeError):
    """The device asked for is missing or out of memory."""

    exit_status = ExitStatus.DEVICE


class QualityError(CvvaeError):
    """The round trip is worse than the user allows."""

    exit_status = ExitStatus.QUALITY


class OutputError(CvvaeError):
    """An output exists already or cannot be written."""

    exit_status = ExitStatus.OUTPUT
