"""The long fuzz: `python tests/fuzz/run.py 100000` tries every reader with its share of that many files.

It ends with exit status 1 and the smallest such file that hypothesis finds where a reader crashes, hangs, takes too much memory
or raises what it should not. The last line is JSON.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1]), str(HERE.parents[1] / "kernels")]

from hypothesis import HealthCheck, given, settings
from readers import READERS, Reader, attempt, weighed

SPACE = 8 * 2**30
"""Bytes of address space for the whole process: what a reader asks for beyond it fails, instead of filling the machine."""
SHARES = {"latents": 0.55, "recipe": 0.15, "config": 0.1, "plain": 0.1, "times": 0.1}


def run(reader: Reader, count: int, folder: Path) -> dict:
    """Try one reader with `count` files."""
    counts: Counter[bool] = Counter()

    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(reader.files)
    def each(data: bytes) -> None:
        counts[attempt(reader, folder / "a", data, weighed)] += 1

    began = time.perf_counter()
    each()
    seconds = time.perf_counter() - began
    tried = counts.total()
    rate = {"seconds": round(seconds, 1), "per_second": round(tried / seconds)}
    return {"reader": reader.name, "files": tried, "taken": counts[True], **rate}


def main() -> None:
    """Run as told on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, nargs="?", default=100_000, help="files in all")
    parser.add_argument("--reader", choices=sorted(SHARES), help="this one alone")
    arguments = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (SPACE, SPACE))
    chosen = [reader for reader in READERS if arguments.reader in (None, reader.name)]
    share = {reader.name: 1.0 if arguments.reader else SHARES[reader.name] for reader in chosen}
    found = []
    memory = Path("/dev/shm")  # where it is there, files cost no disk
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        for reader in chosen:
            found.append(run(reader, max(1, round(arguments.count * share[reader.name])), Path(folder)))
            print(found[-1], flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps({"files": sum(one["files"] for one in found), "peak_mib": peak, "readers": found}))


if __name__ == "__main__":
    main()
