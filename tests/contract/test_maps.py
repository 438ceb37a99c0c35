"""Rule: no map forgets in silence, and no map is too full in silence."""

from __future__ import annotations

import re

import pytest

from tests.contract.conventions import PROGRAMS

_SOURCES = sorted(PROGRAMS.rglob("*.bpf.[ch]"))
_LRU = re.compile(r'"lru_\w*hash", [^;]*?, (\w+), (\w+\(\w+\)|\w+)\);')
_UNUSED = re.compile(r"^\t+(\w+)\.(?:update|insert)\(", re.MULTILINE)
# What is stored without a look at the result: those that are looked up at once, which shows whether
# there is room, those with room for every key, and what takes the place of an entry.
_LOOKED_UP = {
    "calls_by_protocol", "calls_by_process",
}  # fmt: skip
_IN_PLACE = {"owners"}


def _text(path) -> str:
    return re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.DOTALL)


def _lru_maps() -> list[tuple[str, str]]:
    """Return (name, size); headers that are not used together may have the same names."""
    return [pair for path in _SOURCES for pair in _LRU.findall(_text(path))]


def test_lru_maps_have_room_for_what_cpus_hold_back():
    found = _lru_maps()
    assert {name for name, _ in found} >= {"unfollowed", "amendable"}, "the test finds no maps"
    declared = sum(_text(path).count('"lru_') for path in _SOURCES)
    assert declared == len(found), "an LRU map in a form that this test does not know"
    for name, size in found:
        assert size.startswith("LRU_ENTRIES("), f"{name}: {size} entries"


@pytest.mark.parametrize("path", _SOURCES, ids=lambda path: path.name)
def test_what_finds_no_room_is_noticed(path):
    allowed = _LOOKED_UP | _IN_PLACE | {name for name, _ in _lru_maps()}
    for name in _UNUSED.findall(_text(path)):
        assert name in allowed, f"{name}: is there room? count_loss() if not"
