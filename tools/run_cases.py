"""Run the commands of a folder of input cases, and check their results.

    python tools/run_cases.py CASES [NAME ...] [--python PYTHON]

CASES has a folder per case, whose ``make.py`` writes the inputs. Each case runs in a temporary
folder, with another home folder. PYTHON must have mpn-runtime and what the case
needs (``numpy-scalar-checkpoint``: torch). Exits with 1 if a case is not as expected.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

_COMMAND = "import sys; from mpn.cli.main import main; sys.argv[0] = 'mpn'; sys.exit(main())"
_MAKE = """
import runpy, sys, types
try:
    from mpn.networks import propagation
except ImportError:  # without torch: only one case needs it
    pass
else:
    earlier = types.ModuleType("mpn.networks.deeplab_xception")
    earlier.DeepLabConfig = propagation.PropagationConfig
    earlier.DeepLabXception = propagation.PropagationNet
    sys.modules[earlier.__name__] = earlier
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Run a make.py, with the names that the networks had in 0.1."""
_LIMIT_S = 300
_EVERY_S = 0.2


def labels(path: Path) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Read the ids of a palette PNG."""
    return np.asarray(Image.open(path, formats=("PNG",)))


@dataclass(frozen=True)
class Done:
    """Result of a command: exit code, and stdout and stderr as one text."""

    code: int
    text: str


@dataclass
class Case:
    """Run commands in the folder of a case.

    Attributes:
        folder: Folder of its inputs.
        python: Interpreter with the package.
        failures: Results that were not as expected.
    """

    folder: Path
    python: str
    failures: list[str] = field(default_factory=list)

    def environment(self, **changed: str) -> dict[str, str]:
        """Return the environment of a command; HOME is in the folder."""
        return {**os.environ, "HOME": str(self.folder / "home"), **changed}

    def start(self, *arguments: str | bytes, **changed: str) -> subprocess.Popen[bytes]:
        """Start ``mpn`` with arguments."""
        return subprocess.Popen(
            [self.python, "-c", _COMMAND, *arguments],
            cwd=self.folder,
            env=self.environment(**changed),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def mpn(self, *arguments: str | bytes, **changed: str) -> Done:
        """Run ``mpn`` with arguments to its end. A traceback is a failure."""
        with self.start(*arguments, **changed) as process:
            output = process.communicate(timeout=_LIMIT_S)[0]
        done = Done(process.returncode, output.decode(errors="replace"))
        self.check("Traceback" not in done.text, f"traceback: {done.text[-400:]}")
        return done

    def run(self, video: str | bytes, *options: str, out: str = "out") -> Done:
        """Run ``mpn run`` on a video."""
        return self.mpn("run", video, *options, "-o", out)

    def check(self, condition: bool, otherwise: str) -> None:
        """Record a failure unless the condition holds."""
        if not condition:
            self.failures.append(otherwise)

    def check_ran(self, done: Done, frames: int, out: str = "out") -> None:
        """Check that a run succeeded and wrote a mask with an object for each frame."""
        self.check(done.code == 0, f"exit code {done.code}: {done.text[-300:]}")
        masks = sorted((self.folder / out / "masks").glob("*.png"))
        self.check(len(masks) == frames, f"{len(masks)} masks, expected {frames}")
        self.check(all(labels(mask).any() for mask in masks), "an empty mask")

    def check_refused(self, done: Done, *words: str) -> None:
        """Check that a command failed in one line that has all words, and made no mask."""
        self.check(done.code != 0, "exit code 0, expected a refusal")
        missing = [word for word in words if word not in done.text]
        self.check(not missing, f"the message lacks {missing}: {done.text[-300:]}")
        self.check(not list(self.folder.glob("out*/masks/*.png")), "masks of a refused run")


MASK = ("--mask", "mask.png")


def _aa_mask(case: Case) -> None:
    case.check_refused(case.run("clip.mp4", *MASK), "mask.png")


def _anamorphic(case: Case) -> None:
    video = next(case.folder.glob("*.m*"))
    case.check(case.run(str(video.name), *MASK).code == 0, "the run failed")
    with av.open(str(case.folder / "out/overlay.mp4")) as overlay:
        ratio = overlay.streams.video[0].sample_aspect_ratio
    case.check(ratio == Fraction(16, 11), f"sample aspect ratio {ratio}")


def _animated_webp(case: Case) -> None:
    case.check_ran(case.run("clip.webp", *MASK), 6)


def _appledouble(case: Case) -> None:
    done = case.mpn("eval", "--davis-root", "d", "--results", "results", "--json")
    case.check(done.code == 0, done.text[-300:])


def _colon_names(case: Case) -> None:
    case.check(case.run("12:30:05.mp4", *MASK, out="o1").code == 0, "video with colons")
    case.check(case.run("clip.mp4", *MASK, out="cam1:out").code == 0, "folder with a colon")
    case.check((case.folder / "cam1:out/overlay.mp4").is_file(), "no overlay in cam1:out")
    case.check(case.run("clip.mp4", "--mask", "12:30.png", out="o3").code == 0, "mask with a colon")


def _cover_art_first(case: Case) -> None:
    case.check_ran(case.run("cover.mp4", *MASK, out="o1"), 6, "o1")
    case.check_ran(case.run("cover_same_size.mp4", *MASK, out="o2"), 6, "o2")


def _decimal_timestamps(case: Case) -> None:
    case.check(case.run("frames", *MASK).code == 0, "the run failed")
    lines = (case.folder / "out/tracks.jsonl").read_text().splitlines()
    names = [json.loads(line).get("name") for line in lines]
    names = [name for name in names if name is not None]
    case.check(names == sorted(names, key=lambda n: float(Path(n).stem)), f"order {names}")


def _frame_name_vs_index(case: Case) -> None:
    masks = ("--mask", "00000.png", "--mask", "20:00020.png")
    for video, out in (("JPEGImages/v1", "out"), ("short/JPEGImages/v1", "o2")):
        done = case.run(video, *masks, out=out)
        case.check(done.code == 0, done.text[-300:])
        masks_of_v1 = case.folder / out / "v1"  # the layout of results of a folder in JPEGImages
        begins = [2 in labels(masks_of_v1 / f"{n:05d}.png") for n in (0, 5, 10, 15, 20)]
        case.check(begins == [False] * 4 + [True], f"object 2 in frames 0 to 20: {begins}")


def _gray16_frames(case: Case) -> None:
    case.check_ran(case.run("g16", *MASK), 12)
    case.run("g8", *MASK, out="o8")
    pairs = [
        [labels(case.folder / of / "masks" / name) > 0 for of in ("out", "o8")]
        for name in sorted(p.name for p in (case.folder / "o8/masks").glob("*.png"))
    ]
    ious = [(a & b).sum() / max((a | b).sum(), 1) for a, b in pairs]
    case.check(min(ious) > 0.9, f"IoU with 8 bits {min(ious):.2f}")


def _home_cache(case: Case) -> None:
    # A file in the place of the cache folder: no user can write there, root included.
    (case.folder / "cache").write_bytes(b"")
    done = case.mpn(
        "run", "clip.mp4", *MASK, "--finetune-steps", "3", "-o", "out",
        XDG_CACHE_HOME=str(case.folder / "cache"),
    )  # fmt: skip
    case.check(done.code == 0, f"exit code {done.code}: {done.text[-300:]}")
    case.check(done.text.count("cache") >= 1, "no warning")


def _jpeg_mask(case: Case) -> None:
    case.check_refused(case.run("clip.mp4", "--mask", "mask.jpg"), "mask.jpg")


def _json_mask(case: Case) -> None:
    case.check_ran(case.run("clip.mp4", "--mask", "labelme.json"), 6)
    done = case.run("clip.mp4", "--mask", "mask.npy", out="o2")
    case.check(done.code == 0 or "npy" in done.text, done.text[-300:])


def _list_bom_utf16(case: Case) -> None:
    for root in ("bom", "utf16"):
        done = case.mpn("eval", "--davis-root", root, "--results", f"{root}/results")
        case.check(done.code == 0, f"{root}: {done.text[-300:]}")


def _non_utf8_name(case: Case) -> None:
    case.check(case.run("good.mp4", *MASK).code == 0, "the first run failed")
    done = case.run(b"caf\xe9.mp4", *MASK)
    if done.code == 0:
        case.check_ran(done, 6)
    else:
        case.check(len(list((case.folder / "out/masks").glob("*.png"))) > 0, "masks were lost")
    case.check(not list(case.folder.glob("out/*.partial")), "a .partial was left")


def _numpy_scalar_checkpoint(case: Case) -> None:
    for name in ("model_best.pth.tar", "lightning.ckpt"):
        done = case.mpn("export", name, "-o", f"engines-{name}")
        # Their weights are all zero: what is checked is that they load.
        case.check("pickled code" not in done.text, f"{name}: {done.text[-300:]}")
        case.check("no known layout" not in done.text, f"{name}: {done.text[-300:]}")
    done = case.mpn("export", "x.safetensors", "-o", "engines-x")
    case.check("not a file of torch.save" not in done.text, done.text[-300:])


def _ort_telemetry(case: Case) -> None:
    (case.folder / "home").mkdir(exist_ok=True)
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "ORT_"))}
    environment["HOME"] = str(case.folder / "home")
    subprocess.run(
        [case.python, "-c", _COMMAND, "run", "clip.mp4", *MASK, "-o", "out"],
        cwd=case.folder, env=environment, check=True, capture_output=True, timeout=_LIMIT_S,
    )  # fmt: skip
    files = [p.relative_to(case.folder / "home") for p in (case.folder / "home").rglob("*")]
    foreign = [str(p) for p in files if p.parts[:2] not in ((".cache",), (".cache", "mpn-runtime"))]
    case.check(not foreign, f"in the home folder: {foreign}")


def _piped_avi(case: Case) -> None:
    case.check_ran(case.run("clip.avi", *MASK), 6)


def _symlinked_engines(case: Case) -> None:
    case.check_ran(case.run("clip.mp4", *MASK, "--engine-dir", "snapshot"), 6)


def _tilde(case: Case) -> None:
    done = case.mpn("run", "clip.mp4", *MASK, "--out=~/o")
    case.check(done.code == 0 and (case.folder / "home/o/masks").is_dir(), "~ in --out")
    case.check(not (case.folder / "~").exists(), "a folder named ~")
    case.check_ran(case.run("clip.mp4", "--mask", "0:~/mpn_tilde.png", out="o2"), 6, "o2")


def _trailing_bytes_mp4(case: Case) -> None:
    case.check_ran(case.run("clip.mp4", *MASK), 6)


def _trimap_255(case: Case) -> None:
    case.check_refused(case.run("clip.mp4", "--mask", "trimap.png"), "255")
    case.check_refused(case.run("clip.mp4", "--mask", "two.png"), "255")


def _two_runs_one_out(case: Case) -> None:
    with case.start("run", "a.mp4", "--mask", "a.png", "-o", "out") as first:
        while first.poll() is None and not list(case.folder.glob("out/masks/*.png")):
            time.sleep(_EVERY_S)
        second = case.mpn("run", "b.mp4", "--mask", "b.png", "-o", "out")
        first.communicate(timeout=_LIMIT_S)
    case.check(second.code != 0, "the second run was not refused")
    case.check(str(first.pid) in second.text, f"the first pid is not named: {second.text[-300:]}")
    case.check(first.returncode == 0, "the first run failed")


CASES: Mapping[str, Callable[[Case], None]] = {
    check.__name__[1:].replace("_", "-"): check
    for check in (
        _aa_mask, _anamorphic, _animated_webp, _appledouble, _colon_names, _cover_art_first,
        _decimal_timestamps, _frame_name_vs_index, _gray16_frames, _home_cache, _jpeg_mask,
        _json_mask, _list_bom_utf16, _non_utf8_name, _numpy_scalar_checkpoint, _ort_telemetry,
        _piped_avi, _symlinked_engines, _tilde, _trailing_bytes_mp4, _trimap_255, _two_runs_one_out,
    )
}  # fmt: skip


def run_case(source: Path, name: str, python: str) -> list[str]:
    """Make the inputs of a case, run it, and return what was not as expected."""
    with tempfile.TemporaryDirectory(prefix="mpn-case-") as temporary:
        folder = Path(temporary, name)
        (folder / "home").mkdir(parents=True)
        case = Case(folder, python)
        made = subprocess.run(
            [python, "-c", _MAKE, str(source / name / "make.py")],
            env=case.environment(CASES_OUT=temporary),
            capture_output=True,
            text=True,
            timeout=_LIMIT_S,
            check=False,
        )
        if made.returncode:
            return [f"make.py failed: {made.stderr[-300:]}"]
        try:
            CASES[name](case)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            case.failures.append(f"{type(error).__name__}: {error}")
        return case.failures


def main() -> int:
    """Parse the arguments, run the cases and print one line each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", type=Path, help="folder of the cases")
    parser.add_argument("names", nargs="*", help="cases to run [all]")
    parser.add_argument("--python", default=sys.executable, help="interpreter [this one]")
    given = parser.parse_args()
    known = sorted(path.parent.name for path in given.cases.glob("*/make.py"))
    unchecked = [name for name in known if name not in CASES]
    failed = 0
    for name in given.names or [name for name in known if name in CASES]:
        failures = run_case(given.cases.resolve(), name, given.python)
        failed += bool(failures)
        print(f"{name:24} {'as expected' if not failures else '; '.join(failures)}", flush=True)
    for name in unchecked:
        print(f"{name:24} has no check here")
    return 1 if failed or unchecked else 0


if __name__ == "__main__":
    sys.exit(main())
