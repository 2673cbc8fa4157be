"""Fine-tune the networks on one object of the first frame, without torch.

The optimisation step is a graph of the engine directory (``propagation_adapt.onnx``,
``osvos_adapt.onnx``). onnxruntime runs it, on CUDA if the networks run on a GPU and onnxruntime
supports it. The backend of the networks loads the fine-tuned weights (:mod:`mpn.engines.open`). The
training pairs are augmented samples of the frame (:mod:`mpn.runtime.finetune.augment`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mpn._common.closeable import Closeable
from mpn.engines.base import Engine
from mpn.engines.onnxruntime.finetune import finetune_entry, open_finetune_engine
from mpn.engines.open import EngineSet, open_object_engine, step_backend
from mpn.engines.spec import Role
from mpn.errors import EngineError, MaskError, OutputError
from mpn.runtime.finetune.augment.osvos import OsvosSampler
from mpn.runtime.finetune.augment.propagation import PropagationSampler
from mpn.runtime.finetune.cache import CacheLookup, WeightCache, cache_key
from mpn.runtime.finetune.loop import FinetuneProgress as FinetuneProgress
from mpn.runtime.finetune.loop import FinetuneReport as FinetuneReport
from mpn.runtime.finetune.loop import LoopOutcome, Sampler, run_loop
from mpn.runtime.finetune.plan import options_in_cache_key
from mpn.runtime.host.flow import flow_estimator_from
from mpn.runtime.one_shot import one_shot_models, takes_score
from mpn.runtime.options import FINETUNABLE_ROLES, FinetuneOptions, FinetuneRecipe, ResolvedOptions
from mpn.types import Float32Array, UInt8Array, check_labels, check_rgb


class ObjectFinetuner(Closeable):
    """Fine-tune a set of weights per object and network, and open engines with them.

    Args:
        engine_dir: The engine directory.
        engines: Its open engines. The caller closes them.
        options: The networks and their recipes. The directory must have a fine-tuning graph for
            each of these networks.
        pipeline_options: Options of the pipeline that uses the engines, with all defaults filled
            in. Augmented frames pass the same stages as real ones.
        threads: Threads within an operator; None: the default of onnxruntime.
        on_progress: Called after each step.

    Raises:
        EngineError: If a network cannot be fine-tuned with this directory.
    """

    def __init__(
        self,
        engine_dir: str | os.PathLike[str],
        engines: EngineSet,
        options: FinetuneOptions,
        pipeline_options: ResolvedOptions,
        *,
        threads: int | None = None,
        on_progress: Callable[[FinetuneProgress], None] | None = None,
    ) -> None:
        for role in options.roles:
            entry = engines.manifest.roles.get(role)
            if entry is None or entry.adapt is None or role not in engines.engines:
                raise EngineError(
                    f"the {role} network of the engines '{engines.manifest.name}' cannot be "
                    "fine-tuned: export it again with this version of mpn-export, or leave the "
                    "role out"
                )
        self._directory = Path(engine_dir)
        self._engines, self._options = engines, options
        self._pipeline_options = pipeline_options
        self._threads, self._on_progress = threads, on_progress
        self._cache = None if options.cache_dir is None else WeightCache(options.cache_dir)
        self._backend = step_backend(engines)
        self._reports: list[FinetuneReport] = []
        self._warnings: list[str] = []

    @property
    def reports(self) -> tuple[FinetuneReport, ...]:
        """One report per object and network, in the order of the work."""
        return tuple(self._reports)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Problems that did not stop the work."""
        return tuple(self._warnings)

    def report_as_json(self) -> list[dict[str, Any]]:
        """Return :attr:`reports` as JSON types."""
        return [report.as_json() for report in self._reports]

    def finetune(
        self, rgb: UInt8Array, labels: UInt8Array, object_id: int
    ) -> Mapping[Role, Engine]:
        """Fine-tune the networks on one object and open engines with the new weights.

        Args:
            rgb: (h, w, 3) uint8 RGB, the first frame at working size.
            labels: (h, w) uint8, ids of all objects. Other objects are background for this one.
            object_id: The object to fine-tune on.

        Returns:
            One engine per fine-tuned network; the caller closes them. A network without new
            weights is left out, and its report has the reason.

        Raises:
            EngineError: If an engine fails.
            InputError: If the arrays do not fit each other.
            OutputError: If an engine with the new weights cannot be written.
        """
        check_rgb(rgb)
        check_labels(labels, (rgb.shape[0], rgb.shape[1]))
        finetuned: dict[Role, Engine] = {}
        with ExitStack() as opened:
            for role in self._options.roles:
                engine = self._finetuned(role, rgb, labels, object_id)
                if engine is not None:
                    opened.callback(engine.close)
                    finetuned[role] = engine
            opened.pop_all()
        return finetuned

    def close(self) -> None:
        """Do nothing: no resource is held between two objects."""

    def _finetuned(
        self, role: Role, rgb: UInt8Array, labels: UInt8Array, object_id: int
    ) -> Engine | None:
        scope = self._recipe(role).scope
        key = cache_key(self._facts(role, object_id), rgb=rgb, labels=labels)
        lookup = CacheLookup(None) if self._cache is None else self._cache.load(key)
        if lookup.weights is not None:
            entry = finetune_entry(self._engines.manifest, role)
            missing = {tensor.name for tensor in entry.trained(scope)} - lookup.weights.keys()
            if missing:
                lookup = CacheLookup(
                    None, f"the stored weights lack '{min(missing)}' and are computed again"
                )
        if lookup.weights is not None:
            try:
                engine = self._open(role, lookup.weights)
            except EngineError as error:
                lookup = CacheLookup(
                    None, f"the stored weights do not fit and are computed again ({error})"
                )
            else:
                self._reports.append(
                    FinetuneReport(object_id, role, scope, True, is_cached=True, note=lookup.note)
                )
                return engine
        try:
            outcome = self._run(role, rgb, labels, object_id)
        except MaskError as error:  # too small, or lost in each clip: the common engine is used
            self._reports.append(FinetuneReport(object_id, role, scope, False, note=str(error)))
            return None
        report = FinetuneReport(
            object_id,
            role,
            scope,
            outcome.weights is not None,
            steps=outcome.steps,
            seconds=outcome.seconds,
            first_loss=outcome.first_loss,
            last_loss=outcome.last_loss,
            note="; ".join(filter(None, (lookup.note, outcome.note))),
        )
        self._reports.append(report)
        if outcome.weights is None:
            return None
        if self._cache is not None and not outcome.is_stopped:
            try:
                self._cache.save(key, outcome.weights)
            except OutputError as error:  # the cache only saves time
                if not self._warnings:  # the next object would fail in the same way
                    self._warnings.append(
                        "fine-tuned weights are not kept for the next run (choose a folder with "
                        f"--finetune-cache, or --no-finetune-cache): {error}"
                    )
        return self._open(role, outcome.weights)

    def _run(self, role: Role, rgb: UInt8Array, labels: UInt8Array, object_id: int) -> LoopOutcome:
        recipe = self._recipe(role)
        sampler = self._sampler(role, rgb, labels, object_id)

        def on_step(step: int, loss: float, elapsed_s: float, eta_s: float) -> None:
            if self._on_progress is not None:
                self._on_progress(
                    FinetuneProgress(object_id, role, step, recipe.steps, loss, elapsed_s, eta_s)
                )

        # One object at a time: the state of the engine is several times the size of the weights.
        with open_finetune_engine(
            self._directory,
            self._engines.manifest,
            role,
            scope=recipe.scope,
            backend=self._backend,
            threads=self._threads,
        ) as engine:
            engine.begin()
            return run_loop(engine, sampler, recipe, seconds=self._options.seconds, on_step=on_step)

    def _recipe(self, role: Role) -> FinetuneRecipe:
        entry = finetune_entry(self._engines.manifest, role)
        return self._options.recipe(role, entry.optimizer)

    def _sampler(self, role: Role, rgb: UInt8Array, labels: UInt8Array, object_id: int) -> Sampler:
        recipe = self._recipe(role)
        seed = (self._options.seed, object_id, FINETUNABLE_ROLES.index(role))
        if role == "osvos":
            preprocessing = self._engines.manifest.preprocessing.osvos
            return OsvosSampler(
                rgb,
                labels,
                object_id,
                channel_order=preprocessing.channel_order,
                mean=preprocessing.mean,
                size_px=recipe.size_px,
                batch=recipe.batch,
                seed=seed,
            )
        return PropagationSampler(
            rgb,
            labels,
            object_id,
            engines=self._engines,
            flow=flow_estimator_from(self._engines),
            options=self._pipeline_options,
            size_px=recipe.size_px,
            batch=recipe.batch,
            seed=seed,
        )

    def _open(self, role: Role, weights: Mapping[str, Float32Array]) -> Engine:
        return open_object_engine(
            self._directory, self._engines, role, weights, threads=self._threads
        )

    def _facts(self, role: Role, object_id: int) -> dict[str, Any]:
        """Return all that the weights depend on, except the frame and its labels."""
        manifest = self._engines.manifest
        options = self._options
        facts: dict[str, Any] = {
            "role": role,
            "object_id": object_id,
            "backend": self._engines.backend,
            "network": asdict(manifest.roles[role]),
            "preprocessing": asdict(manifest.preprocessing),
            "recipe": asdict(self._recipe(role)),
            "seconds": options.seconds,
            "seed": options.seed,
        }
        if role == "propagation":
            facts["pipeline"] = options_in_cache_key(self._pipeline_options)
            facts["flow"] = asdict(manifest.flow)
            if takes_score(self._engines.propagation.spec):
                facts["score"] = self._score_facts()
            if "flow" in manifest.roles:
                facts["flow_network"] = manifest.roles["flow"].sha256
        return facts

    def _score_facts(self) -> dict[str, Any]:
        """Return all that the score of the target model depends on."""
        manifest, options = self._engines.manifest, self._pipeline_options
        if not one_shot_models(options, manifest.roles.keys()).target:
            return {}
        return {"features": manifest.roles["features"].sha256, "target": asdict(options.target)}
