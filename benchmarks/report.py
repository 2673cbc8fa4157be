"""Write the results section of README.md from committed JSON.

    python benchmarks/report.py [--check]

Everything between the two ``results`` comments is replaced; ``--check`` only says, by its exit
code, whether README is what the JSON gives.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
_SECTION = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_NAMES = {
    "warp": "the lite engines' warp alone, no network",
    "propagation": "the lite engines (what `mpn-run` does)",
    "paper-warp": "warp alone, neither flow check nor colours",
    "paper-propagation": "network without flow check and colours",
}


def davis_section(result: dict[str, Any]) -> str:
    """J, F and speed over a DAVIS folder, one row a set of stages."""
    machine, data = result["machine"], result["data"]
    frames = sum(data["sequences"].values())
    lines = [
        f"Lite engines on {len(data['sequences'])} DAVIS sequences at 854x480 ({frames} frames, "
        f"set `{data['set']}`; one of them a composite of two objects), no fine-tuning on the "
        f"first frame, {machine['processor']}, {result['threads']} threads "
        "(`benchmarks/davis.py`; wall: decode, segment, save the PNG, in one thread):",
        "",
        "| stages | J | F | J&F | wall FPS |",
        "|---|---|---|---|---|",
    ]
    for name, run in result["ablations"].items():
        lines.append(
            f"| {_NAMES.get(name, name)} | {run['J-Mean']:.3f} | {run['F-Mean']:.3f} "
            f"| {run['J&F-Mean']:.3f} | {run['wall_fps']:.1f} |"
        )
    shipped = result["ablations"]["propagation"]["objects"]
    lines += ["", "| object | J | F |", "|---|---|---|"]
    lines += [f"| {k} | {v['J-Mean']:.3f} | {v['F-Mean']:.3f} |" for k, v in shipped.items()]
    return "\n".join(lines) + "\n"


def fps_section(result: dict[str, Any]) -> str:
    """Engine-only, pipeline and wall FPS against the number of objects."""
    height, width = result["frame_size_hw"]
    lines = [
        f"Speed on the built-in clip, {width}x{height}, {result['machine']['processor']}, "
        f"{result['backend']['threads']} threads, {result['frames']} frames after "
        f"{result['warmup']} of warm-up (`benchmarks/fps.py`). *Engine*: the network alone; "
        "*pipeline*: all stages, frames in memory; *wall*: from decoding the video to masks and "
        "overlay written.",
        "",
        "| objects | engine FPS | pipeline FPS | wall FPS | peak memory |",
        "|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        lines.append(
            f"| {run['objects']} | {run['engine_only']['fps']:.0f} "
            f"| {run['pipeline']['fps']:.0f} | {run['wall']['fps']:.0f} "
            f"| {run['wall']['peak_memory_mib']:.0f} MiB |"
        )
    return "\n".join(lines) + "\n"


def export_section(result: dict[str, Any]) -> str:
    """Exports of the paper-size networks and how far they are from PyTorch."""
    lines = [
        "Exports of the paper-size networks (random weights, 854x480, crop 513; "
        "`benchmarks/export_table.py`), compared with PyTorch in float32:",
        "",
        "| network | precision | nodes | MiB | half weights | export | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["results"]:
        measures = [m for case in row["parity"]["cases"] for m in case["measures"]]
        worst = max(measures, key=lambda m: _share_of_limit(m["value"], m["limit"], m["measure"]))
        lines.append(
            f"| {row['variant']} | {row['precision']} | {row['nodes']} "
            f"| {row['size_bytes'] / 2**20:.0f} | {row['half_weights']}/{row['total_weights']} "
            f"| {row['export_s']:.0f} s | {worst['measure']} {worst['value']:.2g} "
            f"(limit {worst['limit']:g}) |"
        )
    return "\n".join(lines) + "\n"


def _share_of_limit(value: float, limit: float, measure: str) -> float:
    if measure == "mask_iou":  # a floor, not a ceiling
        return (1 - value) / (1 - limit)
    return value / limit


def main() -> None:
    """Fill in README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    parts = (
        (davis_section, "davis-lite"),
        (fps_section, "fps-lite"),
        (export_section, "export_table"),
    )
    section = "\n".join(
        write(json.loads((RESULTS / f"{name}.json").read_text())) for write, name in parts
    )
    before = README.read_text()
    after = _SECTION.sub(lambda m: m.group(1) + section + m.group(2), before)
    if arguments.check:
        sys.exit(0 if before == after else "README's results are not those of the JSON")
    README.write_text(after)
    print(section)


if __name__ == "__main__":
    main()
