"""Write the report from committed JSON, check it, or compare two results.

    python -m benchmarks.report
        write docs/results.md, docs/plots and the headline table of README.md
    python -m benchmarks.report --check
        exit with 1 if one of them does not match the JSON
    python -m benchmarks.report --compare OLD.json NEW.json [--force]
        print one row per figure; exit with 1 on a regression, with 2 if they cannot be compared

Results in ``benchmarks/results/headline`` get all their tables and plots; those in
``benchmarks/results/ablations`` compare settings and get one short table. In README.md the text
between the two ``results`` comments is replaced.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from benchmarks.report.plots import SUFFIXES, Plot, draw, is_stale, plots_of
from benchmarks.report.regressions import print_comparison
from benchmarks.report.schema import Result, ResultError, load_result
from benchmarks.report.tables import TABLES, headline_table, not_measured
from mpn.errors import MpnError

ROOT = Path(__file__).resolve().parents[2]
HEADLINE, ABLATIONS = "headline", "ablations"
_SECTION = re.compile(r"(<!-- results -->\n).*?(<!-- /results -->)", re.DOTALL)
_PREFACE = """# Results

`python -m benchmarks.report` writes this page from `benchmarks/results/`; \
[benchmarks.md](benchmarks.md) explains the commands and the terms. Times are medians unless a \
table names another figure.
"""


def load_results(root: Path, group: str) -> dict[str, Result]:
    """Read all results of a group by file name, in the order of the report.

    Raises:
        ResultError: If a file is not in the common format, or its benchmark has no table.
    """
    folder = root / "benchmarks" / "results" / group
    results = {path.stem: load_result(path) for path in sorted(folder.glob("*.json"))}
    for name, result in results.items():
        if result["benchmark"] not in TABLES:
            raise ResultError(
                f"{name}.json: there is no table for the benchmark '{result['benchmark']}': add "
                "one to TABLES in benchmarks/report/tables.py"
            )
    order = list(TABLES)
    return dict(sorted(results.items(), key=lambda item: order.index(item[1]["benchmark"])))


def generate(root: Path) -> tuple[dict[Path, str], list[Plot]]:
    """Return the text of each page of the report, and its plots."""
    headline, ablations = (load_results(root, group) for group in (HEADLINE, ABLATIONS))
    plots = {name: plots_of(name, result) for name, result in headline.items()}
    readme = root / "README.md"
    parts = [_PREFACE]
    for group, results in ((HEADLINE, headline), (ABLATIONS, ablations)):
        if group == ABLATIONS and results:
            parts.append("## Ablations\n\nComparisons behind the defaults.\n")
        parts += _sections(group, results, plots)
    parts.append(f"## Not measured\n\n{not_measured({**headline, **ablations})}")
    pages = {
        readme: _with_section(readme, f"\n{headline_table(headline)}\n"),
        root / "docs" / "results.md": "\n".join(parts),
    }
    return pages, [plot for of_result in plots.values() for plot in of_result]


def _sections(
    group: str, results: Mapping[str, Result], plots: Mapping[str, list[Plot]]
) -> Iterable[str]:
    level = "##" if group == HEADLINE else "###"
    for kind, (heading, write) in TABLES.items():
        names = [name for name, result in results.items() if result["benchmark"] == kind]
        for number, name in enumerate(names):
            lines = [f"{level} {heading}\n"] if number == 0 else []
            lines.append(write(results[name], group == ABLATIONS))
            lines += [f"![{p.alternative}](plots/{p.name}.svg)\n" for p in plots.get(name, ())]
            lines.append(f"From `benchmarks/results/{group}/{name}.json`.\n")
            yield "\n".join(lines)


def _with_section(path: Path, section: str) -> str:
    before = path.read_text(encoding="utf-8")
    after, replaced = _SECTION.subn(lambda match: match[1] + section + match[2], before)
    if replaced != 1:
        raise ResultError(f"{path}: expected one <!-- results --> section, found {replaced}")
    return after


def stale_files(root: Path) -> list[Path]:
    """Return files that do not match the results, and plots of no result."""
    pages, plots = generate(root)
    stale = [
        path
        for path, text in pages.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    folder = root / "docs" / "plots"
    files = {folder / f"{plot.name}{suffix}": plot for plot in plots for suffix in SUFFIXES}
    stale += [path for path, plot in files.items() if is_stale(plot, path)]
    return stale + sorted(path for path in folder.glob("*") if path not in files)


def write_report(root: Path) -> list[Path]:
    """Write stale files and remove plots of no result; return the changed paths.

    Raises:
        MissingExtraError: If a plot is stale and matplotlib is not installed.
    """
    pages, plots = generate(root)
    by_name = {plot.name: plot for plot in plots}
    changed = stale_files(root)
    for path in changed:
        path.parent.mkdir(exist_ok=True)
        if path in pages:
            path.write_text(pages[path], encoding="utf-8")
        elif path.stem in by_name and path.suffix in SUFFIXES:
            draw(by_name[path.stem], path)
        else:
            path.unlink()
    return changed


def main() -> int:
    """Write, check or compare."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="write nothing, list stale files")
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("OLD.json", "NEW.json"))
    parser.add_argument(
        "--force", action="store_true", help="compare results of different conditions too"
    )
    parser.add_argument("--root", type=Path, default=ROOT, help=argparse.SUPPRESS)
    given = parser.parse_args()
    try:
        if given.compare:
            return print_comparison(*given.compare, force=given.force)
        changed = stale_files(given.root) if given.check else write_report(given.root)
    except MpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if given.compare else 1
    for path in changed:
        print(f"{'stale' if given.check else 'written'}: {path.relative_to(given.root)}")
    if given.check and changed:
        print(
            "error: the report does not match the JSON: python -m benchmarks.report",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
