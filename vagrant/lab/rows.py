"""Read kernels.yaml, select rows, and compute what a box depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

VAGRANT = Path(__file__).resolve().parents[1]
PROJECT = VAGRANT.parent
# Inputs of a box. The project's code is copied into a machine when it boots.
INGREDIENTS = (
    "vagrant/mkbox.sh",
    "vagrant/provision.sh",
    "scripts/setup.sh",
    "pyproject.toml",
    "setup.cfg",
)


class UnknownKernel(Exception):
    """The name is neither a row nor a kernel."""


@dataclass(frozen=True)
class Row:
    """A machine; kernels.yaml describes the fields."""

    name: str
    userland: str
    kernel: str
    package: str
    suite: str
    ci: bool
    why: str
    extra: tuple[str, ...] = ()

    def runs(self, release: str) -> bool:
        """Return whether `release` (uname -r) is this row's kernel; 6.12 is not 6.1."""
        return release == self.kernel or release.startswith((self.kernel + ".", self.kernel + "-"))


def read_rows(path: Path = VAGRANT / "kernels.yaml") -> list[Row]:
    """Return the rows of kernels.yaml in file order."""
    rows = yaml.safe_load(path.read_text())
    return [Row(**{**row, "extra": tuple(row.get("extra", ()))}) for row in rows]


def select(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Return the rows that `wanted` selects, in file order.

    `wanted` is a comma-separated list of names and kernels, "all", or "" for those of CI. Raises
    UnknownKernel.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    if not names:
        return [row for row in rows if row.ci]
    for name in names:
        if name != "all" and not any(name in (row.name, row.kernel) for row in rows):
            raise UnknownKernel(name)
    return [row for row in rows if {"all", row.name, row.kernel} & set(names)]


def provides_recording(rows: Iterable[Row], row: Row) -> bool:
    """Return whether the recording of the kernel comes from `row`, the first row with it."""
    return next(other for other in rows if other.kernel == row.kernel) == row


def box_key(row: Row, project: Path = PROJECT) -> str:
    """Return a hash of the inputs of the row's box."""
    inputs = {
        "name": row.name,
        "userland": row.userland,
        "kernel": row.kernel,
        "package": row.package,
        "suite": row.suite,
        "extra": row.extra,
    }
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for name in INGREDIENTS:
        digest.update(hashlib.sha256((project / name).read_bytes()).digest())
    return digest.hexdigest()
