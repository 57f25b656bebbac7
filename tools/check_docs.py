#!/usr/bin/env python3
"""Check that what README.md and docs/*.md say can be done.

    python tools/check_docs.py
    python tools/check_docs.py --run docs/quickstart.md docs/tutorial.md
    python tools/check_docs.py --update

The first reads every command with the parser of its tool, config keys included, and looks for the
files, links, headings, images and imports that the pages name. The second also runs the commands,
page by page and in order, in a copy of the project (--scratch: which is kept). A block is left out
where it plainly needs more than a small machine (`NEEDS` in docscheck/running.py) or the page says
why, before its fence: <!-- not run: takes hours -->; or something else is run in its place:
<!-- run as: make help -->. The third rewrites the table of imports in docs/design.md.
The exit code is 1 if something is wrong.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from docscheck.commands import check_commands  # noqa: E402
from docscheck.imports import BEGIN, check_imports, with_table  # noqa: E402
from docscheck.pages import (  # noqa: E402
    Page,
    Problem,
    check_inline_code,
    check_links,
    check_other_blocks,
    read_page,
)
from docscheck.running import copy_project, run_page  # noqa: E402

from solo_d2.files import save_text  # noqa: E402


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("pages", nargs="*", type=Path, metavar="PAGE", help="default: README.md and docs/*.md")
    add("--run", action="store_true", help="run the commands too")
    add("--update", action="store_true", help="rewrite tables that are made from the code first")
    add(
        "--scratch", type=Path, metavar="DIR", help="copy of the project to run in; made if missing"
    )
    add("--timeout", type=float, default=1800, metavar="SECONDS", help="of a block; default: 1800")
    return parser.parse_args(argv)


def default_pages(root: Path) -> list[Path]:
    """README.md, then the pages of the site: those that others build on first, then by name."""
    first = [root / "docs" / f"{name}.md" for name in ("index", "install", "quickstart")]
    others = sorted(set((root / "docs").glob("*.md")) - set(first))
    return [root / "README.md", *filter(Path.is_file, first), *others]


def check_page(page: Page, root: Path) -> Iterator[Problem]:
    """Everything that does not hold in a page."""
    yield from check_links(page)
    yield from check_inline_code(page, root)
    yield from check_other_blocks(page)
    yield from check_commands(page, root)
    yield from check_imports(page, root)


def update_tables(files: Sequence[Path]) -> None:
    """Rewrite the tables that are made from the code."""
    for file in files:
        text = file.read_text(encoding="utf-8")
        if BEGIN in text:
            save_text(file, with_table(text, ROOT))


def run_pages(pages: Sequence[Page], args: argparse.Namespace) -> int:
    """Run the commands of pages and report; returns the number of failures."""
    scratch = nullcontext(args.scratch) if args.scratch else tempfile.TemporaryDirectory()
    failures = 0
    with scratch as folder:
        target = Path(folder).resolve()
        copy_project(ROOT, target)
        for page in pages:
            for outcome in run_page(page, target, timeout=args.timeout):
                print(outcome, flush=True)
                failures += outcome.state == "failed"
    return failures


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = parse_args(argv)
    files = [file.resolve() for file in args.pages or default_pages(ROOT)]
    if args.update:
        update_tables(files)
    pages = [read_page(file) for file in files]
    problems = [problem for page in pages for problem in check_page(page, ROOT)]
    print(*problems, sep="\n", end="\n" if problems else "")
    print(f"{len(pages)} pages, {len(problems)} problems", flush=True)
    failures = run_pages(pages, args) if args.run else 0
    return int(bool(problems or failures))


if __name__ == "__main__":
    sys.exit(main())
