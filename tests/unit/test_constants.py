"""Load-time constants: none changes the compiled program, and none is lost."""

from __future__ import annotations

import random
import re

import pytest
from instructions import instruction

from netbpf.bpf.constants import take_constants, with_constants
from netbpf.bpf.object import constant_loads
from netbpf.declare.constants import in_ranges, load_constant, one_of, one_of_names

MARK = int.from_bytes(b"nbpf", "big")


def load(low: int, high: int, register: int = 1, source: int = 0) -> bytes:
    low, high = (half - 2**32 if half >= 2**31 else half for half in (low, high))
    return instruction(0x18, register, source, 0, low) + instruction(0, imm=high)


MOVE, EXIT = instruction(0xB7, 0, 0, 0, MARK), instruction(0x95)


def test_text_keeps_the_indexes_and_the_list_has_the_constants():
    one, other = load_constant(41), load_constant(2**64 - 1)
    text = f"#define A {one}\n#define B(x) (x) == {other} || {one}\n"
    taken, constants = take_constants(text)
    assert constants == [41, 2**64 - 1, 41]
    assert taken == (
        "#define A LOAD_CONSTANT(00)\n#define B(x) (x) == LOAD_CONSTANT(01) || LOAD_CONSTANT(02)\n"
    )
    assert take_constants("#define LOAD_CONSTANT(index) asm\nint NO_LOAD_CONSTANT(7);\n")[1] == []


def test_compiled_text_does_not_depend_on_the_values():
    chance = random.Random(43)

    def text() -> str:
        numbers = [chance.choice((1, chance.getrandbits(32))) for _ in range(5)]
        ranges = [(chance.randint(1, 9), chance.randint(10, 65535)) for _ in range(3)]
        names = [chance.choice(("lo", "eth0")), chance.choice(("lo", "veth1234567890"))]
        return one_of("x", numbers) + in_ranges("y", ranges) + one_of_names("a", "b", names)

    first, numbers = take_constants(text())
    others = [take_constants(text()) for _ in range(40)]
    assert {taken for taken, _ in others} == {first}
    assert len({tuple(found) for _, found in others}) > 30
    assert {len(found) for _, found in others} == {len(numbers)} == {5 + 6 + 4}


def test_constants_past_the_last_index_are_compiled_in():
    taken, numbers = take_constants(one_of("x", range(300)))
    assert numbers == list(range(256))
    assert re.findall(r"== (\d+)ULL", taken) == [str(number) for number in range(256, 300)]
    assert "LOAD_CONSTANT(ff)" in taken and "LOAD_CONSTANT(100)" not in taken


def test_only_load_time_constants_are_patched():
    other = load(1, MARK, source=1)  # a map
    code = load(1, MARK) + MOVE + load(1, MARK + 1) + other + load(0, MARK, 3) + EXIT
    small, large = 7, 0xFEDCBA9876543210
    assert with_constants(code, [small, large]) == (
        load(0x76543210, 0xFEDCBA98) + MOVE + load(1, MARK + 1) + other + load(small, 0, 3) + EXIT
    )
    assert len(list(constant_loads(code))) == 3
    assert with_constants(MOVE + EXIT, []) == MOVE + EXIT


def test_missing_constant_is_an_error():
    with pytest.raises(IndexError):
        with_constants(load(1, MARK), [5])
