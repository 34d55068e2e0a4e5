"""Kill an encode and a decode at random moments, run the same command again each time, and compare the files.

    python benchmarks/kill_and_resume.py CLIP --kills 100 --encode="--size 320x180" --out benchmarks/kill_and_resume.json
    python benchmarks/kill_and_resume.py CLIP --kills 10 --check --anchors --against --encode="--size 320x180"

A kill is SIGKILL to a process of its own, at a moment that is evenly distributed over the time that an uninterrupted run
takes. "Repeated" is what a resumed run computes again: frames that the killed run had said to be done, less those that the
next run begins with; progress is said for every frame, so that nothing done is missed. With a comparison, the answers of
finished runs have to say the same quality, too.
"""

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROGRAM = """
import sys
from cvvae_cli import console
console.SECONDS_BETWEEN_LINES = 0  # every frame is a line
from cvvae_cli.__main__ import main
sys.argv[0] = "cvvae"
main()
"""


def run(words: list[str], kill_after: float | None, log: Path) -> int:
    """Run a command, killed after so many seconds; its exit status. What it answers goes beside the log."""
    with open(log, "wb") as said, open(answer_of(log), "wb") as answered:
        process = subprocess.Popen([sys.executable, "-c", PROGRAM, *words, "--json"], stdout=answered, stderr=said)
        try:
            return process.wait(kill_after)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            return process.wait()


def answer_of(log: Path) -> Path:
    """Where the answer of a run is."""
    return log.with_suffix(".json")


def made(output: Path, log: Path) -> tuple[bytes, dict | None]:
    """What a finished run wrote, and the quality that it found."""
    return output.read_bytes(), json.loads(answer_of(log).read_text())["quality"]


def last_frame(log: Path) -> int:
    """Frames that a run has said to be done."""
    return max((int(found) for found in re.findall(r": (\d+)(?: of \d+)? frames?,", log.read_text())), default=0)


def first_frame(log: Path) -> int:
    """The frame that a run began with."""
    found = re.search(r"resumed at frame (\d+)", log.read_text())
    return int(found[1]) if found else 0


def trial(words: list[str], output: Path, kills: int, rng: random.Random, folder: Path) -> dict:
    """Finish a command once unharmed; then again and again with kills until there were so many."""
    log = folder / "log"
    began = time.monotonic()
    assert run(words, None, log) == 0, log.read_text()
    seconds, whole = time.monotonic() - began, made(output, log)
    killed = finished = identical = 0
    repeated, done = [], 0
    while killed < kills or not output.exists():
        output.unlink(missing_ok=True)
        # Once there were enough, the last run is left alone.
        status = run(words, rng.uniform(0, seconds) if killed < kills else None, log)
        if done and first_frame(log):
            repeated.append(max(0, done - first_frame(log)))
        if status == -signal.SIGKILL:
            killed += 1
            done = max(last_frame(log), first_frame(log)) or done
            continue
        assert status == 0, log.read_text()
        finished, identical, done = finished + 1, identical + (made(output, log) == whole), 0
    left = sorted(name for name in os.listdir(folder) if name.startswith(f".{output.name}"))
    return {
        "kills": killed, "finished": finished, "identical": identical, "left_behind": left, "seconds_uninterrupted": seconds,
        "repeated_frames": {"mean": statistics.mean(repeated or [0]), "most": max(repeated, default=0), "resumed": len(repeated)},
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--model", default="default")
    parser.add_argument("--encode", default="", help="more options of encode, in one string")
    parser.add_argument("--check", action="store_true", help="encode with --check")
    parser.add_argument("--anchors", action="store_true", help="encode with --anchors")
    parser.add_argument("--against", action="store_true", help="decode with --against CLIP")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    rng, common = random.Random(arguments.seed), ["--model", arguments.model, "--device", "cpu"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        latents, video = folder / "a.latent", folder / "a.mp4"
        more = arguments.encode.split() + ["--check"] * arguments.check + ["--anchors"] * arguments.anchors
        compared = ["--against", str(arguments.clip)] * arguments.against
        encode = trial(["encode", str(arguments.clip), str(latents), *common, *more], latents, arguments.kills, rng, folder)
        decode = trial(["decode", str(latents), str(video), *common, *compared], video, arguments.kills, rng, folder)
    answer = {
        "clip": arguments.clip.name, "encode_options": " ".join(more), "against": arguments.against,
        "encode": encode, "decode": decode,
    }  # fmt: skip
    print(json.dumps(answer, indent=1))
    if arguments.out:
        arguments.out.write_text(json.dumps(answer, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
