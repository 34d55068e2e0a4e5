"""List training files with their checksums and the licence that a clip index states, as a Markdown table.

    python benchmarks/training_files.py INDEX.md FOLDER [FOLDER ...]

The index is a Markdown table whose first column is the file's path and whose last two are source and licence.
"""

import hashlib
import sys
from pathlib import Path


def main() -> None:
    index, *folders = map(Path, sys.argv[1:])
    stated = {}
    for line in index.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if line.startswith("|") and len(cells) > 3:
            stated[cells[0]] = cells[-2:]
    print("| file | sha256 | source | licence as stated there |\n|---|---|---|---|")
    for folder in folders:
        for path in sorted(folder.iterdir()):
            name = path.relative_to(index.parent).as_posix()
            source, licence = stated.get(name, ["not stated", "not stated"])
            print(f"| {name} | `{hashlib.sha256(path.read_bytes()).hexdigest()}` | {source} | {licence} |")


if __name__ == "__main__":
    main()
