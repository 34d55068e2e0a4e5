"""From the sources of a stream to a list of media files in a fixed order.

Windows are drawn by number, so every file must be reachable at random. Shards are therefore tar files of this
machine, not compressed; their members are located once and read from where they lie. A remote shard has to be
fetched first. The webdataset package expands ranges of shards and says which members belong to one sample; its
own readers stream in order, which does not allow this, and are not used. Pixels are unknown here.
"""

import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import xxhash

from cvvae_cli.errors import UsageError, VideoError

PICTURES = frozenset("jpg jpeg png webp".split())
VIDEOS = frozenset("mp4 m4v mov mkv webm avi mpg mpeg ts m2ts flv wmv ogv gif y4m 264 h264 265 hevc".split())
_PREFERENCE = {"video": (VIDEOS,), "image": (PICTURES, VIDEOS), "motion": (PICTURES,)}
"""Which files a kind of stream takes, and of one sample of a shard which first."""

_SHARDS = (".tar", ".tar.gz", ".tgz")
_DIGEST_BYTES = 65536


@dataclass(frozen=True)
class MediaFile:
    """A video or picture, in a file of its own or inside a shard.

    Attributes:
        name: for people: its path, or the shard's path and the member's name.
        path: the file or the shard.
        offset: where it begins in a shard, bytes; None for a file of its own.
        size: bytes.
    """

    name: str
    path: Path
    offset: int | None
    size: int

    @property
    def is_picture(self) -> bool:
        """Whether its suffix is a picture's."""
        return _suffix(self.name) in PICTURES

    def digest(self) -> str:
        """16 hex digits that change with the size, the first and the last 64 KiB; its name and place do not matter."""
        state = xxhash.xxh3_64(self.size.to_bytes(8, "little"))
        with self.path.open("rb") as file:
            for position in (0, max(0, self.size - _DIGEST_BYTES)):
                file.seek((self.offset or 0) + position)
                state.update(file.read(min(_DIGEST_BYTES, self.size)))
        return state.hexdigest()

    @contextmanager
    def opened(self) -> Iterator[Path]:
        """A path that a reader can open for as long as the context lasts.

        A member of a shard is copied out into a temporary file, because readers take whole files; errors raised
        inside name the member instead.
        """
        if self.offset is None:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="cvvae-") as folder:
            copy = Path(folder) / f"member.{_suffix(self.name)}"
            with self.path.open("rb") as shard:
                shard.seek(self.offset)
                copy.write_bytes(shard.read(self.size))
            try:
                yield copy
            except VideoError as error:
                raise VideoError(str(error).replace(str(copy), self.name)) from None


def list_files(sources: tuple[str, ...], kind: str) -> list[MediaFile]:
    """The files of all sources that a kind of stream can take.

    Args:
        sources: folders, files, lists and shards, as in `StreamConfig.sources`.
        kind: "video", "image" or "motion".

    Returns:
        The files in the order of the sources; within a folder by path, within a shard as stored.

    Raises:
        UsageError: a source is missing, is not on this machine, or holds nothing for this kind.
    """
    found = []
    for source in sources:
        files = _files_of(source, kind)
        if not files:
            wanted = {"video": "videos", "motion": "pictures", "image": "pictures or videos"}[kind]
            raise UsageError(f"Source {source} holds no {wanted} for a stream of kind {kind}; name another source.")
        found += files
    return found


def _files_of(source: str, kind: str) -> list[MediaFile]:
    if "://" in source or source.startswith("pipe:"):
        raise UsageError(f"Source {source} is not on this machine; fetch it first and name the local file.")
    if source.lower().endswith(".txt"):
        return _files_of_list(Path(source), kind)
    if source.lower().endswith(_SHARDS):
        return [file for shard in _expand(source) for file in _files_of_shard(shard, kind)]
    return _files_of_path(Path(source), kind)


def _files_of_path(path: Path, kind: str) -> list[MediaFile]:
    if path.is_file():
        # a file that is named counts whatever its suffix; in a folder the suffix has to tell
        suffix = _suffix(path.name) if _suffix(path.name) in PICTURES | VIDEOS else "mp4"
        files = [path] if any(suffix in group for group in _PREFERENCE[kind]) else []
    elif path.is_dir():
        wanted = frozenset().union(*_PREFERENCE[kind])
        shown = (p for p in path.rglob("*") if not any(part.startswith(".") for part in p.relative_to(path).parts))
        files = sorted(p for p in shown if _suffix(p.name) in wanted and p.is_file())
    else:
        raise UsageError(f"Source {path} does not exist; correct sources in [[streams]].")
    return [MediaFile(str(p), p, None, p.stat().st_size) for p in files]


def _files_of_list(path: Path, kind: str) -> list[MediaFile]:
    """Files, folders and shards named in a text file, blank lines apart."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"List {path} cannot be read ({error}); name a UTF-8 text file with one path per line.") from None
    files = []
    for line in filter(None, lines):
        if line.lower().endswith(".txt"):
            raise UsageError(f"List {path} names another list, {line}; name it in sources instead.")
        files += _files_of(line if "://" in line else str(path.parent / line), kind)
    return files


def _expand(source: str) -> list[Path]:
    """The shards that a pattern stands for."""
    if "{" not in source:
        return [Path(source)]
    try:
        return [Path(shard) for shard in _webdataset().shardlists.expand_urls(source)]
    except (ValueError, AssertionError) as error:
        raise UsageError(f"Source {source} is not a range of shards ({error}); write it like shard-{{000..012}}.tar.") from None


def _files_of_shard(shard: Path, kind: str) -> list[MediaFile]:
    """One file of each sample that has one for this kind."""
    if not shard.is_file():
        raise UsageError(f"Shard {shard} does not exist; correct sources in [[streams]].")
    try:
        with tarfile.open(shard, "r:") as archive:
            members = [m for m in archive if m.isreg() and not m.issparse()]
    except (tarfile.TarError, OSError) as error:
        raise UsageError(f"Shard {shard} is not a whole, uncompressed tar file ({error}); unpack or fetch it again.") from None
    entries = ({"fname": m.name, "data": m, "__url__": str(shard)} for m in members)
    try:
        samples = list(_webdataset().tariterators.group_by_keys(entries))
    except ValueError:
        raise UsageError(f"Shard {shard} holds a sample with two files of one suffix; write it as WebDataset does.") from None
    files = []
    for sample in samples:
        parts = {_suffix(part.name): part for part in sample.values() if isinstance(part, tarfile.TarInfo)}
        fitting = [parts[suffix] for group in _PREFERENCE[kind] for suffix in parts if suffix in group]
        files += [MediaFile(f"{shard}/{m.name}", shard, m.offset_data, m.size) for m in fitting[:1]]
    return files


def _webdataset() -> ModuleType:
    try:
        import webdataset
    except ImportError:
        raise UsageError("Shards need the webdataset package; install it with pip install 'cvvae[train]'.") from None
    return webdataset


def _suffix(name: str) -> str:
    return Path(name).suffix[1:].lower()
