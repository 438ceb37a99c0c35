"""All targets by name, from the files in this directory."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from tests.fuzz.target import Target

_NONE = ("__main__", "damage", "target", "targets")


def _found() -> dict[str, Target]:
    found: dict[str, Target] = {}
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in _NONE and not path.stem.startswith("test_"):
            for target in import_module(f"tests.fuzz.{path.stem}").TARGETS:
                assert target.name not in found, target.name
                found[target.name] = target
    return found


TARGETS = _found()
