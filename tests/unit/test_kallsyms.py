"""Places in the kernel's text: names, the call at the end of a function, hidden symbols."""

from __future__ import annotations

from pathlib import Path

import pytest

from netbpf.kernel.kallsyms import KernelSymbols

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


def test_hidden_symbols_leave_the_address(tmp_path):
    hidden = "\n".join(f"{'0' * 16} T {name}" for name in ("a", "b"))
    (tmp_path / "kallsyms").write_text(hidden)
    symbols = KernelSymbols(str(tmp_path / "kallsyms"))
    assert symbols.hidden
    assert symbols.name(0xFFFFFFFF81000104) == "0xffffffff81000104"
    assert symbols.span("a") == (0, 0)
