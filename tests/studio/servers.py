"""Start ``mpn studio`` in another process."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Self
from urllib.parse import urlsplit

import httpx

from mpn.types import UInt8Array

_MAIN = "from mpn.cli.main import main; main()"


def body_of(labels: UInt8Array) -> bytes:
    """Encode ids as the page does: number of runs, ids, lengths of 7 bits in a byte."""
    ids, lengths = bytearray(), bytearray()
    for object_id, run in itertools.groupby(labels.ravel().tolist()):
        ids.append(object_id)
        rest = len(list(run))
        while rest > 127:
            lengths.append(rest & 127 | 128)
            rest >>= 7
        lengths.append(rest)
    return len(ids).to_bytes(4, "little") + ids + lengths


class StudioProcess:
    """A running ``mpn studio``; ends with the ``with`` block.

    Attributes:
        address: The address that it printed.
    """

    def __init__(self, video: Path, out: Path, *options: str) -> None:
        command = [sys.executable, "-c", _MAIN, "studio", str(video), "-o", str(out)]
        self._process = subprocess.Popen(
            [*command, "--no-browser", *options],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._process.stdout is not None
        self._output: IO[str] = self._process.stdout
        self.address = self._output.readline().strip()

    def client(self) -> httpx.Client:
        """Return a client that has the token."""
        parts = urlsplit(self.address)
        return httpx.Client(
            base_url=f"http://{parts.netloc}",
            headers={"authorization": f"Bearer {parts.fragment}"},
            timeout=60,
        )

    def stop(self) -> int:
        """Stop it as Ctrl-C does; return the exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(30)

    def kill(self) -> None:
        """Kill it as ``kill -9`` does."""
        self._process.kill()
        self._process.wait(30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *rest: object) -> None:
        if self._process.poll() is None:
            self.kill()
        self._output.close()
