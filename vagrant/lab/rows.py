"""The list of machines: reading kernels.yaml, choosing rows, and what a box depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

VAGRANT = Path(__file__).resolve().parents[1]
PROJECT = VAGRANT.parent
# What a box is made with. The project's own code is not: a machine gets that when it starts.
INGREDIENTS = (
    "vagrant/mkbox.sh",
    "vagrant/provision.sh",
    "scripts/setup.sh",
    "pyproject.toml",
    "setup.cfg",
)


class UnknownKernel(Exception):
    """A word that names neither a row nor a kernel."""


@dataclass(frozen=True)
class Row:
    """A machine; kernels.yaml says what the members are."""

    name: str
    userland: str
    kernel: str
    package: str
    suite: str
    ci: bool
    why: str
    extra: tuple[str, ...] = ()

    def runs(self, release: str) -> bool:
        """Return whether `release` (of uname) is of this row's kernel: 6.1 is not 6.12."""
        return release == self.kernel or release.startswith((self.kernel + ".", self.kernel + "-"))


def read_rows(path: Path = VAGRANT / "kernels.yaml") -> list[Row]:
    """Return the rows of kernels.yaml in its order."""
    found = yaml.safe_load(path.read_text())
    return [Row(**{**row, "extra": tuple(row.get("extra", ()))}) for row in found]


def select(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Return the rows that `wanted` names, in the order of the list.

    It is a comma list of names and kernels, "all", or "" for those that continuous integration
    runs. Raises UnknownKernel.
    """
    words = [word.strip() for word in wanted.split(",") if word.strip()]
    if not words:
        return [row for row in rows if row.ci]
    for word in words:
        if word != "all" and not any(word in (row.name, row.kernel) for row in rows):
            raise UnknownKernel(word)
    return [row for row in rows if {"all", row.name, row.kernel} & set(words)]


def namesake(rows: Iterable[Row], row: Row) -> bool:
    """Return whether `row` is the one whose recording bears its kernel's name: the first."""
    return next(other for other in rows if other.kernel == row.kernel) == row


def box_key(row: Row, project: Path = PROJECT) -> str:
    """Return what changes whenever the row's box would be made in another way."""
    made_of = {
        "name": row.name,
        "userland": row.userland,
        "kernel": row.kernel,
        "package": row.package,
        "suite": row.suite,
        "extra": row.extra,
    }
    digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode())
    for name in INGREDIENTS:
        digest.update(hashlib.sha256((project / name).read_bytes()).digest())
    return digest.hexdigest()
