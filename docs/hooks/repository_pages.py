"""Show Markdown files outside docs/ as pages of the site (a MkDocs hook).

README.md becomes the start page. Links between these files and docs/ are rewritten, so that the
same text works in a checkout and on the site.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

PAGES = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
    "security_policy.md": "SECURITY.md",
    "model_card.md": "weights/lite/MODEL_CARD.md",
}
"""Page of the site -> file of the repository."""
_SOURCES = {source: page for page, source in PAGES.items()}
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):(?=<code)")
_LINK = re.compile(r"(\]\()([^)\s#]+\.md)(#[^)\s]*)?\)|(\]\()(docs/[^)\s]+|LICENSE)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made from files of the repository."""
    root = Path(config.config_file_path).parent
    for page, source in PAGES.items():
        text = (root / source).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    licence = (root / "LICENSE").read_text(encoding="utf-8")
    files.append(File.generated(config, "LICENSE.txt", content=licence))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Replace links between files by links between pages of the site."""
    source = PAGES.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    folder = posixpath.dirname(source)

    def link(match: re.Match[str]) -> str:
        opening, target, anchor = match[1] or match[4], match[2] or match[5], match[3] or ""
        path = posixpath.normpath(posixpath.join(folder, target))
        return f"{opening}{_page_of(path)}{anchor})"

    return _LINK.sub(link, markdown)


def on_page_content(html: str, **_: object) -> str:
    """Remove the roles of reStructuredText in docstrings, as in :class:`Pipeline`."""
    return _ROLE.sub("", html)


def _page_of(path: str) -> str:
    if path == "LICENSE":
        return "LICENSE.txt"
    return _SOURCES.get(path, path.removeprefix("docs/"))
