"""Numbers that are put in at loading: none decides what is compiled, and none is lost."""

from __future__ import annotations

import random
import re

import pytest
from instructions import instruction

from netbpf.bpf.constants import take_numbers, with_numbers
from netbpf.bpf.object import constant_loads
from netbpf.declare.constants import at_load, in_ranges, one_of, one_of_names

MARK = int.from_bytes(b"nbpf", "big")


def load(low: int, high: int, register: int = 1, source: int = 0) -> bytes:
    low, high = (half - 2**32 if half >= 2**31 else half for half in (low, high))
    return instruction(0x18, register, source, 0, low) + instruction(0, imm=high)


MOVE, EXIT = instruction(0xB7, 0, 0, 0, MARK), instruction(0x95)


def test_text_keeps_the_places_and_the_list_has_the_numbers():
    text = f"#define A {at_load(41)}\n#define B(x) (x) == {at_load(2**64 - 1)} || {at_load(41)}\n"
    taken, numbers = take_numbers(text)
    assert numbers == [41, 2**64 - 1, 41]
    assert taken == ("#define A AT_LOAD(00)\n#define B(x) (x) == AT_LOAD(01) || AT_LOAD(02)\n")
    assert take_numbers("#define AT_LOAD(place) asm\nint NO_AT_LOAD(7);\n")[1] == []


def test_what_is_compiled_does_not_depend_on_the_values():
    chance = random.Random(43)

    def text() -> str:
        numbers = [chance.choice((1, chance.getrandbits(32))) for _ in range(5)]
        ranges = [(chance.randint(1, 9), chance.randint(10, 65535)) for _ in range(3)]
        names = [chance.choice(("lo", "eth0")), chance.choice(("lo", "veth1234567890"))]
        return one_of("x", numbers) + in_ranges("y", ranges) + one_of_names("a", "b", names)

    first, numbers = take_numbers(text())
    others = [take_numbers(text()) for _ in range(40)]
    assert {taken for taken, _ in others} == {first}
    assert len({tuple(found) for _, found in others}) > 30
    assert {len(found) for _, found in others} == {len(numbers)} == {5 + 6 + 4}


def test_what_has_no_place_any_more_is_a_constant():
    taken, numbers = take_numbers(one_of("x", range(300)))
    assert numbers == list(range(256))
    assert re.findall(r"== (\d+)ULL", taken) == [str(number) for number in range(256, 300)]
    assert "AT_LOAD(ff)" in taken and "AT_LOAD(100)" not in taken


def test_numbers_come_into_their_places_and_nothing_else_changes():
    other = load(1, MARK, source=1)  # of a map
    code = load(1, MARK) + MOVE + load(1, MARK + 1) + other + load(0, MARK, 3) + EXIT
    small, large = 7, 0xFEDCBA9876543210
    assert with_numbers(code, [small, large]) == (
        load(0x76543210, 0xFEDCBA98) + MOVE + load(1, MARK + 1) + other + load(small, 0, 3) + EXIT
    )
    assert len(list(constant_loads(code))) == 3
    assert with_numbers(MOVE + EXIT, []) == MOVE + EXIT


def test_a_number_that_nobody_gave_is_an_error_and_no_program():
    with pytest.raises(IndexError):
        with_numbers(load(1, MARK), [5])
