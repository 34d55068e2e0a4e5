"""Round trips of real files, compared by a reader of its own: frames, size, times, sound, quality.

    python benchmarks/real_clips.py CLIP [CLIP ...] --out benchmarks/real_clips.json

Each clip is encoded and decoded by the command line (to .mp4, or .mkv with --container mkv); what came back is read here with
PyAV alone. Quality is what `cvvae roundtrip --json` says.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import av


def pictures(path: Path) -> tuple[int, list[float], tuple[int, int]]:
    """Frames, their times in seconds, displayed size, of the first video stream that is no cover art."""
    times, size = [], (0, 0)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "SLICE"
        packets = container.demux(stream)
        for packet in packets:
            try:
                frames = packet.decode()
            except av.error.FFmpegError:
                continue
            for frame in frames:
                turned = frame.rotation % 180 != 0
                size = size if times else ((frame.height, frame.width) if turned else (frame.width, frame.height))
                times.append(float(frame.pts * frame.time_base) if frame.pts is not None else -1.0)
    return len(times), times, size


def sound(path: Path) -> list[str]:
    """A hash per audio stream over its packets."""
    with av.open(str(path)) as container:
        hashes = {stream.index: hashlib.sha1() for stream in container.streams.audio}
        for packet in container.demux(*container.streams.audio) if hashes else ():
            hashes[packet.stream.index].update(bytes(packet))
    return [value.hexdigest() for value in hashes.values()]


def row_of(clip: Path, folder: Path, suffix: str, model: str) -> dict:
    back = folder / f"back{suffix}"
    done = subprocess.run(
        [sys.executable, "-m", "cvvae_cli", "roundtrip", str(clip), str(back), "--json", "-y", "--quiet", "--preset", "veryfast", "--model", model],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        return {"clip": clip.name, "status": done.returncode, "error": done.stderr.strip()}
    report = json.loads(done.stdout)
    frames, times, size = pictures(clip)
    frames_back, times_back, size_back = pictures(back)
    shift = max((abs(a - b) for a, b in zip(times, times_back)), default=0.0)
    return {
        "clip": clip.name, "status": 0, "size": f"{size[0]}x{size[1]}", "same_size": size == size_back, "frames": frames,
        "same_count": frames == frames_back, "largest_time_shift_ms": round(1000 * shift, 3), "audio_streams": len(sound(clip)),
        "same_sound": sound(clip) == sound(back), "psnr_db": round(report["psnr_db"], 2), "psnr_worst_db": round(report["psnr_worst_db"], 2),
        "psnr_file_db": round(report["psnr_file_db"], 2), "ssim": round(report["ssim"], 4), "flicker": round(report["flicker"], 2),
        "notes": report["notes"],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clips", nargs="+", type=Path)
    parser.add_argument("--container", default="mp4")
    parser.add_argument("--model", default="default")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for clip in arguments.clips:
            rows.append(row_of(clip, Path(folder), f".{arguments.container}", arguments.model))
            print(json.dumps(rows[-1]), flush=True)
    if arguments.out:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
