"""Read mutated files, and report other exceptions than those of the package.

    python -m tools.fuzz TARGET [--minutes 20] [--seed N] [--json OUT] [--folder DIR]
    python -m tools.fuzz TARGET --replay FILE ...

Hypothesis generates lists of mutations and makes the list of an escape shorter. An input that runs
a line of the package for the first time, or has a new outcome, is mutated further. The readers run
in a process with limits of memory and time, so that the fault of a library does not end the run.
Each escape is written to DIR, as are the inputs of most time and memory, and one message of each
kind with its count. Exits with 1 if there is an escape.

atheris is not used: its coverage of Python adds nothing to the lines that are noted here, the
libraries in C have no coverage in both cases, and a crash or a hang would end its process.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from mpn._common.files import save_json
from tools.fuzz.mutations import mutated
from tools.fuzz.targets import TARGETS
from tools.fuzz.worker import Outcome, serve

_LIMIT_S = 30.0
"""Longest time of one input. The slowest valid seed takes under a second on a busy machine."""
_MEMORY_MIB = 4096
"""Address space of one input. The largest image that Pillow opens has 179 million pixels."""
_INPUTS_PER_WORKER = 4000
"""A new process after this number, so that the memory of one input is not that of many."""
_EXAMPLES = 400
"""Inputs of one search of Hypothesis; the corpus does not change in it."""
_MOST_SHRINKS = 60
_MOST_STEPS = 5
_MOST_OTHERS = 8
_REPORT_EVERY_S = 60.0


class EscapeError(Exception):
    """An input had an escape; Hypothesis searches for a smaller one."""


@dataclass(frozen=True)
class Case:
    """One input: the name of its file, and the content."""

    name: str
    data: bytes


@dataclass
class Statistics:
    """Counts of a run."""

    inputs: int = 0
    accepted: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    slowest_s: float = 0.0
    slowest: str = ""
    peak_mib: float = 0.0
    restarts: int = 0


class Worker:
    """A process that reads inputs.

    Args:
        target: Name of the target.
        folder: A folder for its files.
        first: Input that loads the libraries, before the limits.
        limit_s: Longest time of an input.
    """

    def __init__(self, target: str, folder: Path, first: Case, limit_s: float) -> None:
        self._target, self._folder, self._first = target, folder, first
        self._limit_s = limit_s
        self._inputs = 0
        self._start()

    def read(self, case: Case) -> Outcome:
        """Read one input; the process is started again if it ends."""
        if self._inputs >= _INPUTS_PER_WORKER:
            self.close()
            self._start()
        self._inputs += 1
        return self._read(case, self._limit_s)

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(
            target=serve,
            args=(theirs, self._target, self._folder, _MEMORY_MIB, sys.path),
            daemon=True,
        )
        self._process.start()
        theirs.close()
        self._inputs = 0
        outcome = self._read(self._first, 10 * self._limit_s)
        if outcome.is_escape:
            raise SystemExit(f"the first seed {self._first.name} fails: {outcome.text}")

    def _read(self, case: Case, limit_s: float) -> Outcome:
        try:
            self._connection.send((case.name, case.data))
            if self._connection.poll(limit_s):
                outcome: Outcome = self._connection.recv()
                return outcome
            ended = Outcome("hang", f"no end after {limit_s:g} s")
        except (EOFError, OSError):
            self._process.join(5)
            code = self._process.exitcode
            ended = Outcome("crash", f"exit code {code}", self._log())
        self.close()
        self._start()
        return ended

    def _log(self) -> str:
        try:
            text = (self._folder / "worker.log").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return text[-8000:]


class Run:
    """A run of one target.

    Args:
        target: Its name.
        folder: Escapes are written to it.
        number: Seed of the run.
        limit_s: Longest time of an input.
    """

    def __init__(self, target: str, folder: Path, number: int, limit_s: float) -> None:
        self.target = target
        self.folder = folder
        self.statistics = Statistics()
        self.escapes: dict[str, Case] = {}
        self._number = number
        seeds_folder = folder / "seeds"
        seeds_folder.mkdir(parents=True)
        self._corpus = [Case(*pair) for pair in TARGETS[target].seeds(seeds_folder)]
        self.seeds = len(self._corpus)
        self._seen_lines: set[str] = set()
        self._messages: dict[str, list[Any]] = {}
        self._worker = Worker(target, folder / "worker", self._corpus[0], limit_s)

    @property
    def corpus(self) -> int:
        """Number of inputs that are mutated further."""
        return len(self._corpus)

    def search(self, seconds: float) -> None:
        """Read mutated files until the time is over, or all planted escapes are found."""
        end = time.monotonic() + seconds
        for case in tuple(self._corpus):
            if (outcome := self._read(case)).is_escape or outcome.kind != "accepted":
                print(f"seed {case.name}: {outcome.kind} {outcome.name} {outcome.text[:200]}")
        next_report = time.monotonic() + _REPORT_EVERY_S
        planted = TARGETS[self.target].planted
        for chunk in range(1 << 30):
            if time.monotonic() >= end or (planted and planted <= self.kinds):
                break
            self._search_chunk(self._number * 1_000_003 + chunk, end)
            if time.monotonic() >= next_report:
                next_report += _REPORT_EVERY_S
                self.print_counts()
        self._worker.close()
        lines = sorted(
            f"{count} {cause or '-'}: {text}" for count, cause, text in self._messages.values()
        )
        path = self.folder / "messages.txt"
        path.write_text("\n".join(lines), encoding="utf-8", errors="replace")

    @property
    def kinds(self) -> set[str]:
        """Kinds of the escapes."""
        return {signature.partition(":")[0] for signature in self.escapes}

    def print_counts(self) -> None:
        """Print the counts until now in one line."""
        found = self.statistics
        refused = ", ".join(f"{name} {count}" for name, count in found.refused.most_common())
        print(
            f"{self.target}: {found.inputs} inputs, {found.accepted} accepted, refused: "
            f"{refused or 'none'}; {len(self.escapes)} kinds of escapes; corpus {self.corpus}; "
            f"slowest {found.slowest_s:.2f} s ({found.slowest}), peak {found.peak_mib:.0f} MiB",
            flush=True,
        )

    def _search_chunk(self, number: int, end: float) -> None:
        corpus = tuple(self._corpus)
        rng = random.Random(number)
        recent = corpus[-64:]
        failures = 0
        known = set(self.escapes)
        # Half of the inputs are made from the last finds. A step is one number, since each draw
        # costs as much time as the reading of a small file.
        bases = (*corpus, *recent)
        steps_of = st.lists(st.integers(0, (1 << 64) - 1), min_size=1, max_size=_MOST_STEPS)

        @seed(number)
        @settings(
            max_examples=_EXAMPLES,
            database=None,
            deadline=None,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
            print_blob=False,
            verbosity=Verbosity.quiet,
        )
        @given(st.integers(0, len(bases) - 1), steps_of)
        def read_one(index: int, steps: list[int]) -> None:
            nonlocal failures
            if time.monotonic() >= end:
                return
            chosen = bases[index]
            alike = [case.data for case in corpus if case.name == chosen.name]
            others = alike if len(alike) < _MOST_OTHERS else rng.sample(alike, _MOST_OTHERS)
            data = chosen.data
            for salt in steps:
                data = mutated(data, salt, others)
            signature = self._found(Case(chosen.name, data))
            # Each attempt of a hang or a crash takes seconds.
            is_new = signature is not None and signature not in known
            if is_new and signature.startswith("exception") and failures < _MOST_SHRINKS:
                failures += 1
                raise EscapeError(signature)

        with suppress(EscapeError, Flaky):
            read_one()

    def _found(self, case: Case) -> str | None:
        """Read an input; keep it if it is of use, and return the signature of an escape."""
        outcome = self._read(case)
        if not outcome.is_escape:
            return None
        signature = f"{outcome.kind}: {outcome.name}"
        smallest = self.escapes.get(signature)
        if smallest is None:
            print(f"ESCAPE {signature} ({case.name}, {len(case.data)} bytes)", flush=True)
        if smallest is None or len(case.data) < len(smallest.data):
            self.escapes[signature] = case
            self._save(signature, case, outcome)
        return signature

    def _read(self, case: Case) -> Outcome:
        found, outcome = self.statistics, self._worker.read(case)
        found.inputs += 1
        if outcome.peak_mib > found.peak_mib:
            found.peak_mib = outcome.peak_mib
            _write(self.folder / "heaviest", case, f"{outcome.peak_mib:.0f} MiB\n")
        if outcome.cpu_s > found.slowest_s:
            found.slowest_s, found.slowest = outcome.cpu_s, case.name
            _write(self.folder / "slowest", case, f"{outcome.cpu_s:.2f} s CPU\n")
        if outcome.kind == "accepted":
            found.accepted += 1
        elif outcome.kind == "refused":
            found.refused[outcome.name] += 1
        kind = f"{outcome.name} {outcome.cause} {_generalised(outcome.text)}"
        if not outcome.is_escape and (
            not self._seen_lines.issuperset(outcome.lines) or kind not in self._messages
        ):
            self._corpus.append(case)
        self._seen_lines.update(outcome.lines)
        self._messages.setdefault(kind, [0, outcome.cause, outcome.text])[0] += 1
        return outcome

    def _save(self, signature: str, case: Case, outcome: Outcome) -> None:
        name = re.sub(r"\W+", "-", signature)[:100]
        _write(self.folder / "escapes" / name, case, f"{signature}\n{outcome.text}\n")


def _write(folder: Path, case: Case, text: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / case.name).write_bytes(case.data)
    (folder / "report.txt").write_text(text, encoding="utf-8", errors="replace")


def _generalised(text: str) -> str:
    """Return a message without numbers, names and paths."""
    return re.sub(r"\d+|'[^']*'|\"[^\"]*\"|/\S+", "#", text)[:120]


def _document(run: Run, minutes: float, number: int) -> dict[str, Any]:
    found = run.statistics
    commit = subprocess.run(
        ("git", "rev-parse", "HEAD"), capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "commit": commit,
        "minutes": minutes,
        "seed": number,
        "seeds": run.seeds,
        "inputs": found.inputs,
        "accepted": found.accepted,
        "refused": dict(found.refused),
        "escapes": sorted(run.escapes),
        "corpus": run.corpus,
        "slowest_cpu_s": round(found.slowest_s, 3),
        "peak_memory_mib": round(found.peak_mib),
    }


def save_counts(path: Path, target: str, document: Mapping[str, Any]) -> None:
    """Write the counts of a target to a JSON file, and keep those of others."""
    from mpn.runtime.session.report import machine_facts, versions

    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    targets = {**earlier.get("targets", {}), target: dict(document)}
    facts = {"machine": machine_facts(), "versions": versions()}
    save_json(path, {**facts, "targets": {name: targets[name] for name in sorted(targets)}})


def _replay(target: str, files: Sequence[Path], limit_s: float) -> int:
    """Read saved inputs again, and print their outcomes."""
    folder = Path("build/fuzz/replay")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "seeds").mkdir(parents=True)
    first = Case(*next(iter(TARGETS[target].seeds(folder / "seeds"))))
    worker = Worker(target, folder / "worker", first, limit_s)
    escapes = 0
    for path in files:
        outcome = worker.read(Case(path.name, path.read_bytes()))
        escapes += outcome.is_escape
        print(f"{path}: {outcome.kind} {outcome.name} {outcome.cpu_s:.2f} s\n{outcome.text}")
    worker.close()
    return 1 if escapes else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the arguments, run a target and print the counts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=sorted(TARGETS), help="the reader")
    parser.add_argument("--minutes", type=float, default=20, help="time of the run [20]")
    parser.add_argument("--seed", type=int, default=0, help="seed of the run [0]")
    parser.add_argument(
        "--json", type=Path, help="file for the counts; it keeps those of other targets"
    )
    parser.add_argument("--folder", type=Path, help="folder of the escapes [build/fuzz/TARGET]")
    parser.add_argument("--limit", type=float, default=_LIMIT_S, help="seconds per input [30]")
    parser.add_argument("--replay", type=Path, nargs="+", help="read these inputs only")
    given_ = parser.parse_args(arguments)
    # Few arenas: each takes 64 MiB of address space, which is limited.
    os.environ.update(MALLOC_ARENA_MAX="2", OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
    if given_.replay:
        return _replay(given_.target, given_.replay, given_.limit)
    folder = given_.folder or Path("build/fuzz", given_.target)
    shutil.rmtree(folder, ignore_errors=True)
    run = Run(given_.target, folder, given_.seed, given_.limit)
    run.search(60 * given_.minutes)
    run.print_counts()
    for signature in sorted(run.escapes):
        print(f"escape: {signature}")
    if given_.json:
        save_counts(given_.json, given_.target, _document(run, given_.minutes, given_.seed))
    planted = TARGETS[given_.target].planted
    if planted:
        missed = sorted(planted - run.kinds)
        print(f"planted faults that were not found: {', '.join(missed) or 'none'}")
        return 1 if missed else 0
    return 1 if run.escapes else 0


if __name__ == "__main__":
    sys.exit(main())
