"""Rule: numbers that C and Python share mean the same on both sides."""

from __future__ import annotations

import re
import socket

from netbpf.declare.columns import Enum, Family, Owner
from netbpf.declare.values import TCP_STATES
from netbpf.run.losses import CAUSES
from tests.contract.house import (
    PROGRAMS,
    constants,
    enums,
    every_tool,
    program,
    records_of,
    tool_of,
    without_comments,
)

# Numbers that are no enum of the program, and whose they are.
ELSEWHERE = {
    ("tcpnagle", "setting"): "a combination of three bits",
    ("tcpretrans", "ca_state"): "the kernel's enum tcp_ca_state, part of the ABI (linux/tcp.h)",
}


def header(name: str) -> str:
    return without_comments((PROGRAMS / "include" / name).read_text())


def squashed(word: str) -> str:
    return re.sub(r"[^a-z0-9]", "", word.lower())


def fits(enumerators: dict[str, int], words: dict[int, str | None], enum: str) -> bool:
    """Tell whether an enum has just the numbers of `words`, and names that mean the same.

    It may have a 0 that is never shown, and as its last one the number of the others.
    """
    by_number = {number: name for name, number in enumerators.items()}
    spare = {0, max(by_number)} - set(words)
    if set(by_number) - spare != set(words):
        return False
    return all(word is None or alike(by_number[n], word, enum) for n, word in words.items())


def alike(enumerator: str, word: str, enum: str) -> bool:
    """Tell whether FIN_LOCAL is "fin-local", ROLE_ACTIVE "active", BY_NAME "gethostbyname"."""
    tokens = [squashed(token) for token in enumerator.split("_")]
    prefixes = {squashed(part) for part in enum.split("_")}
    named = [token for token in tokens if token not in prefixes] or tokens
    return max(reversed(named), key=len) in squashed(word)


@every_tool
def test_words_of_a_column_are_an_enum_of_the_program(name):
    known = enums(program(name))
    for record in records_of(tool_of(name)):
        for column in record.columns:
            if type(column) is not Enum or not column.ctype:
                continue
            words = dict(column.words)
            if (name, column.name) in ELSEWHERE or words == {0: "no", 1: "yes"}:
                continue
            matching = [enum for enum, values in known.items() if fits(values, words, enum)]
            assert matching, f"no enum of the program has the numbers and names of {column.name}"


def test_ways_to_know_an_owner_are_the_same():
    found = enums(header("owners.bpf.h"))["owner_how"]
    words = {f"OWNER_{word.upper()}": number for number, word in Owner("x").words.items()}
    assert found == words


def test_tcp_states_are_the_same():
    found = enums(header("sock.bpf.h"))["TCP_ESTABLISHED"]
    assert found.items() <= {f"TCP_{word}": n for n, word in TCP_STATES.items()}.items()


def test_causes_of_loss_are_the_same_in_the_same_order():
    found = enums(header("netbpf.bpf.h"))["loss"]
    names = [name.removeprefix("LOSS_").lower() for name in found]
    assert names == [*CAUSES, "causes"]
    assert list(found.values()) == list(range(len(found)))


def test_address_families_are_those_of_the_system():
    found = constants(header("kernel/kconfig.h"))
    words = Family("x").words
    for name in ("AF_UNIX", "AF_INET", "AF_INET6"):
        assert found[name] == getattr(socket, name)
        assert found[name] in words


@every_tool
def test_every_loss_that_is_counted_has_a_cause(name):
    causes = enums(program(name))["loss"]
    for cause in re.findall(r"count_loss\((\w+)\)", program(name)):
        assert cause in causes or cause == "int", cause


def test_names_are_compared_by_meaning():
    assert alike("FIN_LOCAL", "fin-local", "close_reason")
    assert not alike("FIN_LOCAL", "fin-remote", "close_reason")
    assert alike("ROLE_ACTIVE", "active", "role")
    assert not alike("ROLE_ACTIVE", "passive", "role")
    assert fits({"A_ONE": 0, "A_TWO": 1}, {0: None, 1: "two"}, "a")
    assert not fits({"A_ONE": 0, "A_TWO": 1}, {0: None, 2: "two"}, "a")
