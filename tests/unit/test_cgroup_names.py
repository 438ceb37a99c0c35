"""The columns that name a process's cgroup: which records have them, and their text."""

from __future__ import annotations

import pytest

from netbpf.declare.cgroup_names import NAMES, cgroup_column, name_columns
from netbpf.declare.columns import Cgroup, Container, Count, Pid
from netbpf.declare.keys import key_columns, keys_of, parse_keys
from netbpf.declare.record import Event, Record, text_columns
from netbpf.declare.tool import all_tools, find_tool


class WithCgroup(Event):
    """An event of a process."""

    pid = Pid("process")
    cgroup = Cgroup()


class WithContainer(Event):
    """An event that always showed the container."""

    container = Container("container", wide=True)
    pid = Pid("process")


class Without(Event):
    """An event of no process."""

    number = Count("a number")


def names(record):
    return [column.name for column in record.columns]


def test_events_of_processes_have_them_last():
    assert names(WithCgroup) == ["pid", "cgroup", *NAMES]
    assert names(WithContainer) == ["container", "pid", *NAMES[1:]]
    assert names(Without) == ["number"]
    assert cgroup_column(WithCgroup.columns) == "cgroup"
    assert cgroup_column(WithContainer.columns) == "container"
    assert cgroup_column(Without.columns) == ""


def test_they_are_not_in_c():
    assert WithCgroup.size == 24
    decoded = WithCgroup.decoder()((1, 2, 3))
    assert decoded == {"pid": 3, "cgroup": 2, **dict.fromkeys(NAMES)}


def test_keys_of_maps_have_none_but_can_be_asked_for():
    key = type("Key", (Record,), {"cstruct": "key", "cgroup": Cgroup(), "pid": Pid("process")})
    assert names(key) == ["cgroup", "pid"]
    assert keys_of(key.columns) == ("pid", "cgroup", *NAMES)
    by = parse_keys("unit,container_name", key.columns)
    columns = key_columns(by, key.columns)
    assert [column.title for column in columns] == ["UNIT", "CONTAINER_NAME"]
    assert all(column.in_text and not column.wide for column in columns)


def test_text_has_two_of_them_with_w_and_that_of_gethostlatency_none():
    wide = [column.name for column in text_columns(WithCgroup.columns, True)]
    assert wide == ["pid", "container_name", "unit"]
    assert [column.name for column in text_columns(WithCgroup.columns, False)] == ["pid"]
    assert [c.name for c in text_columns(WithContainer.columns, True)] == ["container", "pid"]


@pytest.mark.parametrize(
    ("values", "container", "unit"),
    [
        ({}, "-", "-"),
        ({"container": "ab" * 32}, "abababababab", "-"),
        ({"container": "ab" * 32, "container_name": "web"}, "web", "-"),
        ({"container_name": "nginx", "pod": "shop/web-1"}, "shop/web-1/nginx", "-"),
        ({"pod": "shop/web-1"}, "shop/web-1", "-"),
        ({"unit": "ssh.service"}, "-", "ssh.service"),
        ({"unit": "user@7.service", "user_unit": "a.service"}, "-", "user@7.service/a.service"),
        ({"container_name": "\x1b[2J"}, "\\x1b[2J", "-"),
    ],
)
def test_text_joins_names(values, container, unit):
    columns = name_columns()
    values = {**dict.fromkeys(NAMES), **values}
    assert columns["container_name"].cell(values) == container
    assert columns["unit"].cell(values) == unit


def test_a_key_alone_is_shown_without_the_others():
    columns = name_columns()
    assert columns["container_name"].cell({"container_name": "nginx"}) == "nginx"
    assert columns["unit"].cell({"unit": None}) == "-"


def test_every_tool_with_a_process_has_them():
    for tool in all_tools():
        for columns in [tool.event.columns] if tool.event else []:
            if {"cgroup", "container"} & {column.name for column in columns}:
                assert set(NAMES) <= {column.name for column in columns}, tool.name
    assert set(NAMES) <= set(find_tool("sockstat").keyed.keys)


@pytest.mark.parametrize("tool", ["sockstat", "skbdrop"])
@pytest.mark.parametrize("name", NAMES)
def test_programs_fill_the_cgroup_for_each_of_them(tool, name):
    declared = find_tool(tool)
    option = next(option for option in declared.options if option.name == "by")
    defaults = {option.name: option.value(option.default) if option.default else None
                for option in declared.options}  # fmt: skip
    constants = declared.own_constants({**defaults, "by": option.value(name)})
    assert constants["BY_CGROUP"] == 1
    assert "BY_CGROUP" not in declared.own_constants({**defaults, "by": option.value("pid")})
