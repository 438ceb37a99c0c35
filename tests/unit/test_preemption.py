"""A program with preemption disabled computes the same result."""

from __future__ import annotations

import struct
import sys

import pytest
from instructions import instruction

from netbpf.bpf.object import map_references
from netbpf.bpf.preemption import Switches, find_switches, without_preemption
from netbpf.errors import Unsupported

SWITCHES = Switches(off=111, on=222)
EXIT = instruction(0x95)
ONE = instruction(0xB7, 0, imm=1)  # r0 = 1
TWO = instruction(0xB7, 0, imm=2)
CONTEXT = instruction(0xBF, 0, 1)  # r0 = r1
# A 64-bit number whose second half looks like an exit.
NUMBER = instruction(0x18, 3, imm=7) + instruction(0x95, imm=7)
BRANCH = instruction(0x15, 1, off=2, imm=40)  # if r1 is 40: skip two


class Machine:
    """Executes these few instructions, and records calls of kernel functions."""

    def __init__(self, code: bytes) -> None:
        self.steps = list(struct.iter_unpack("=BBhi", code))
        self.registers = {1: 0, 10: 0}
        self.asked: list[int] = []
        self.exits = 0

    def run(self, context: int) -> int:
        self.registers[1] = context
        place = 0
        while True:
            code, registers, off, imm = self.steps[place]
            low, high = registers & 15, registers >> 4
            dst, src = (low, high) if sys.byteorder == "little" else (high, low)
            place += 1
            if code == 0x95:
                return self.registers[0]
            if code == 0x85:
                assert src == 2  # a kernel function
                self.asked.append(imm)
                for register in range(6):  # clobbered by a call
                    self.registers.pop(register, None)
            elif code == 0xBF:
                self.registers[dst] = self.registers[src]
            elif code == 0xB7:
                self.registers[dst] = imm
            elif code == 0x18:
                self.registers[dst] = imm
                place += 1
            elif code == 0x15:
                place += off if self.registers[dst] == imm else 0
            else:
                assert code == 0x06
                place += imm


@pytest.mark.parametrize("context", [40, 41])
@pytest.mark.parametrize(
    ("code", "results"),
    [
        (ONE + EXIT, {40: 1, 41: 1}),
        (CONTEXT + EXIT, {40: 40, 41: 41}),
        (BRANCH + ONE + EXIT + TWO + EXIT, {40: 2, 41: 1}),
        (BRANCH + ONE + EXIT + NUMBER + TWO + EXIT, {40: 2, 41: 1}),
    ],
)
def test_result_is_the_same_with_preemption_disabled(code, results, context):
    machine = Machine(without_preemption(code, SWITCHES))
    assert machine.run(context) == results[context]
    assert machine.asked == [111, 222]


def test_constants_and_maps_are_unchanged():
    load_map = instruction(0x18, 2, 1, imm=5) + instruction(0)
    changed = without_preemption(NUMBER + load_map + ONE + EXIT, SWITCHES)
    assert changed[24:40] == NUMBER
    assert [number for _, number in map_references(changed)] == [5]
    assert changed.count(EXIT) == 1


def test_calls_of_bpf_functions_are_rejected():
    with pytest.raises(AssertionError, match="one function"):
        without_preemption(instruction(0x85, 0, 1, imm=1) + ONE + EXIT, SWITCHES)


def test_functions_are_used_only_if_the_kernel_has_both():
    ids = {"bpf_preempt_disable": 111, "bpf_preempt_enable": 222}
    assert find_switches(lambda name: ids[name]) == SWITCHES
    for missing in ids:
        without = {**ids, missing: 0}
        assert find_switches(lambda name, known=without: known[name]) is None


def test_kernel_without_types_has_no_functions():
    def find(name):
        raise Unsupported("no BTF", "")

    assert find_switches(find) is None
