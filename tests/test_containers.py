"""The Dockerfiles name files that the build context has; no image is built here."""

from __future__ import annotations

import json
import re
import tomllib

import pytest

from tests.conftest import REPOSITORY

CPU, CUDA = "Dockerfile", "Dockerfile.cuda"
_SETTINGS_OF_AN_INDEX = re.compile(r"https?://|index-url|trusted-host|_proxy\b", re.IGNORECASE)


def text_of(name: str) -> str:
    return (REPOSITORY / name).read_text(encoding="utf-8")


def instructions(text: str) -> list[tuple[str, str]]:
    """Return name and arguments of each instruction, without comments, lines joined."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [
        (name, arguments.strip())
        for name, _, arguments in (line.partition(" ") for line in joined.splitlines())
        if name
    ]


def arguments_of(text: str, instruction: str) -> list[str]:
    return [arguments for name, arguments in instructions(text) if name == instruction]


def copied(text: str) -> set[str]:
    """Return the paths that are copied from the build context."""
    copies = [a.split() for a in arguments_of(text, "COPY") if not a.startswith("--from")]
    return {path.removeprefix("./") for paths in copies for path in paths[:-1]}


def context() -> set[str]:
    """Return the paths of the build context: .dockerignore excludes all but these."""
    first, *patterns = [p for p in text_of(".dockerignore").splitlines() if p[:1] not in ("", "#")]
    assert first == "*"
    return {pattern[1:] for pattern in patterns if pattern.startswith("!")}


def outside_of_context(paths: set[str]) -> set[str]:
    held = {path for path in paths if path.split("/")[0] in context()}
    return {path for path in paths if path not in held or not (REPOSITORY / path).exists()}


@pytest.mark.parametrize("name", [CPU, CUDA])
def test_dockerfile_copies_files_of_the_context(name: str) -> None:
    assert copied(text_of(name)) >= {"pyproject.toml", "src"}
    assert not outside_of_context(copied(text_of(name)))


def test_context_check_finds_ignored_and_missing_files() -> None:
    text = "COPY src/gone \\\n  tests ./\nCOPY --from=build /code /opt\nCOPY src ./"
    assert outside_of_context(copied(text)) == {"src/gone", "tests"}


def test_context_has_only_files_that_are_copied() -> None:
    assert context() == copied(text_of(CPU))


@pytest.mark.parametrize("name", [CPU, CUDA])
def test_dockerfile_copies_what_the_package_names(name: str) -> None:
    """Without its readme or licence, the package does not build."""
    project = tomllib.loads(text_of("pyproject.toml"))["project"]
    assert copied(text_of(name)) >= {project["readme"], *project["license-files"]}


def test_dockerfile_defaults_exist() -> None:
    defaults = dict(a.split("=", 1) for a in arguments_of(text_of(CPU), "ARG") if "=" in a)
    extras = tomllib.loads(text_of("pyproject.toml"))["project"]["optional-dependencies"]
    assert set(defaults["EXTRAS"].split(",")) <= set(extras)
    assert (REPOSITORY / "weights" / defaults["WEIGHTS"] / "pyproject.toml").is_file()
    assert re.fullmatch(r"docker\.io/\S+:\S+@sha256:[0-9a-f]{64}", defaults["BASE_IMAGE"])


def test_image_runs_mpn_as_a_user_without_rights() -> None:
    text = text_of(CPU)
    last = text[text.rindex("\nFROM ") :]
    (user,) = arguments_of(last, "USER")
    assert all(int(number) > 0 for number in user.split(":"))
    (entry_point,) = arguments_of(last, "ENTRYPOINT")
    assert json.loads(entry_point) == ["/usr/bin/tini", "--", "mpn"]  # no shell: signals arrive


@pytest.mark.parametrize("name", [CPU, CUDA, "tools/build_image"])
def test_build_has_no_settings_of_an_index(name: str) -> None:
    """They come from the user of the build, and no layer keeps them."""
    assert not _SETTINGS_OF_AN_INDEX.search(text_of(name))
    assert _SETTINGS_OF_AN_INDEX.search("pip install --index-url https://example.org/simple x")
