"""What findings are made of: what tools collect for them, and the rules that judge it.

A rule is declared with the tool or the counters that see the problem, in `netbpf.findings`. It
looks at the evidence of a whole run, and yields a case for each problem that it finds.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Callable, NamedTuple

CRITICAL, WARNING, NOTE = "critical", "warning", "note"
SEVERITIES = (CRITICAL, WARNING, NOTE)  # worst first

Values = Mapping[str, Any]


class View(NamedTuple):
    """What a session collects of one tool.

    `line` is the tool's command line. Its events are counted by the columns `keys`; of each key are
    kept the number, the times of the first and the last, the sums of the columns `sums`, the
    largest values of the columns `largest`, and how many exceed a limit: `over` is (name, column,
    limit). Events that had not ended are counted as `pending`. Without `keys`, the rows of its
    table are kept.
    """

    line: str
    keys: Sequence[str] = ()
    sums: Sequence[str] = ()
    largest: Sequence[str] = ()
    over: Sequence[tuple[str, str, int]] = ()

    @property
    def tool(self) -> str:
        """The name of the tool."""
        return self.line.partition(" ")[0]


class Evidence(NamedTuple):
    """What a run collected: `rows` of each tool, increases of the kernel's counters, seconds.

    `levels` are those of netbpf.kernel.levels at the end.
    Rows of events have the keys, sums and largest values of their view, and `count`, `pending`,
    `first` and `last` (ns of the monotonic clock). `lost` is {tool: {cause: number}}.
    """

    rows: Mapping[str, Sequence[Values]]
    counters: Mapping[str, int]
    seconds: float
    lost: Mapping[str, Mapping[str, int]]
    addresses: frozenset[str] = frozenset()  # of this machine, in this network namespace
    levels: Mapping[str, int] = {}

    def of(self, view: View) -> Sequence[Values]:
        """Return the rows of a view."""
        return self.rows.get(view.tool, ())


class Case(NamedTuple):
    """A problem: the values of its rule's sentence, what shows it, and what it is about.

    `subjects` are pairs such as ("remote", "10.0.0.5:5432"), by which findings with one cause are
    told together. `since` is the time of the first event in ns, 0 if it is not known. `weight`
    orders cases of the same severity, the largest first.
    """

    severity: str
    values: Values
    facts: Sequence[str]
    subjects: frozenset[tuple[str, object]]
    who: Sequence[Values] = ()
    since: int = 0
    weight: float = 0


class Rule(NamedTuple):
    """A kind of problem, and how it is found.

    `sentence`, `meaning` and `command` are format strings of a case's values. `source` says where
    the threshold comes from. `explains` names rules, and the kind of subject that their cases share
    with one of this rule: they are effects of the same cause, and are told with it. Cases of one
    process that differ only in the value `differs` are told together. `counters` are the kernel's
    counters that it looks at.
    """

    ident: str
    views: Sequence[View]
    find: Callable[[Evidence], Iterable[Case]]
    sentence: str
    meaning: str
    command: str
    source: str
    explains: Mapping[str, str] = {}
    differs: str = ""
    counters: Sequence[str] = ()


def all_rules() -> list[Rule]:
    """Return the rules of all modules of netbpf.findings."""
    package = import_module("netbpf.findings")
    names = sorted(module.name for module in iter_modules(package.__path__))
    return [rule for name in names for rule in import_module(f"netbpf.findings.{name}").RULES]


def grouped(rows: Iterable[Values], *names: str) -> dict[tuple[Any, ...], list[Values]]:
    """Return {values of the columns `names`: rows}, in the order of the first row of each."""
    groups: dict[tuple[Any, ...], list[Values]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in names), []).append(row)
    return groups


def service(evidence: Evidence, address: Any, port: Any) -> set[tuple[str, object]]:
    """Return the subject of a port of this machine, nothing for another machine's.

    A listener on all addresses and a connection to one of them have the same.
    """
    text = str(address or "")
    anywhere = text in ("", "0.0.0.0", "::")
    own = anywhere or text.startswith("127.") or text == "::1" or text in evidence.addresses
    return {("service", port)} if own else {("service", endpoint(text, port))}


def endpoint(address: Any, port: Any) -> str:
    """Return "10.0.0.5:5432", or "[2001:db8::1]:5432"."""
    host = f"[{address}]" if ":" in str(address or "") else str(address or "*")
    return f"{host}:{port}" if port else host


def processes(rows: Iterable[Values], number: str = "count") -> list[dict[str, Any]]:
    """Return who caused the rows, the most first: pid, comm, container, unit, and the number."""
    counts: dict[tuple[Any, ...], int] = {}
    for row in rows:
        key = tuple(row.get(name) for name in ("pid", "comm", "container", "unit", "netns"))
        counts[key] = counts.get(key, 0) + int(row[number])
    names = ("pid", "comm", "container", "unit", "netns")
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return [{**dict(zip(names, key)), "count": number} for key, number in ordered]


def named(who: Sequence[Values]) -> str:
    """Return "python3 (pid 41)", or "python3 (pid 41) and 3 other processes"."""
    known = [one for one in who if one["pid"]]
    if not known:
        return "processes that are not known"
    first = f"{known[0]['comm']} (pid {known[0]['pid']})"
    others = len({one["pid"] for one in known}) - 1
    if not others:
        return first
    return f"{first} and {others} other process{'es' * (others != 1)}"


def times(number: int, what: str) -> str:
    """Return "1 connection" or "23 connections"."""
    return f"{number} {what}{'s' * (number != 1)}"


def since(rows: Iterable[Values]) -> int:
    """Return the time of the first event of the rows, in ns."""
    return min((row["first"] for row in rows if row.get("first")), default=0)
