"""What MkDocs does not do by itself: pages that lie beside docs/ are part of the site, README.md as its first."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
BESIDE = {"README.md": "index.md", "PAPER.md": "PAPER.md", "LOG.md": "LOG.md", "CHANGELOG.md": "CHANGELOG.md"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for name, place in BESIDE.items():
        text = re.sub(r"\]\(docs/", "](", (ROOT / name).read_text(encoding="utf-8"))
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that lead out of docs/ lead to these pages."""
    outside = "../" * (page.file.src_uri.count("/") + 1)
    return re.sub(
        rf"\]\({re.escape(outside)}(\w+\.md)", lambda link: f"]({outside[3:]}{BESIDE.get(link[1], link[1])}", markdown
    )
