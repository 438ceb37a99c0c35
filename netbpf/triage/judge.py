"""Apply the rules to the evidence, and tell effects of one cause together."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from netbpf.declare.finding import SEVERITIES, Case, Evidence, Rule, View

_MOST_ALSO = 3


class Finding(NamedTuple):
    """A problem in words. `also` are sentences of other rules about the same cause."""

    rule: Rule
    case: Case
    also: Sequence[str] = ()

    @property
    def sentence(self) -> str:
        """What is wrong."""
        return self.rule.sentence.format_map(self.case.values)

    @property
    def meaning(self) -> str:
        """What it means, and what to do."""
        return self.rule.meaning.format_map(self.case.values)

    @property
    def command(self) -> str:
        """The next command to type: values that a shell would read otherwise are quoted."""
        command = self.case.values.get("command") or self.rule.command.format_map(
            {name: shlex.quote(str(value)) for name, value in self.case.values.items()}
        )
        return str(command)

    @property
    def facts(self) -> list[str]:
        """What shows it, and the effects that have the same cause."""
        return [*self.case.facts, *(f"also: {sentence}" for sentence in self.also)]


def views_of(rules: Sequence[Rule]) -> list[View]:
    """Return the views that the rules look at, each once."""
    return list(dict.fromkeys(view for rule in rules for view in rule.views))


def judge(rules: Sequence[Rule], evidence: Evidence) -> list[Finding]:
    """Return what the rules find, the worst first.

    Effects are told with their cause, and cases of one process that differ in one value together.
    """
    found = sorted((Finding(rule, case) for rule in rules for case in rule.find(evidence)),
                   key=_order)  # fmt: skip
    causes = _causes(found)
    also: dict[int, list[str]] = {}
    for effect, cause in causes.items():
        also.setdefault(cause, []).append(found[effect].sentence)
    told = [
        finding._replace(also=also.get(index, ()))
        for index, finding in enumerate(found)
        if index not in causes
    ]
    return list(_together(told))


def _together(findings: Sequence[Finding]) -> Iterator[Finding]:
    """Yield the findings; those that differ in one value only are told with the worst of them."""
    groups: dict[object, list[Finding]] = {}
    for finding in findings:
        who = finding.case.who[0]["pid"] if finding.case.who else None
        alike = finding.rule.differs and who
        key = (finding.rule.ident, finding.case.severity, who) if alike else id(finding)
        groups.setdefault(key, []).append(finding)
    for first, *others in groups.values():
        differs = [str(one.case.values[one.rule.differs]) for one in others]
        more = [f"the same for {_listed(differs)}"] if differs else []
        also = list(dict.fromkeys(sentence for one in (first, *others) for sentence in one.also))
        rest = [f"{len(also) - _MOST_ALSO} more effects"] if len(also) > _MOST_ALSO else []
        case = first.case._replace(facts=[*first.case.facts, *more])
        yield first._replace(case=case, also=[*also[:_MOST_ALSO], *rest])


def _listed(words: Sequence[str]) -> str:
    rest = len(words) - _MOST_ALSO
    return ", ".join(words[:_MOST_ALSO]) + (f" and {rest} more" if rest > 0 else "")


def _order(finding: Finding) -> tuple[int, float]:
    return SEVERITIES.index(finding.case.severity), -finding.case.weight


def _causes(found: Sequence[Finding]) -> dict[int, int]:
    """Return {index of an effect: index of its first cause}."""
    explained: dict[tuple[str, object], list[int]] = {}  # by (rule of the effect, subject)
    for index, finding in enumerate(found):
        for effect, kind in finding.rule.explains.items():
            for subject in finding.case.subjects:
                if subject[0] == kind:
                    explained.setdefault((effect, subject), []).append(index)
    causes = {}
    for index, finding in enumerate(found):
        keys = [(finding.rule.ident, subject) for subject in finding.case.subjects]
        of = [cause for key in keys for cause in explained.get(key, ()) if cause != index]
        if of:
            causes[index] = min(of)
    return causes


def as_json(finding: Finding, since: str) -> Mapping[str, Any]:
    """Return a finding as a JSON object; `since` is the time of the first event, "" if unknown."""
    return {
        "type": "finding",
        "finding": finding.rule.ident,
        "severity": finding.case.severity,
        "sentence": finding.sentence,
        "evidence": finding.facts,
        "since": since or None,
        "who": list(finding.case.who),
        "meaning": finding.meaning,
        "command": finding.command,
        "threshold": finding.rule.source,
    }
