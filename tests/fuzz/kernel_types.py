"""BTF: files with damage, and structs whose layout is known."""

from __future__ import annotations

import re
from typing import Any, Callable

from hypothesis import strategies as st

from netbpf.bpf import layout
from netbpf.bpf.layout import Manifest
from netbpf.errors import UsageError
from netbpf.kernel.btf import ENUM, ENUM64, FUNC, STRUCT, UNION, Btf, Field
from tests.fuzz.damage import File, mutated
from tests.fuzz.target import Target
from tests.unit.fakes import STRUCT as STRUCT_KIND
from tests.unit.fakes import BtfBlob, FakeKernel
from tests.unit.test_btf import FIELDS, sample
from tests.unit.test_btf_damage import elf

FILE = File()
SAMPLE = sample().bytes()
CTYPE = re.compile(
    r"(?:[us](?:8|16|32|64) |u8 |void \*|struct [A-Za-z_]\w* \*)%s(?:\[\d+\])*", re.A
)
NAME = re.compile(r"[A-Za-z_]\w*", re.A)
PATHS = [(struct, path) for struct, path, _ in FIELDS]
FUNCTIONS, ENUMS = ("tcp_set_state", "nothing"), ("mode", "error", "wide", "negative")


def ask(data: bytes) -> None:
    """Make all queries of tools, the doctor and recordings: the answers are valid in C."""
    types = Btf(FILE.of(data))
    questions: list[Any] = [lambda p=p: field(types, *p) for p in PATHS]
    questions += [lambda n=n: types.members(n) for n in ("holder", "bits", "common")]
    for name in FUNCTIONS:
        questions += [lambda n=name: parameters(types, n)]
    questions += [lambda n=n: enumerators(types, n) for n in ENUMS]
    questions.append(lambda: types.names(STRUCT, UNION, ENUM, ENUM64, FUNC))
    for question in questions:
        answered(question)


def answered(question: Callable[[], None]) -> None:
    try:
        question()
    except UsageError as error:
        assert FILE.path in error.message


def field(types: Btf, struct: str, path: str) -> None:
    found = types.field(struct, path)
    if not found:
        return
    assert CTYPE.fullmatch(found.ctype), found
    size = types.size(struct) or 0
    assert 0 <= found.bit_offset < size * 8 and found.bit_size <= 64, (found, size)
    kernel = FakeKernel(fields={(struct, path): found}, sizes={struct: size})
    text = layout.header(kernel, [Manifest("FIELDS", struct, (path,))], [])
    assert re.fullmatch(r"[\w\s{}\[\]();,*&<>=+\"-]*", text, re.A), text


def parameters(types: Btf, name: str) -> None:
    found = types.parameters(name)
    if found is not None:
        types.typed(name)
        assert all(not one or NAME.fullmatch(one) for one in found)


def enumerators(types: Btf, name: str) -> None:
    assert all(not one or NAME.fullmatch(one) for one in types.enumerators(name))


MEMBERS = st.lists(
    st.tuples(st.sampled_from([1, 2, 4, 8]), st.integers(0, 5)), min_size=1, max_size=12
)


def known(members: list[tuple[int, int]]) -> None:
    """A struct of numbers and arrays has the layout that was generated."""
    blob, wanted, at, row = BtfBlob(), {}, 0, []
    numbers = {size: blob.integer(f"u{size}", size) for size in (1, 2, 4, 8)}
    for number, (size, length) in enumerate(members):
        at = -(-at // size) * size
        kind = blob.array(numbers[size], length, numbers[4]) if length else numbers[size]
        row.append((f"m{number}", kind, at * 8))
        array = f"[{length}]" if length else ""
        wanted[f"m{number}"] = Field(at * 8, f"u{size * 8} %s{array}")
        at += size * (length or 1)
    blob.compound(STRUCT_KIND, "known", at, row)
    types = Btf(FILE.of(blob.bytes()))
    assert types.size("known") == at
    assert {name: types.field("known", name) for name in wanted} == wanted
    assert {name: one.field for name, one in types.members("known").items()} == wanted


TARGETS = (
    Target("btf", mutated([SAMPLE, elf(SAMPLE)]), ask, (UsageError,)),
    Target("btf-layout", MEMBERS, known),
)
