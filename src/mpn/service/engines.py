"""Engines that all sessions share: opened once, run by few threads at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn._common.concurrency import OpenCvThreads
from mpn._common.cores import usable_cores
from mpn.engines.base import Engine
from mpn.engines.directory.locate import local_engine_dir
from mpn.engines.directory.manifest import load_manifest
from mpn.engines.open import EngineSet, open_engines
from mpn.engines.wrapper import EngineWrapper
from mpn.runtime.one_shot import one_shot_models
from mpn.runtime.options import PipelineOptions
from mpn.types import Float32Array


class _LimitedEngine(EngineWrapper):
    """An engine that few threads run at a time.

    onnxruntime sessions may be run by many threads. Each run at the same time takes memory for the
    activations and a core.

    Args:
        engine: Open; not closed by this object.
        turns: Of all engines.
    """

    def __init__(self, engine: Engine, turns: threading.BoundedSemaphore) -> None:
        super().__init__(engine)
        self._turns = turns

    def run(self, inputs: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """See :class:`mpn.engines.base.Engine`; waits for a turn."""
        with self._turns:
            return super().run(inputs)

    def close(self) -> None:
        """Do nothing: the engine is shared."""


class ServerEngines(Closeable):
    """Engines of a directory on the CPU, for any number of pipelines.

    Args:
        directory: See :func:`mpn.engines.directory.locate.local_engine_dir`.
        options: Options of all pipelines.
        threads: Threads within a network operator, and of OpenCV. Runs at the same time are
            limited so that all of them together have one thread per core.

    Raises:
        EngineError: If an engine cannot be opened.
        InputError: If ``threads`` is under 1.
    """

    def __init__(
        self, directory: str | Path | None, options: PipelineOptions, *, threads: int
    ) -> None:
        path = local_engine_dir(directory)
        self.directory = None if directory is None else path
        self.options, self.threads = options, threads
        manifest = load_manifest(path)
        models = one_shot_models(
            options.with_defaults(manifest.runtime_defaults), manifest.roles.keys()
        )
        self.parallel = max(1, usable_cores() // threads)
        turns = threading.BoundedSemaphore(self.parallel)
        with ExitStack() as opened:
            # OpenCV has one number of threads for the whole process: it is set once, here.
            opened.enter_context(OpenCvThreads(threads))
            engines = opened.enter_context(
                open_engines(
                    path,
                    backend="cpu",
                    threads=threads,
                    with_osvos=models.osvos,
                    with_features=models.target,
                    manifest=manifest,
                )
            )
            self.engines: EngineSet = replace(
                engines,
                owned=False,
                propagation=_LimitedEngine(engines.propagation, turns),
                flow=_limited(engines.flow, turns),
                osvos=_limited(engines.osvos, turns),
                features=_limited(engines.features, turns),
            )
            self._opened = opened.pop_all()

    def open(self, directory: object, **settings: Any) -> EngineSet:
        """Return the engines, as an ``opener`` of a pipeline; its arguments are not used."""
        return self.engines

    def close(self) -> None:
        """Close the engines. A second call does nothing."""
        self._opened.close()


def _limited(engine: Engine | None, turns: threading.BoundedSemaphore) -> Engine | None:
    return None if engine is None else _LimitedEngine(engine, turns)
