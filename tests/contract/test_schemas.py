"""Rule: JSON fields may be added, but not renamed, removed or changed in type."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest

from netbpf.output.clock import Clock
from netbpf.output.schema import schema_of
from netbpf.output.writers import make_writer
from tests.contract.conventions import DATA, every_tool, tool_of

jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema: make setup-dev")


def fields(schema: dict[str, Any]) -> dict[str, Any]:
    """Return {"event.pid": type} of every field that a line of JSON can have."""
    found: dict[str, Any] = {}
    for line in schema["oneOf"]:
        kind = line["properties"]["type"]["const"]
        found.update((f"{kind}.{path}", json_type) for path, json_type in below(line))
    return found


def below(schema: dict[str, Any], path: str = "") -> list[tuple[str, Any]]:
    rows = []
    for name, inner in schema.get("properties", {}).items():
        rows.append((path + name, inner.get("type", inner.get("const"))))
        rows += below(inner, f"{path}{name}.")
        rows += below(inner.get("items", {}), f"{path}{name}[].")
    return rows


@every_tool
def test_schema_is_valid(name):
    jsonschema.Draft202012Validator.check_schema(schema_of(tool_of(name)))


@every_tool
def test_published_fields_still_exist(name):
    path = DATA / "schema" / f"{name}.json"
    # A tool that is not in any release has no published fields.
    published = fields(json.loads(path.read_text())) if path.exists() else {}
    now = fields(schema_of(tool_of(name)))
    for field, kind in published.items():
        assert field in now, f"{field} was published and is missing: keep it and its name"
        assert now[field] == kind, f"{field} was {kind} and is now {now[field]}"


@every_tool
def test_any_event_validates(name):
    tool = tool_of(name)
    if not tool.event:
        return
    validator = jsonschema.Draft202012Validator(schema_of(tool))
    chance = random.Random(59)
    layout, decode = tool.event.layout(), tool.event.decoder()
    samples = [bytes([fill]) * layout.size for fill in (0, 255)]
    samples += [bytes(chance.randrange(256) for _ in range(layout.size)) for _ in range(20)]
    for sample in samples:
        values = decode(layout.unpack(sample))
        for output in ("json", "text", "csv"):
            out = io.StringIO()
            writer = make_writer(output, name, tool.event.columns, Clock(), out)
            writer.begin()
            writer.event(10**12, _made_in_user_space(tool, values))
            if output == "json":
                validator.validate(json.loads(out.getvalue()))
            else:
                lines = out.getvalue().replace("\r\n", "\n").split("\n")
                assert len(lines) >= 3


def _made_in_user_space(tool: Any, values: dict[str, Any]) -> dict[str, Any]:
    # C has the cgroup's number where the reader puts the container's name.
    kinds = {column.name: type(column).__name__ for column in tool.event.columns}
    return {n: None if kinds[n] == "Container" else v for n, v in values.items()}


def test_fields_are_listed_with_types():
    schema = {
        "oneOf": [{"properties": {"type": {"const": "event"}, "a": {"type": "integer"},
                                  "b": {"properties": {"c": {"type": ["string", "null"]}}}}}]
    }  # fmt: skip
    assert fields(schema) == {
        "event.type": "event", "event.a": "integer", "event.b": None,
        "event.b.c": ["string", "null"],
    }  # fmt: skip
