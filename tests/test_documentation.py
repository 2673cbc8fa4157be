"""README and docs name only files, options, commands and Python names that exist."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest
import typer.main

from mpn.cli.main import app
from tests.conftest import REPOSITORY

PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    *sorted(p.name for p in (REPOSITORY / "docs").glob("*.md")),
)
OTHER_TOOLS = {
    "--no-deps",
    "--debug",
    "--gpus",
    "--no-python",
    "--nproc-per-node",
    "--help",
    "--find-links",
    "--job-name",
    "--array",
    "--cpus-per-task",
    "--mem",
    "--time",
    "--requeue",
    "--head",
    "--port",
    "--disable-usage-stats",
}
"""Options of docker, torchrun, pip, click and sbatch, and --debug, which Typer does not define."""
CONTAINER_TOOLS = {
    "--cap-drop",
    "--cgroup-manager",
    "--cpus",
    "--isolation",
    "--memory",
    "--network",
    "--read-only",
    "--secret",
    "--security-opt",
    "--time",
    "--ulimit",
    "--user",
}
"""Options of docker, podman and buildah."""

_LINK = re.compile(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)")
_OPTION = re.compile(r"(?<![\w-])--[a-z][a-z-]+[a-z]")
_MODULE = re.compile(r"python -m (benchmarks(?:\.\w+)+)")
_PAGE = re.compile(r"\bdocs/\w+\.md\b")
_PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)


def page_path(name: str) -> Path:
    path = REPOSITORY / name
    return path if path.exists() else REPOSITORY / "docs" / name


def missing_links(path: Path, text: str) -> list[str]:
    targets = [t for t in _LINK.findall(text) if "://" not in t]
    return [t for t in targets if not (path.parent / t).exists()]


def command_options(command: object) -> Iterator[str]:
    for parameter in getattr(command, "params", ()):
        yield from (*parameter.opts, *parameter.secondary_opts)
    for child in getattr(command, "commands", {}).values():
        yield from command_options(child)


def known_options() -> set[str]:
    scripts = [p for name in ("benchmarks", "tools") for p in (REPOSITORY / name).rglob("*.py")]
    in_scripts = {o for p in scripts for o in _OPTION.findall(p.read_text(encoding="utf-8"))}
    return (
        OTHER_TOOLS
        | CONTAINER_TOOLS
        | in_scripts
        | set(command_options(typer.main.get_command(app)))
    )


def unknown_options(text: str, known: set[str]) -> list[str]:
    return [option for option in _OPTION.findall(text) if option not in known]


def missing_modules(text: str) -> list[str]:
    files = {name: REPOSITORY / Path(*name.split(".")) for name in _MODULE.findall(text)}
    return [n for n, p in files.items() if not (p.with_suffix(".py").exists() or p.is_dir())]


def missing_names(code: str) -> list[str]:
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("mpn"):
            module = import_module(node.module)
            missing += [a.name for a in node.names if not hasattr(module, a.name)]
    return missing


def missing_pages(text: str) -> list[str]:
    return [page for page in _PAGE.findall(text) if not (REPOSITORY / page).is_file()]


@pytest.mark.parametrize("folder", ["src", "benchmarks", "tools", "tests"])
def test_pages_named_in_source_exist(folder: str) -> None:
    for path in (REPOSITORY / folder).rglob("*.py"):
        if path != Path(__file__):
            assert missing_pages(path.read_text(encoding="utf-8")) == [], path


@pytest.mark.parametrize("name", PAGES)
def test_page_links_resolve(name: str) -> None:
    path = page_path(name)
    assert missing_links(path, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("name", PAGES)
def test_page_options_and_modules_exist(name: str) -> None:
    text = page_path(name).read_text(encoding="utf-8")
    assert unknown_options(text, known_options()) == []
    assert missing_modules(text) == []


@pytest.mark.parametrize("name", PAGES)
def test_page_python_imports_resolve(name: str) -> None:
    for code in _PYTHON.findall(page_path(name).read_text(encoding="utf-8")):
        assert missing_names(code) == []


def test_page_checks_find_missing_names() -> None:
    """Control: each check reports a wrong page."""
    assert missing_links(REPOSITORY / "README.md", "[a](docs/none.md)") == ["docs/none.md"]
    assert missing_pages("see docs/adaptation.md and docs/crf.md") == ["docs/adaptation.md"]
    assert unknown_options("`--adapt-stepz 3`", known_options()) == ["--adapt-stepz"]
    assert missing_modules("python -m benchmarks.none.at_all") == ["benchmarks.none.at_all"]
    assert missing_names("from mpn import NoSuchName") == ["NoSuchName"]
