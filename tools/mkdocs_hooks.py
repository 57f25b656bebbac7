"""mkdocs hooks: pages from outside of docs/, and links to files of the project."""

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
# Page of the site -> file of the project that it shows.
PAGES = {
    "changelog.md": "CHANGELOG.md",
    "configs.md": "configs/README.md",
    "contributing.md": "CONTRIBUTING.md",
}
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from outside of docs/."""
    for page, source in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links to pages at the site and links to other files at the repository."""
    shown_at = Path("docs", page.file.src_uri)
    source = Path(PAGES.get(page.file.src_uri, shown_at))
    shown = {file: name for name, file in PAGES.items()}

    def rewrite(match: re.Match[str]) -> str:
        text, target, anchor = match.group(1), match.group(2), match.group(3) or ""
        file = os.path.normpath(source.parent / target)
        if file in shown:
            return f"[{text}]({shown[file]}{anchor})"
        if Path(file).parts[0] == "docs":
            return f"[{text}]({os.path.relpath(file, shown_at.parent)}{anchor})"
        return f"[{text}]({config.repo_url}/blob/main/{file})" if config.repo_url else text

    return LINK.sub(rewrite, markdown)
