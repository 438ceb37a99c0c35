"""Kernel symbols: names, a call at the end of a function, hidden addresses."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbpf.declare.harmless import place_in
from netbpf.kernel.kallsyms import KernelSymbols, addresses_visible

TEXT = """\
0000000000000010 D not_text
ffffffff81000000 T _text
ffffffff81000100 t second
ffffffff81000200 T third
ffffffffc0000000 t inside\t[module]
"""


@pytest.fixture
def symbols(tmp_path: Path) -> KernelSymbols:
    (tmp_path / "kallsyms").write_text(TEXT)
    return KernelSymbols(str(tmp_path / "kallsyms"))


@pytest.mark.parametrize(
    ("address", "name"),
    [
        (0xFFFFFFFF81000104, "second+0x4"),
        (0xFFFFFFFFC0000010, "inside+0x10"),
        # A return address: the call was the last instruction of `second`.
        (0xFFFFFFFF81000200, "second+0x100"),
        (0x1000, "0x1000"),
    ],
)
def test_names(symbols, address, name):
    assert symbols.name(address) == name
    assert not symbols.hidden


def test_span_reaches_to_the_next_symbol(symbols):
    assert symbols.span("second") == (0xFFFFFFFF81000100, 0xFFFFFFFF81000200)
    assert symbols.span("missing") == (0, 0)
    assert symbols.span("not_text") == (0, 0)


def test_span_in_a_module_whose_symbols_are_in_any_order(tmp_path):
    # IPv6 may be a module: its symbols are in the order of its table.
    text = f"{TEXT}ffffffffc0000300 t last\t[module]\nffffffffc0000200 t middle\t[module]\n"
    (tmp_path / "kallsyms").write_text(text)
    symbols = KernelSymbols(str(tmp_path / "kallsyms"))
    assert symbols.span("inside") == (0xFFFFFFFFC0000000, 0xFFFFFFFFC0000200)
    assert symbols.span("middle") == (0xFFFFFFFFC0000200, 0xFFFFFFFFC0000300)


def test_aliases_of_a_function_have_the_same_span(tmp_path):
    (tmp_path / "kallsyms").write_text(
        TEXT.replace("second\n", "second\nffffffff81000100 T alias\n")
    )
    symbols = KernelSymbols(str(tmp_path / "kallsyms"))
    assert (
        symbols.span("second") == symbols.span("alias") == (0xFFFFFFFF81000100, 0xFFFFFFFF81000200)
    )


def test_hidden_symbols_leave_the_address(tmp_path):
    hidden = "\n".join(f"{'0' * 16} T {name}" for name in ("a", "b"))
    (tmp_path / "kallsyms").write_text(hidden)
    symbols = KernelSymbols(str(tmp_path / "kallsyms"))
    assert symbols.hidden
    assert symbols.name(0xFFFFFFFF81000104) == "0xffffffff81000104"
    assert symbols.span("a") == (0, 0)


def test_return_addresses_of_a_function(symbols):
    test = place_in(symbols.span, ["second", "missing"])
    places = (0xFFFFFFFF81000100, 0xFFFFFFFF81000101, 0xFFFFFFFF81000200, 0xFFFFFFFF81000201)
    # A return to its first instruction is from a call in the previous function.
    words = {"x": 0, "LOAD_CONSTANT": int}
    as_python = test.replace("||", "or").replace("&&", "and")
    found = [eval(as_python, {**words, "x": place}) for place in places]
    assert found == [False, True, True, False]


def test_opening_decides_whether_addresses_are_visible(tmp_path):
    path = tmp_path / "kallsyms"
    path.write_text("ffffffff81000000 T first\nffffffff81000010 T second\n")
    symbols = KernelSymbols(str(path))
    symbols.open()
    path.unlink()
    path.write_text("0000000000000000 T first\n")  # what a process without privileges reads
    assert symbols.name(0xFFFFFFFF81000004) == "first+0x4"
    assert not symbols.hidden


@pytest.mark.parametrize(("address", "seen"), [("ffffffff81000000", True), ("0" * 16, False)])
def test_visibility_is_read_from_the_first_lines(tmp_path, address, seen):
    path = tmp_path / "kallsyms"
    path.write_text(f"{'0' * 16} A fixed_percpu_data\n{address} T _stext\n{'0' * 16} T last\n")
    assert addresses_visible(str(path)) is seen
    assert not addresses_visible(str(tmp_path / "absent"))


def test_address_that_is_too_long_is_ignored(tmp_path):
    path = tmp_path / "kallsyms"
    path.write_bytes(b"f" * 17 + b" T far\nffffffff81000000 T near\xff\n")
    found = KernelSymbols(str(path))
    assert found.name(0xFFFFFFFF81000010) == "near\ufffd+0x10" and found.span("far") == (0, 0)
