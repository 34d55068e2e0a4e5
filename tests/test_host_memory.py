"""What the process may take and what it keeps: files of the system written by hand, and a process of its own."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cvvae_cli import host_memory
from cvvae_cli.host_memory import _control_group_bytes, _system_bytes, available_bytes

ROOT = Path(__file__).parents[1]
needs_proc = pytest.mark.skipif(platform.system() != "Linux", reason="memory is read from /proc")
needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries keep little")

MEMINFO = """MemTotal:       24683424 kB
MemFree:        12768044 kB
MemAvailable:   20926580 kB
HugePages_Total:       0
"""


def control_group(folder, **files):
    for name, content in files.items():
        (folder / f"memory.{name}").write_text(content)
    return folder


def test_what_the_system_has_free(tmp_path):
    (tmp_path / "meminfo").write_text(MEMINFO)
    assert _system_bytes(tmp_path / "meminfo") == 20926580 * 1024
    (tmp_path / "old").write_text("MemTotal:       24683424 kB\n")  # before Linux 3.14
    assert _system_bytes(tmp_path / "old") is None
    assert _system_bytes(tmp_path / "missing") is None


STAT = "anon 600\nfile 350\ninactive_file 300\nactive_file 50\n"


@pytest.mark.parametrize(
    ("limit", "current", "stat", "left"),
    [
        ("2000\n", "1000\n", STAT, 1300),
        ("2000\n", "1000\n", "anon 1000\n", 1000),
        ("1000\n", "1200\n", "anon 1200\n", 0),
        ("max\n", "1000\n", STAT, None),
    ],
)
def test_what_a_control_group_leaves(tmp_path, limit, current, stat, left):
    assert _control_group_bytes(control_group(tmp_path, max=limit, current=current, stat=stat)) == left


def test_without_a_control_group_there_is_no_limit(tmp_path):
    assert _control_group_bytes(tmp_path / "missing") is None
    assert _control_group_bytes(control_group(tmp_path, max="2000\n", current="\n", stat=STAT)) is None


@needs_proc
def test_no_more_is_available_than_the_machine_has():
    available = available_bytes()
    assert available is not None and 0 < available < os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


# Prints resident MiB: before, with 200 MiB more, after freeing them, and after giving back what was freed.
SCRIPT = """
import os, sys
from cvvae_cli.host_memory import keep_freed_memory, return_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20

if int(sys.argv[1]):
    keep_freed_memory(int(sys.argv[1]) << 20)
before = resident()
data = bytearray(b"x") * (200 << 20)
held = resident()
del data
freed = resident()
return_freed_memory()
print(before, held, freed, resident())
"""


@needs_proc
@needs_glibc
@pytest.mark.parametrize(("largest", "kept"), [(0, False), (100, False), (256, True), (1024, True)])
def test_freed_memory_is_kept_when_asked_and_given_back_when_asked(largest, kept):
    found = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(largest)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    before, held, freed, returned = map(int, found.split())
    assert 195 < held - before < 215
    assert freed - before > 195 if kept else freed - before < 15
    assert returned - before < 15


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="this system does not count peaks")
def test_the_peak_is_counted_anew_and_the_highest_remembered() -> None:
    size = 200 << 20
    np.ones(size // 8)
    highest = host_memory.peak_bytes()
    assert host_memory.restart_peak()
    low = host_memory.peak_since_restart()
    assert low < highest - size * 3 // 4
    np.ones(size // 16)
    assert size * 2 // 5 < host_memory.peak_since_restart() - low < size
    assert host_memory.peak_bytes() >= highest
