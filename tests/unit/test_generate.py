"""C text that follows from a declaration."""

from __future__ import annotations

import re

from netbpf.bpf import generate
from netbpf.declare import Event, Gauge, Histogram, Record, Row, Table, Tool, sums
from netbpf.declare import columns as c
from netbpf.declare import probes as p
from netbpf.declare.sockets import AnyAddr
from netbpf.kernel.select import Selection
from tests.unit.fakes import FakeKernel

DOC = "x - y"


class Drop(Event):
    """An event."""

    cstruct = "drop"

    small = c.Port("two bytes")
    name = c.Comm("sixteen bytes")
    kind = c.Enum("kind", {0: None, 1: "fin-local", 2: "RTO"})
    peer = AnyAddr("any address")
    large = c.Count("eight bytes")


class Key(Record):
    """A key."""

    cstruct = "key"

    point = c.Enum("where", {0: "nic_recv", 5: "nic_send"})


class Line(Row):
    """A line."""

    point = c.Enum("where", {0: "nic_recv"})


def entry(alternative, *others, kernel=None, targets=("f",)):
    probe = p.Probe("see", alternative, *others)
    kernel = kernel or FakeKernel(
        raw={"f": ("sk", "skb__nullable", "reason")},
        tracepoints={"f": ("skaddr", "err")},
        functions={"f": ("sk", "size")},
    )
    text = generate.entries(kernel, [Selection(probe, alternative, targets, ())])
    (found,) = re.findall(r"^int (see_\w+)\((.*?) \*ctx\)\n\{\n(.*?)^\}", text, re.S | re.M)
    return found


def test_arguments_are_read_where_the_kernel_has_them():
    name, context, body = entry(p.RawTracepoint("f", args=("reason", "sk")))
    assert (name, context) == ("see_rawtp", "struct bpf_raw_tracepoint_args")
    assert body == "\treturn on_see(ctx->args[2], ctx->args[0]);\n"
    _, context, body = entry(p.Tracepoint("f", args=("err",)))
    assert (context, body) == ("struct see_args", "\treturn on_see(ctx->err);\n")
    assert entry(p.Fentry("f", args=("size",)))[1:] == ("u64", "\treturn on_see(ctx[1]);\n")
    assert entry(p.Fexit("f", args=("sk", "return")))[2] == "\treturn on_see(ctx[0], ctx[2]);\n"
    assert entry(p.Kprobe("f", args=("size",)))[2] == "\treturn on_see(PT_REGS_PARM2(ctx));\n"
    assert entry(p.Kretprobe("f", args=("return",)))[2] == "\treturn on_see(PT_REGS_RC(ctx));\n"


def test_names_change_between_kernels_and_constants_are_passed_on():
    args = ("ctx", "NIC_RECV", "skb|skb__nullable", "48")
    found = entry(p.RawTracepoint("f", args=args, call="on_it"))
    assert found[2] == "\treturn on_it(ctx, NIC_RECV, ctx->args[1], 48);\n"


def test_what_a_kernel_does_not_have_is_zero():
    more = p.RawTracepoint("g", args=("sk", "reason", "rx_sk", "err"))
    apart = p.RawTracepoint("g", args=("a", "b", "c", "d", "e"), call="on_other")
    found = entry(p.RawTracepoint("f", args=("sk", "reason")), more, apart)
    assert found[2] == "\treturn on_see(ctx->args[0], ctx->args[2], 0, 0);\n"


def test_user_space_functions_get_the_registers():
    assert entry(p.Uprobe("libc", args=("ctx",)))[1:] == (
        "struct pt_regs", "\treturn on_see(ctx);\n"
    )  # fmt: skip


def test_hooks_of_cgroups_get_numbers_for_pointers_and_let_the_call_continue():
    enums = {("bpf_attach_type", "BPF_CGROUP_UDP4_SENDMSG"): 14}
    kernel = FakeKernel(enums=enums, sizes={"cgroup_bpf": 640})
    way = p.CgroupAddr("sendmsg4", args=("uaddr", "sk", "AF_INET"))
    name, context, body = entry(way, kernel=kernel, targets=("sendmsg4",))
    assert (name, context) == ("see_cgaddr", "struct bpf_sock_addr")
    assert body == (
        "\tvoid *typed = ctx;\n\tstruct bpf_sock_addr_kern *call = NULL;\n\n"
        "\tbpf_probe_read_kernel(&call, sizeof(call), &typed);\n"
        "\ton_see(READ(call, uaddr), READ(call, sk), AF_INET);\n\treturn 1;\n"
    )


def test_iterators_are_given_what_they_go_over():
    name, context, body = entry(p.Iterator("task_file"), targets=("task_file",))
    assert (name, context) == ("see_iter", "struct task_file_context")
    assert body.endswith("return sk ? on_see(ctx, task, sk) : 0;\n")


def tool(**more):
    return Tool(DOC, probes=(), event=Drop, **more)


def test_structs_have_the_members_of_records_widest_first_and_no_hole():
    members = "u64 time; u64 large; u16 small; char name[16]; u8 kind; struct any_addr peer;"
    assert generate.structs(tool()).split() == f"struct drop {{ {members} }};".split()


def test_values_of_histograms_begin_with_the_buckets():
    extra = sums("sizes", "small", "deepest")
    text = generate.structs(tool(histogram=Histogram("m", Key, "bytes", extra=extra)))
    assert "struct sizes {\n\tstruct histogram histogram;\n\tu64 small;\n\tu64 deepest;\n}" in text
    assert "struct key {\n\tu8 point;\n}" in text


def test_words_of_columns_are_enumerators_and_sums_of_totals():
    class Totals(Record):
        """Totals."""

        hidden = c.Count("not shown")
        unread = c.Count("not read")

    table = Table("m", Key, sums("s", "calls", gauges="now"), Line, lambda entries, settings: [])
    text = generate.enums(tool(table=table, totals=Totals))
    assert "enum { KIND_FIN_LOCAL = 1, KIND_RTO = 2 };" in text
    assert "enum { POINT_NIC_RECV = 0, POINT_NIC_SEND = 5 };" in text
    assert "enum { TOTAL_HIDDEN, TOTAL_UNREAD };\n#define TOTALS 2" in text
    assert "OWNER_SNAPSHOT = 2" in text and "TCP_LISTEN = 10" in text
    assert "LOSS_RING_FULL, LOSS_MAP_FULL" in text


def test_gauges_are_columns_of_their_record():
    table = Table("m", Key, sums("s", "calls", "now", "left"), Line)
    assert (table.gauges, table.shown) == (("now", "left"), ("left",))
    assert isinstance(table.sums.columns[1], Gauge)
