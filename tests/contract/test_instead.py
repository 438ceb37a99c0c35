"""Names without a counterpart: the command that is named instead is accepted."""

from __future__ import annotations

import shlex

import click
import pytest

from netbpf.cli import cli, settings_of
from netbpf.declare.aliases import all_aliases, resolve
from netbpf.declare.instead import hint_for, instead
from netbpf.declare.tool import tool_names
from netbpf.errors import UsageError
from netbpf.run.filters import checked


@pytest.mark.parametrize("name", instead())
def test_command_that_is_named_instead_is_accepted(name: str):
    tool, *words = shlex.split(instead()[name][1])
    command = cli.get_command(click.Context(cli), tool)
    assert command
    given = command.make_context(tool, words).params
    checked(resolve(tool), settings_of(resolve(tool), given))


@pytest.mark.parametrize("name", instead())
def test_name_is_an_error_that_says_it(name: str):
    with pytest.raises(UsageError, match=f"no tool named '{name}'") as error:
        cli.get_command(click.Context(cli), name)
    assert error.value.hint == hint_for(name, ()) and instead()[name][1] in error.value.hint


def test_none_of_them_has_become_a_tool_or_an_alias():
    known = {*tool_names(), *(alias.name for alias in all_aliases())}
    assert not known & instead().keys()


# What the suites have on networking; their other names are of files, disks, CPUs and languages.
NAMES = """
    bindsnoop gethostlatency netqtop sofdsnoop solisten tcpaccept tcpcong tcpconnect tcpconnlat
    tcpdrop tcplife tcppktlat tcpretrans tcprtt tcpstates tcpsubnet tcpsynbl tcptop tcptracer

    ipecn nettxlat qdisc-cbq qdisc-cbs qdisc-codel qdisc-fq qdisc-fq_codel qdisc-red
    qdisc-tbf skbdrop skblife so1stbyte soaccept socketio socksize sockstat soconnect soconnlat
    sofamily soprotocol sormem superping tcpaccept-tp tcpconnect-tp tcpnagle tcpwin udpconnect
    udplife
""".split()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_networking_starts_or_says_what_to_type(name: str):
    """Those of bcc with libbpf-tools and bpftrace's tools, and those of the book's chapter."""
    if name not in instead():
        assert cli.get_command(click.Context(cli), name)


def test_other_names_have_no_such_hint():
    assert hint_for("nonsense", ()).startswith("tools: ")
    assert hint_for("tcplive", ("tcplife",)).startswith("did you mean tcplife? tools: ")
