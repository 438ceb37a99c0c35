"""Rules to find a function's caller, from tables of .eh_frame made here."""

from __future__ import annotations

import struct

import pytest

from netbpf.binaries.eh_frame import UnwindTable
from netbpf.binaries.frame_rules import BP, DEREF, NO_RULE, OUTERMOST, SP, Rule
from netbpf.system.untrusted import Budget, Limits

ADDRESS, HEADER, CODE = 0x5000, 0x4000, 0x1000
ON_ENTRY = b"\x0c\x07\x08\x90\x01"  # def_cfa rsp+8; the return address is at cfa-8
PUSH_RBP = b"\x41\x0e\x10\x86\x02"  # advance 1; def_cfa_offset 16; rbp is at cfa-16
MOV_RBP = b"\x43\x0d\x06"  # advance 3; def_cfa_register rbp
# A function that aligns its stack, from its frame on: rbp points to the saved one, and the CFA is
# saved 8 bytes below it.
ALIGNED = b"\x4a\x10\x06\x02\x76\x00" + b"\x0f\x03\x76\x78\x06"


def entry(body: bytes) -> bytes:
    body += bytes(-(len(body) + 4) % 8)
    return struct.pack("<I", len(body)) + body


def common(
    augmentation: bytes = b"zR\0", encoding: bytes = b"\x1b", first: bytes = ON_ENTRY
) -> bytes:
    """Return a CIE: factors 1 and -8, return address in register 16."""
    given = bytes([len(encoding)]) + encoding if augmentation[:1] == b"z" else b""
    return entry(bytes(4) + b"\x01" + augmentation + b"\x01\x78\x10" + given + first)


def table(
    functions: list[tuple[int, int, bytes]], cie: bytes = b"", header: bool = True
) -> tuple[bytes, bytes]:
    """Return .eh_frame and .eh_frame_hdr of functions (address, size, instructions)."""
    data = cie or common()
    rows = []
    for address, size, instructions in functions:
        at = len(data)
        place = ADDRESS + at + 8
        head = struct.pack("<Iii", at + 4, address - place, size) + b"\0"
        data += entry(head + instructions)
        rows.append((address - HEADER, ADDRESS + at - HEADER))
    head = b"\x01\x1b\x03\x3b" + struct.pack("<iI", ADDRESS - HEADER - 4, len(rows))
    listed = b"".join(struct.pack("<ii", *row) for row in sorted(rows))
    return data + bytes(4), (head + listed) if header else b""


def budget(seconds: float = 9.0) -> Budget:
    return Budget("made", Limits(0, seconds))


def rule(functions: list[tuple[int, int, bytes]], at: int, **more: object) -> Rule | None:
    data, header = table(functions, **more)  # type: ignore[arg-type]
    return UnwindTable(data, ADDRESS, header, HEADER).rule(at, budget())


PROLOGUE = [(CODE, 64, PUSH_RBP + MOV_RBP + b"\x48\x0c\x07\x08")]


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize(
    ("at", "wanted"),
    [
        (0, Rule(SP, 8)),
        (1, Rule(SP, 16, -16)),
        (3, Rule(SP, 16, -16)),
        (4, Rule(BP, 16, -16)),
        (11, Rule(BP, 16, -16)),
        (12, Rule(SP, 8, -16)),
        (63, Rule(SP, 8, -16)),
    ],
)
def test_rule_is_that_of_the_address(at, wanted, header):
    assert rule(PROLOGUE, CODE + at, header=header) == wanted


@pytest.mark.parametrize("header", [True, False])
def test_addresses_outside_of_functions_have_no_table(header):
    many = [(CODE + 256 * n, 64, PUSH_RBP) for n in range(23)]
    for n in range(23):
        assert rule(many, CODE + 256 * n + 5, header=header) == Rule(SP, 16, -16)
        assert rule(many, CODE + 256 * n + 64, header=header) is None
    assert rule(many, CODE - 1, header=header) is None


@pytest.mark.parametrize(
    ("instructions", "wanted"),
    [
        (b"\x07\x10", OUTERMOST),  # the return address is undefined: _start
        (ALIGNED, Rule(SP, 8)),  # before the frame is made
        (b"\x0a\x0e\x20\x0b", Rule(SP, 8)),  # remember, change, restore
        (b"\x0e\x20\x0a\x0b", Rule(SP, 32)),
        (b"\x0e\x20\x86\x03\xc6", Rule(SP, 32)),  # restore rbp
        (b"\x0e\x20\x86\x03\x08\x06", Rule(SP, 32)),  # the same value
        (b"\x05\x06\x04", Rule(SP, 8, -32)),
        (b"\x11\x06\x7f", Rule(SP, 8, 8)),
        (b"\x12\x07\x7e", Rule(SP, 16)),
        (b"\x13\x7d", Rule(SP, 24)),
        (b"\x2e\x10\x83\x02", Rule(SP, 8)),  # rbx is of no interest
        (b"\x0d\x0a", NO_RULE),  # CFA in r10
        (b"\x09\x06\x03", NO_RULE),  # rbp is in rbx
        (b"\x90\x02", NO_RULE),  # the return address is elsewhere
        (b"\x0f\x02\x77\x08", NO_RULE),  # an expression of another form
        (b"\x3f", NO_RULE),  # no such instruction
        (b"\x0b", NO_RULE),  # nothing was remembered
        (b"\x0a" * 70, NO_RULE),
        (b"\x0e" + b"\xff" * 20, NO_RULE),
        (b"\x0e\xff\xff\xff\xff\x7f", NO_RULE),  # does not fit
    ],
)
def test_instructions(instructions, wanted):
    assert rule([(CODE, 64, instructions)], CODE) == wanted


def test_function_that_aligns_its_stack():
    functions = [(CODE, 64, PUSH_RBP + ALIGNED)]
    assert rule(functions, CODE + 20) == Rule(DEREF, -8)


@pytest.mark.parametrize(
    ("cie", "wanted"),
    [
        (common(b"zPLR\0", b"\x1b\0\0\0\0\x1b\x1b"), Rule(SP, 8)),  # a personality routine
        (common(b"zRS\0"), Rule(SP, 8)),  # of a signal
        (common(b"zQ\0"), NO_RULE),
        (common(b"eh\0"), NO_RULE),
        (common(encoding=b"\x9b"), NO_RULE),  # indirect
        (common(b"zR" + b"z" * 60 + b"\0"), NO_RULE),
    ],
)
def test_augmentations(cie, wanted):
    assert rule([(CODE, 64, b"")], CODE, cie=cie) == wanted


def test_entry_that_names_itself_as_its_head():
    data, header = table(PROLOGUE)
    at = len(common())
    for back in (at + 4, 4, 0xFFFFFFFF, 0):
        broken = data[: at + 4] + struct.pack("<I", back) + data[at + 8 :]
        found = UnwindTable(broken, ADDRESS, header, HEADER).rule(CODE, budget())
        assert found in (NO_RULE, None, Rule(SP, 8))
        if back != at + 4:
            assert found == NO_RULE


def test_search_without_a_header_is_within_the_budget():
    many = [(CODE + 64 * n, 64, b"") for n in range(20_000)]
    data, _ = table(many, header=False)
    found = UnwindTable(data, ADDRESS, b"", 0)
    assert found.rule(CODE, budget(1e-6)) == NO_RULE
