"""Write the generated documentation: man pages, and the tables of Markdown files.

`python3 -m netbpf.docs DIR` writes all man pages to DIR. `--tables FILE...` renews the generated
tables of these files; with `--check` it writes nothing and fails if a table is out of date.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional

from netbpf.declare.aliases import all_aliases
from netbpf.declare.tool import all_tools
from netbpf.docs.alias_manual import alias_page
from netbpf.docs.manual import man_page
from netbpf.docs.overview import overview_page
from netbpf.docs.tables import renew
from netbpf.errors import EXIT_FAILURE


def write_pages(directory: Path) -> list[Path]:
    """Write the man pages of netbpf, its tools and aliases to `directory`; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {"netbpf": overview_page()}
    pages.update({f"netbpf-{tool.name}": man_page(tool) for tool in all_tools()})
    pages.update({f"netbpf-{alias.name}": alias_page(alias) for alias in all_aliases()})
    paths = []
    for name, text in pages.items():
        paths.append(directory / f"{name}.8")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def outdated(paths: Iterable[Path]) -> dict[Path, str]:
    """Return {path: new text} of the files whose generated tables are out of date."""
    texts = {path: path.read_text(encoding="utf-8") for path in paths}
    return {path: new for path, text in texts.items() if (new := renew(text)) != text}


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the command line that the module's docstring describes; return the exit code."""
    parser = argparse.ArgumentParser(prog="netbpf.docs", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--tables", nargs="+", type=Path, default=[], metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing")
    options = parser.parse_args(arguments)
    if options.directory:
        write_pages(options.directory)
    stale = outdated(options.tables)
    for path, text in stale.items():
        if options.check:
            print(f"{path} is out of date: run make readme", file=sys.stderr)
        else:
            path.write_text(text, encoding="utf-8")
    return EXIT_FAILURE if stale and options.check else 0


if __name__ == "__main__":
    sys.exit(main())
