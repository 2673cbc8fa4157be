"""Run units on a node of a Ray cluster: the actor of one worker.

The actor starts a worker process of the local runner on its node, and passes attempts to it. A
crash of the networks ends that process alone, and a stop takes the same path as on one machine. If
the actor ends with its node, the input of the process closes, which stops it too.
"""

from __future__ import annotations

import json
import os
import socket
import time
from typing import Any

from mpn import __version__
from mpn.batch.runners.process import WorkerProcess

_PROGRESS_EVERY_S = 1.0


class BatchActor:
    """One worker of a batch; Ray calls its methods in threads.

    Args:
        settings: Settings of the batch as JSON types.
        name: Name of the worker.
    """

    def __init__(self, settings: dict[str, Any], name: str) -> None:
        self._settings = settings
        self._host = socket.gethostname()
        self._name = f"{name}@{self._host}"
        self._process: WorkerProcess | None = None
        self._progress: dict[str, Any] = {}
        self._is_stopped = False

    def describe(self) -> dict[str, Any]:
        """Return the version of this package on the node, and the name of the worker."""
        return {"version": __version__, "name": self._name, "host": self._host}

    def run(self, attempt: dict[str, Any]) -> dict[str, Any]:
        """Run one attempt.

        Returns:
            The last event of the worker process, see :mod:`mpn.batch.runners.worker`; ``"lost"``
            with a reason if the process ended.
        """
        self._progress = {}
        process = self._process = self._process or self._started()
        process.send(attempt)
        if self._is_stopped:
            process.close_input()
        for line in process.stdout:
            event: dict[str, Any] = json.loads(line)
            if event["type"] == "outcome":
                return event
            if event["type"] != "progress":  # the process ends after it
                self._process = None
                process.end()
                return event
            self._progress = event
        self._process = None
        return {"type": "lost", "reason": process.end()}

    def progress(self) -> dict[str, Any]:
        """Wait a second, and return the progress of the attempt; empty without one."""
        time.sleep(_PROGRESS_EVERY_S)
        return self._progress

    def stop(self) -> None:
        """Stop the worker process as Ctrl-C does; the attempt returns at its end."""
        self._is_stopped = True
        if self._process is not None:
            self._process.close_input()

    def _started(self) -> WorkerProcess:
        process = WorkerProcess(dict(os.environ))
        process.send({"settings": self._settings, "worker": self._name})
        return process
