"""What a decode can do without where it is damaged: sound, titles, anchors; and the words for it. It writes nothing."""

from typing import BinaryIO

from cvvae_cli.config import Tiling
from cvvae_cli.container_tags import ContainerTags
from cvvae_cli.decoded_frames import lost_anchors
from cvvae_cli.errors import LatentFileError
from cvvae_cli.latent_video import LatentVideo

NAMED_SPANS = 8
"""Stretches of replaced frames that a note lists; the report has all."""


def sidecar_of(latents: LatentVideo, keep_going: bool, damage: list[str]) -> BinaryIO | None:
    """Sound and subtitles; where they are damaged and the run keeps going, none, and a word about it in `damage`."""
    try:
        return latents.sidecar()
    except LatentFileError:
        if not keep_going:
            raise
        damage.append(f"The sound and subtitles of {latents.path} are damaged and left out.")
        return None


def tags_of(latents: LatentVideo, keep_going: bool, damage: list[str]) -> ContainerTags:
    """Titles and chapters; where they are damaged and the run keeps going, none, and a word about it in `damage`."""
    try:
        return latents.tags()
    except LatentFileError:
        if not keep_going:
            raise
        damage.append(f"The titles and chapters of {latents.path} are damaged and left out.")
        return ContainerTags()


def anchors_left_out(
    latents: LatentVideo, tiling: Tiling, span: tuple[int, int], keep_going: bool, damage: list[str]
) -> list[str]:
    """A word where anchors cannot be used: in `damage` where they are damaged and the run keeps going.

    Args:
        span: first frame that is decoded, and one past the last.
    """
    if latents.has_anchors and not latents.anchors_fit(tiling):
        return ["The anchors are left out, because they belong to other chunks; cut the chunks that the file records."]
    if not latents.has_anchors or not keep_going:
        return []
    try:
        if lost := lost_anchors(latents, tiling, *span):
            damage.append(f"Damaged anchors of {latents.path} are left out: {lost} of those of the frames that were decoded.")
    except LatentFileError:
        latents.has_anchors = False
        damage.append(f"The anchors of {latents.path} are damaged and left out.")
    return []


def told_replaced(replaced: list[tuple[int, int]], tiling: Tiling) -> list[str]:
    """The frames that are not the file's own, in a sentence; a chunk sees all its latents for each of its frames."""
    if not replaced:
        return []
    spans = [str(first) if first == last else f"{first} to {last}" for first, last in replaced]
    more = len(spans) - NAMED_SPANS
    listed = ", ".join(spans[:NAMED_SPANS]) + (f" and {more} more stretch{'es' * (more > 1)}" if more > 0 else "")
    beside = f"up to {tiling.chunk - 1} frames beside them may differ too"
    return [f"Damaged latents are replaced by what lies between their neighbours: frames {listed}; {beside}."]
