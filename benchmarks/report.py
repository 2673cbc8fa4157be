"""Tables and plots from committed JSON, and whether a new result is a regression.

    python benchmarks/report.py
        writes them into README.md, docs/benchmarks.md and docs/plots
    python benchmarks/report.py --check
        exit code 1 if one of them is not what the JSON gives
    python benchmarks/report.py --compare OLD.json NEW.json [--force]
        a row a figure; exit code 1: a regression, 2: the files cannot be compared

In README.md and docs/benchmarks.md everything between the two ``results`` comments is replaced. A
result that is named ``...-choice-...`` tells why something is as it is; README leaves it out.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from compare_results import print_comparison
from report_adaptation import adapt_step_table, adaptation_table
from report_crf import crf_speed_table
from report_parts import (
    evaluation_speed_table,
    export_table,
    flow_accuracy_table,
    precision_table,
    vanish_return_table,
)
from report_pipeline import compare_torch_table, davis_table, fps_table
from report_plots import Plot, plots_of
from report_text import Result, not_measured
from result_format import ResultError, load_result

ROOT = Path(__file__).resolve().parents[1]
TABLES: dict[str, tuple[str, Callable[[Result, bool], str]]] = {
    "davis": ("Accuracy and speed on DAVIS", davis_table),
    "fps": ("Speed", fps_table),
    "compare_torch": ("Against eager PyTorch", compare_torch_table),
    "adaptation": ("Fine-tuning on the first frame", adaptation_table),
    "adapt_step": ("A step of fine-tuning", adapt_step_table),
    "vanish_return": ("Objects that vanish and return", vanish_return_table),
    "precision": ("Half precision", precision_table),
    "flow_accuracy": ("Flow", flow_accuracy_table),
    "crf_speed": ("DenseCRF", crf_speed_table),
    "evaluation_speed": ("Scoring", evaluation_speed_table),
    "export_table": ("Exports", export_table),
}
"""Heading and table of each benchmark, in the order in which they are told."""
CHOICE = "-choice-"
"""In the name of a result that docs/benchmarks.md alone tells."""
_SECTION = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)


def load_results(folder: Path) -> dict[str, Result]:
    """Every result in a folder by the name of its file, in the order in which they are told.

    Raises:
        ResultError: If a file is not in the format, or of a benchmark without a table.
    """
    results = {path.stem: load_result(path) for path in sorted(folder.glob("*.json"))}
    for name, result in results.items():
        if result["benchmark"] not in TABLES:
            raise ResultError(
                f"{name}.json: there is no table for the benchmark '{result['benchmark']}': add "
                "one to TABLES in report.py"
            )
    order = list(TABLES)
    return dict(sorted(results.items(), key=lambda item: order.index(item[1]["benchmark"])))


def generated(root: Path) -> dict[Path, str]:
    """What the results give: every file of the report, and its text."""
    results = load_results(root / "benchmarks" / "results")
    plots = {name: plots_of(name, result) for name, result in results.items()}
    readme, docs = root / "README.md", root / "docs" / "benchmarks.md"
    folder = root / "docs" / "plots"
    files = {
        readme: _with_section(readme, _section(results, plots, "docs/plots", is_short=True)),
        docs: _with_section(docs, _section(results, plots, "plots", is_short=False)),
    }
    files |= {folder / plot.file_name: plot.svg for made in plots.values() for plot in made}
    return files


def _section(
    results: Mapping[str, Result],
    plots: Mapping[str, list[Plot]],
    plot_folder: str,
    *,
    is_short: bool,
) -> str:
    parts = []
    for kind, (heading, write) in TABLES.items():
        names = [
            name
            for name, result in results.items()
            if result["benchmark"] == kind and not (is_short and CHOICE in name)
        ]
        for number, name in enumerate(names):
            lines = [f"### {heading}\n"] if number == 0 else []
            lines.append(write(results[name], is_short))
            shown = plots[name][:1] if is_short else plots[name]
            lines += [f"![{p.alternative}]({plot_folder}/{p.file_name})\n" for p in shown]
            if not is_short:
                lines.append(f"From `benchmarks/results/{name}.json`.\n")
            parts.append("\n".join(lines))
    parts.append(f"### Not measured\n\n{not_measured(results)}")
    return "\n" + "\n".join(parts) + "\n"


def _with_section(path: Path, section: str) -> str:
    before = path.read_text(encoding="utf-8")
    after, replaced = _SECTION.subn(lambda match: match[1] + section + match[2], before)
    if replaced != 1:
        raise ResultError(f"{path}: there must be one <!-- results --> section, found {replaced}")
    return after


def stale_files(root: Path) -> list[Path]:
    """Files of the report that are not what the results give, and plots that nothing gives."""
    files = generated(root)
    stale = [
        path
        for path, text in files.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    left_over = [path for path in (root / "docs" / "plots").glob("*.svg") if path not in files]
    return [*stale, *sorted(left_over)]


def write_report(root: Path) -> list[Path]:
    """Write what is stale, and remove plots that nothing gives; the paths that changed."""
    files = generated(root)
    changed = stale_files(root)
    for path in changed:
        if path in files:
            path.parent.mkdir(exist_ok=True)
            path.write_text(files[path], encoding="utf-8")
        else:
            path.unlink()
    return changed


def main() -> int:
    """Write, check or compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing, tell what is stale")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD.json", "NEW.json"))
    parser.add_argument(
        "--force", action="store_true", help="compare even what was measured differently"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.compare:
            return print_comparison(*given.compare, force=given.force)
        changed = stale_files(given.root) if given.check else write_report(given.root)
    except ResultError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if given.compare else 1
    for path in changed:
        print(f"{'stale' if given.check else 'written'}: {path.relative_to(given.root)}")
    if given.check and changed:
        print(
            "error: the report is not what the JSON gives: python benchmarks/report.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
