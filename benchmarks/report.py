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


def main() -> None:
    """Fill in README, or check it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    section = davis_section(json.loads((RESULTS / "davis-lite.json").read_text()))
    before = README.read_text()
    after = _SECTION.sub(lambda m: m.group(1) + section + m.group(2), before)
    if arguments.check:
        sys.exit(0 if before == after else "README's results are not those of the JSON")
    README.write_text(after)
    print(section)


if __name__ == "__main__":
    main()
