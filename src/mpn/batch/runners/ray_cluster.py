"""Connect to a Ray cluster: the only module that imports Ray."""

from __future__ import annotations

import math
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from mpn._common.closeable import Closeable
from mpn._common.cores import usable_cores
from mpn._common.text import one_line
from mpn.batch.runners.ray_actor import BatchActor
from mpn.errors import InputError, import_or_explain

_CONNECT_S = 5.0
"""Ray itself tries to connect for minutes."""
_HOST_AND_PORT = re.compile(
    r"(?:ray://)?(?P<host>\[[0-9A-Fa-f:]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})"
)
_CALLS_AT_ONCE = 4
"""Methods of an actor at once: ``run``, ``stop``, and ``progress`` of two attempts."""
_LONGEST_REASON = 300


@dataclass(frozen=True)
class Resources:
    """Resources that each worker reserves on its node.

    Attributes:
        cpus: CPU cores.
        gpus: GPUs.
        memory_bytes: Memory.
    """

    cpus: int = 1
    gpus: int = 0
    memory_bytes: int = 0

    def __str__(self) -> str:
        names = [f"{self.cpus} CPU" + ("s" if self.cpus != 1 else "")]
        if self.gpus:
            names.append(f"{self.gpus} GPU" + ("s" if self.gpus != 1 else ""))
        if self.memory_bytes:
            names.append(f"{math.ceil(self.memory_bytes / 1e6)} MB of memory")
        return ", ".join(names)


class RayCluster(Closeable):
    """A connection to a Ray cluster, closed with all actors of this connection.

    Usage statistics are not sent, and no dashboard is started. Lines of Ray are not printed.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT`` or ``auto``, as ``ray.init`` takes it. None for
            RAY_ADDRESS, else the cluster that runs on this machine, else one that is started on
            this machine for the connection.

    Raises:
        InputError: If there is no cluster at the address, or it has other versions.
        MissingExtraError: If Ray is not installed.
    """

    def __init__(self, address: str | None = None) -> None:
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
        self._ray = import_or_explain("ray", extra="ray", purpose="mpn batch --runner ray")
        shown = address or os.environ.get("RAY_ADDRESS") or "auto"
        _check_reachable(shown)
        with _kept_handler():
            self._connect(address, shown)
        with suppress(Exception):  # it prints failures of nodes to standard output
            self._ray._private.worker._worker_logs_enabled = False
        self._actor_class = self._ray.remote(BatchActor)

    def _connect(self, address: str | None, shown: str) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
        ray = self._ray
        try:
            if address is None and "RAY_ADDRESS" not in os.environ:
                with suppress(ConnectionError):
                    ray.init(address="auto", **options)
                    return
                ray.init(
                    address="local", include_dashboard=False, num_cpus=usable_cores(), **options
                )
            else:
                ray.init(address=shown, **options)
        except Exception as error:  # of many classes
            # With an address, Ray does not find out that the cluster has token authentication.
            hint = (
                ""
                if "RAY_AUTH_MODE" in os.environ or "Failed to connect" not in str(error)
                else ("; if it has token authentication, set RAY_AUTH_MODE=token")
            )
            raise InputError(
                f"cannot use the Ray cluster at {shown}: {_reason(error)}{hint}"
            ) from error
        except BaseException:  # a stop: processes of a cluster that was started for this batch end
            ray.shutdown()
            raise

    def capacity(self, need: Resources) -> int:
        """Return how many workers fit on the nodes, used by others or not."""
        return sum(_fitting(node["Resources"], need) for node in self._ray.nodes() if node["Alive"])

    def has_gpus(self) -> bool:
        """Return whether a node has a GPU."""
        return bool(self._ray.cluster_resources().get("GPU", 0) >= 1)

    def start(self, settings: dict[str, Any], name: str, need: Resources) -> Any:
        """Start an actor on a node with room; it waits until there is one.

        Args:
            settings: Settings of the batch as JSON types.
            name: Name of the worker.
            need: Resources that it reserves.

        Returns:
            The actor, for :meth:`call`.
        """
        # The runner replaces an actor that ends: its unit counts as an attempt.
        return self._actor_class.options(
            num_cpus=need.cpus,
            num_gpus=need.gpus,
            memory=need.memory_bytes or None,
            max_restarts=0,
            max_task_retries=0,
            max_concurrency=_CALLS_AT_ONCE,
            scheduling_strategy="SPREAD",
        ).remote(settings, name)

    def call(self, actor: Any, method: str, *arguments: Any) -> Future[Any]:
        """Call a method of an actor.

        Returns:
            Its result; :func:`lost_reason` has the reason of an exception of Ray in it.
        """
        # Not ray.wait: it turns a stop by SIGTERM into the KeyboardInterrupt of SIGINT.
        future: Future[Any] = getattr(actor, method).remote(*arguments).future()
        return future

    def lost_reason(self, error: BaseException) -> str | None:
        """Return one line if an error means that an actor ended; otherwise None."""
        return _reason(error) if isinstance(error, self._ray.exceptions.RayError) else None

    def kill(self, actor: Any) -> None:
        """End an actor at once."""
        with suppress(Exception):  # it has ended
            self._ray.kill(actor, no_restart=True)

    def close(self) -> None:
        """End all actors and the connection. A second call does nothing."""
        self._ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raise InputError if nothing listens at an address with a port."""
    match = _HOST_AND_PORT.fullmatch(address)
    if match is None:
        if address in ("auto", "local"):
            return
        raise InputError(
            f"--address takes HOST:PORT, ray://HOST:PORT or auto, not '{one_line(address, 80)}'"
        )
    try:
        place = (match["host"].strip("[]"), int(match["port"]))
        socket.create_connection(place, _CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise InputError(
            f"there is no Ray cluster at {address} ({one_line(error)}): start one with "
            "'ray start --head', or check --address"
        ) from error


@contextmanager
def _kept_handler() -> Iterator[None]:
    """Keep the handler of SIGTERM: ``ray.init`` replaces it by one that exits."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _fitting(has: dict[str, float], need: Resources) -> int:
    parts = [("CPU", need.cpus), ("GPU", need.gpus), ("memory", need.memory_bytes)]
    return min(int(has.get(name, 0) // amount) for name, amount in parts if amount)


_KNOWN_REASONS = (
    ("its node has died", "its node was lost"),
    ("node was terminated", "its node was lost"),
    ("OOM", "the memory of its node ran out"),
    ("worker process has died", "its actor was killed"),
)


def _reason(error: BaseException) -> str:
    """Return one line of an error of Ray, whose texts have many."""
    text = str(error)
    if type(error).__name__ == "ActorUnavailableError":
        return "its node cannot be reached"
    if type(error).__name__ in ("ActorDiedError", "RayActorError"):
        for part, reason in _KNOWN_REASONS:
            if part in text:
                return reason
    if "Version mismatch" in text:
        pairs = re.findall(r"(Ray|Python): (\S+)", text)
        found = ", ".join(" ".join(pair) for pair in pairs[:2])
        own = ", ".join(" ".join(pair) for pair in pairs[2:4])
        return f"it has {found}, this machine has {own}: install the same versions"
    cause = getattr(error, "cause", None)
    return one_line(cause if isinstance(cause, Exception) else text, _LONGEST_REASON)
