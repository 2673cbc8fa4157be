"""Frames a second of an engine directory: ``mpn bench``, whose options these are.

python benchmarks/fps.py --engine-dir DIR [--objects 1,2,3,5] [--threads 2]
    -o benchmarks/results/fps-NAME.json
"""

from __future__ import annotations

import sys

from mpn.cli.main import main

if __name__ == "__main__":
    sys.argv.insert(1, "bench")
    main()
