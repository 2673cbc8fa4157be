"""Compare masks with what other programs read of them, and print a table.

    python -m benchmarks.round_trips [--shared DIR] [--python PYTHON] [--folder DIR]

PYTHON is the interpreter of an environment with the readers, by default this one; a reader whose
package it lacks is left out. ``make round-trips`` makes such an environment. Exits with 1 if a
format that is lossless loses a pixel, or a reader finds other frames or objects.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.round_trips.clips import drawn_clips, real_clips
from benchmarks.round_trips.compare import compare, table


def main() -> int:
    """Run all round trips."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.round_trips")
    parser.add_argument("--shared", type=Path, default=Path("../shared"))
    # Absolute, because the readers run in other folders; not resolved, because the link of an
    # environment's interpreter selects the environment.
    parser.add_argument("--python", default=sys.executable, type=os.path.abspath)
    parser.add_argument("--folder", type=Path, help="keep the files here")
    arguments = parser.parse_args()
    clips = list(drawn_clips())
    if arguments.shared.is_dir():
        clips += real_clips(arguments.shared)
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        results = compare(clips, folder, arguments.python)
    print(table(results))
    failed = [result for result in results if result.problem]
    for result in failed:
        print(f"error: {result.format}, {result.reader}: {result.problem}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
