"""Measure time and memory of the page of ``mpn studio`` on a long clip.

    python -m benchmarks.speed.studio [--frames 2000] [--frame-size 3840x2160] [--objects 3]
        [--seeks 150] [--folder DIR]

A clip and the results of a run on it are made first (DIR keeps them for the next time). Chromium
then opens the page, and a script draws, zooms, steps and seeks like a user. Printed are: seconds
until the page can be used; milliseconds until a frame and its mask are shown, for steps and for
seeks to random frames; the longest gap between two pictures of the page while a stroke is drawn;
memory of the server and of the page's process after a third of the seeks and after all. The server,
the browser and the decoder share the cores, so the load average is printed too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from mpn._common.files import save_json
from mpn.export.options import frame_size_hw_from_text
from mpn.masks import png_from_labels
from mpn.runtime.bench.result import load_average
from mpn.runtime.session.layout import RUN_JSON_SCHEMA
from mpn.types import UInt8Array

_CHROMIUM = Path("/usr/bin/chromium")
_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
_MAIN = "from mpn.cli.main import main; main()"
_KEY_FRAME_EVERY = 30
"""As phones record."""
_PERIOD = 40
"""Different frames and masks; they repeat, which saves minutes of encoding."""
_FIRST_STEP, _STEPS = 100, 60


def write_video(path: Path, frames: int, size_hw: tuple[int, int]) -> None:
    """Write an H.264 clip of moving texture."""
    import av
    import cv2

    height, width = size_hw
    small = np.random.default_rng(0).integers(0, 255, (height // 12, width // 12, 3), np.uint8)
    texture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    with av.open(f"file:{path}", "w", format="mp4") as container:
        stream: Any = container.add_stream(
            "libx264", rate=Fraction(30), options={"preset": "ultrafast", "crf": "28"}
        )
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        stream.codec_context.gop_size = _KEY_FRAME_EVERY
        pictures = [
            av.VideoFrame.from_ndarray(np.roll(texture, 6 * t, axis=1), format="rgb24").reformat(
                format="yuv420p"
            )
            for t in range(_PERIOD)
        ]
        for index in range(frames):
            picture = pictures[index % _PERIOD]
            picture.pts, picture.time_base = index, Fraction(1, 30)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def labels_at(index: int, size_hw: tuple[int, int], objects: int) -> UInt8Array:
    """Draw discs that move."""
    height, width = size_hw
    y, x = np.ogrid[:height, :width]
    labels = np.zeros(size_hw, np.uint8)
    for object_id in range(1, objects + 1):
        centre_x = width * object_id // (objects + 1) + 3 * (index % _PERIOD)
        labels[(x - centre_x) ** 2 + (y - height // 2) ** 2 < (height // 7) ** 2] = object_id
    return labels


def write_results(out: Path, frames: int, size_hw: tuple[int, int], objects: int) -> None:
    """Write masks, tracks.jsonl and run.json as a run does."""
    (out / "masks").mkdir(parents=True)
    masks = [png_from_labels(labels_at(t, size_hw, objects)) for t in range(_PERIOD)]
    lines = []
    for index in range(frames):
        (out / "masks" / f"{index:05d}.png").write_bytes(masks[index % _PERIOD])
        tracks = [
            {
                "object_id": object_id,
                "state": "lost" if index % 400 > 380 and object_id == 1 else "tracked",
                "branch": "propagation",
                "area_px": int(np.pi * (size_hw[0] / 7) ** 2),
                "box_xyxy": None,
                "confidence": 0.95,
                "reliability": 0.9 - 0.6 * (index % 333 > 320),
                "events": [],
            }
            for object_id in range(1, objects + 1)
        ]
        name = f"{index:05d}"
        lines.append(json.dumps({"frame": index, "name": name, "pts_s": 0, "objects": tracks}))
    (out / "tracks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    save_json(out / "run.json", {"schema_version": RUN_JSON_SCHEMA, "state": "complete"})


def resident_mib(pid: int) -> float:
    """Return the resident set of a process in MiB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def measure(page: Any, server_pid: int, frames: int, seeks: int) -> dict[str, Any]:
    """Use the page, and return the figures."""
    rng = np.random.default_rng(1)

    def page_mib() -> float:
        pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdecimal()]
        return max(resident_mib(pid) for pid in pids if _is_renderer(pid))

    def show(index: int) -> float:
        before_s = time.perf_counter()
        page.locator("#frame-number").fill(str(index))
        page.locator("#frame-number").press("Enter")
        page.wait_for_selector(f'#canvas[data-frame="{index}"]')
        return 1000 * (time.perf_counter() - before_s)

    last = _FIRST_STEP + _STEPS
    steps_ms = [show(index) for index in range(_FIRST_STEP, last)]
    back_ms = [show(index) for index in range(last, _FIRST_STEP, -1)]
    seeks_ms, memory = [], {}
    for number, index in enumerate(rng.integers(0, frames, seeks)):
        if number == seeks // 3:
            memory["third"] = resident_mib(server_pid), page_mib()
        seeks_ms.append(show(int(index)))
    memory["end"] = resident_mib(server_pid), page_mib()
    page.evaluate("""() => {
        window.gaps = []; let last = performance.now();
        const tick = now => { gaps.push(now - last); last = now; requestAnimationFrame(tick); };
        requestAnimationFrame(tick);
    }""")
    box = page.locator("#canvas").bounding_box()
    mouse = page.mouse
    mouse.move(box["x"] + 200, box["y"] + 200)
    mouse.down()
    for t in range(120):
        mouse.move(box["x"] + 200 + 3 * t, box["y"] + 200 + 60 * np.sin(t / 9))
    mouse.up()
    gaps_ms = page.evaluate("() => window.gaps")
    before_s = time.perf_counter()
    page.wait_for_selector("#saved:text('Saved')")
    return {
        "step_ms": _summary(steps_ms),
        "step_back_ms": _summary(back_ms),
        "seek_ms": _summary(seeks_ms),
        "stroke_gap_ms": _summary(gaps_ms),
        "save_s": round(time.perf_counter() - before_s, 2),
        "server_mib": [round(memory[key][0]) for key in ("third", "end")],
        "page_mib": [round(memory[key][1]) for key in ("third", "end")],
    }


def _is_renderer(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return b"--type=renderer" in command and b"chromium" in command


def _summary(values: list[float]) -> dict[str, float]:
    median, p95 = np.percentile(values, [50, 95])
    return {"n": len(values), "median": round(median), "p95": round(p95), "max": round(max(values))}


def main() -> int:
    """Parse the arguments, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--frame-size", default="3840x2160", help="[%(default)s]")
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--seeks", type=int, default=150, help="random frames [%(default)s]")
    parser.add_argument("--folder", type=Path, help="keep clip and results here")
    given = parser.parse_args()
    if given.frames <= _FIRST_STEP + _STEPS:
        parser.error(f"--frames must be above {_FIRST_STEP + _STEPS}, the last frame of the steps")
    from playwright.sync_api import sync_playwright

    size_hw = frame_size_hw_from_text(given.frame_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        video, out = folder / "clip.mp4", folder / "out"
        folder.mkdir(exist_ok=True)
        if not video.exists():
            write_video(video, given.frames, size_hw)
        if not out.exists():
            write_results(out, given.frames, size_hw, given.objects)
        shutil.rmtree(out / "corrections", ignore_errors=True)  # of the last time
        load = load_average()
        before_s = time.perf_counter()
        server = subprocess.Popen(
            [sys.executable, "-c", _MAIN, "studio", str(video), "-o", str(out), "--no-browser"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert server.stdout is not None
            address = server.stdout.readline().strip()
            started_s = time.perf_counter() - before_s
            with sync_playwright() as driver:
                browser = driver.chromium.launch(executable_path=_CHROMIUM, args=_ARGUMENTS)
                page = browser.new_page(viewport={"width": 1280, "height": 800})
                before_s = time.perf_counter()
                page.goto(address)
                page.wait_for_selector("#canvas[data-frame]")
                opened_s = time.perf_counter() - before_s
                figures = measure(page, server.pid, given.frames, given.seeks)
                browser.close()
        finally:
            server.terminate()
            server.wait()
    figures = {
        "load_average": load,
        "start_s": round(started_s, 1),
        "open_s": round(opened_s, 1),
        **figures,
    }
    for name, value in figures.items():
        print(f"{name:14} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
