"""Write the generated documents: man pages, and the tables of the README.

`python3 -m netbpf.docs DIR` writes all man pages; `--readme FILE` renews the generated parts of
FILE, with `--check` it only reports whether they are current.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from netbpf.declare.tool import all_tools
from netbpf.docs.manual import man_page
from netbpf.docs.overview import overview_page
from netbpf.docs.readme import renew
from netbpf.errors import EXIT_FAILURE


def write_pages(directory: Path) -> list[Path]:
    """Write the man pages of all tools and of netbpf itself; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    pages = {"netbpf": overview_page()}
    pages.update({f"netbpf-{tool.name}": man_page(tool) for tool in all_tools()})
    paths = []
    for name, text in pages.items():
        paths.append(directory / f"{name}.8")
        paths[-1].write_text(text, encoding="utf-8")
    return paths


def main(words: Optional[Sequence[str]] = None) -> int:
    """Do what this module's docstring says; return the exit code."""
    parser = argparse.ArgumentParser(prog="netbpf.docs", description=__doc__)
    parser.add_argument("directory", nargs="?", type=Path, metavar="DIR")
    parser.add_argument("--readme", type=Path, metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args(words)
    if given.directory:
        write_pages(given.directory)
    if given.readme:
        old = given.readme.read_text(encoding="utf-8")
        new = renew(old)
        if given.check and new != old:
            print(f"{given.readme} is out of date: make readme", file=sys.stderr)
            return EXIT_FAILURE
        given.readme.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
