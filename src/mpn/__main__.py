"""Run ``python -m mpn``, the same as ``mpn``."""

from mpn.cli.main import main

if __name__ == "__main__":  # not in the processes that multiprocessing spawns
    main()
