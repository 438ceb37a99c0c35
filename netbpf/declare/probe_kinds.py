"""The kinds of probes.

How the programs of each kind are loaded and attached, what its C entry gets, where the arguments
are, and what it requires from the kernel. A new kind is an entry of KINDS: no other module depends
on single kinds.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

RESULT = "return"  # the result of a function: no parameter has the name of a C keyword
CONTEXT = "ctx"  # the context of the entry

# Values of enum bpf_prog_type and enum bpf_attach_type, include/uapi/linux/bpf.h
_KPROBE, _TRACEPOINT, _CGROUP_SOCK, _RAW_TRACEPOINT, _CGROUP_SOCK_ADDR, _TRACING = (
    2, 5, 9, 17, 18, 26
)  # fmt: skip
_TRACE_FENTRY, _TRACE_FEXIT, _TRACE_ITER = 24, 25, 28
TRACE_KPROBE_MULTI, TRACE_UPROBE_MULTI = 42, 48


class ProbeKind(NamedTuple):
    """One kind of probe.

    `name` is used in C entries, --probe and JSON, `label` in manuals. `context` is the C type that
    the entry gets a pointer to, "" if each probe has its own. `argument` maps (name, index of the
    parameter, number of parameters) to a C expression. `offers` names the method of
    `netbpf.kernel.inspect.Kernel` that lists the arguments of a target, `needs` is what
    `Kernel.dynamic` must confirm. `attach` selects the function of `netbpf.bpf.attach`. A `typed`
    program is loaded for one target, by the BTF id of the target's name after `btf_prefix`. A
    `preemptible` one may be interrupted by other tasks since 7.0, whose events the kernel then
    skips. `body` is the entry's C code, with the call of the program's function as "{call}". Where
    `attach_type` depends on the target, HOOKS has it. `begins` are the kinds that can trace the
    begin of a call whose end this one traces.
    """

    name: str
    label: str
    program_type: int
    context: str
    argument: Callable[[str, int, int], str]
    offers: str
    attach: str
    attach_type: int = 0
    btf_prefix: str = ""
    needs: str = ""
    typed: bool = False
    preemptible: bool = False
    at_return: bool = False
    user_space: bool = False
    body: str = "\treturn {call};\n"
    begins: tuple[str, ...] = ()


def _register(name: str, index: int, count: int) -> str:
    return "PT_REGS_RC(ctx)" if name == RESULT else f"PT_REGS_PARM{index + 1}(ctx)"


def _trampoline(name: str, index: int, count: int) -> str:
    return f"ctx[{count if name == RESULT else index}]"


class Hook(NamedTuple):
    """A place where the kernel runs programs of a cgroup, by the name of its section in libbpf.

    `attach_type` and `number` are the name and value of its enum bpf_attach_type, `arguments` what
    the entry passes on.
    """

    attach_type: str
    number: int
    arguments: tuple[str, ...]


# The hooks of sockets of IPv4 and IPv6; the kernel's own sockets do not pass them. `sock_create`
# runs when a socket has been made (61023658760032, 4.10), `sock_release` before a program's socket
# is closed, which an accept() may have made (f5836749c9c0, 5.9), the others before UDP sends to an
# address that the call gives (1cedee13d25a, 4.18).
HOOKS = {
    "sock_create": Hook("BPF_CGROUP_INET_SOCK_CREATE", 2, ("sk",)),
    "sock_release": Hook("BPF_CGROUP_INET_SOCK_RELEASE", 34, ("sk",)),
    "sendmsg4": Hook("BPF_CGROUP_UDP4_SENDMSG", 14, ("sk", "uaddr")),
    "sendmsg6": Hook("BPF_CGROUP_UDP6_SENDMSG", 15, ("sk", "uaddr")),
}
# The kernel passes a pointer to its own struct. The verifier takes it for a pointer to the struct
# of the ABI and allows only that one's fields: read the pointer as a number. With the result 1 the
# call continues.
_CGROUP_BODY = """\
	void *typed = ctx;
	struct %s *%s = NULL;

	bpf_probe_read_kernel(&%s, sizeof(%s), &typed);
	{call};
	return 1;
"""


def _cgroup_body(struct: str, name: str) -> str:
    return _CGROUP_BODY % (struct, name, name, name)


KINDS = {
    kind.name: kind
    for kind in (
        ProbeKind(
            "rawtp", "raw tracepoint", _RAW_TRACEPOINT, "struct bpf_raw_tracepoint_args",
            lambda name, index, count: f"ctx->args[{index}]", "raw_tracepoint", "raw_tracepoint",
            preemptible=True,
        ),
        ProbeKind(
            "tp", "tracepoint", _TRACEPOINT, "", lambda name, index, count: f"ctx->{name}",
            "tracepoint", "trace_event",
        ),
        ProbeKind(
            "fentry", "fentry", _TRACING, "u64", _trampoline, "function", "trampoline",
            _TRACE_FENTRY, needs="fentry", typed=True, preemptible=True,
        ),
        ProbeKind(
            "fexit", "fexit", _TRACING, "u64", _trampoline, "function", "trampoline",
            _TRACE_FEXIT, needs="fentry", typed=True, preemptible=True, at_return=True,
        ),
        ProbeKind(
            # The attach type allows a kprobe_multi link (since 5.18), and other links still work.
            "kprobe", "kprobe", _KPROBE, "struct pt_regs", _register, "function", "function",
            TRACE_KPROBE_MULTI, needs="kprobe",
        ),
        ProbeKind(
            "kretprobe", "kretprobe", _KPROBE, "struct pt_regs", _register, "function", "function",
            TRACE_KPROBE_MULTI, needs="kprobe", at_return=True, begins=("kprobe",),
        ),
        ProbeKind(
            "cgsock", "cgroup socket hook", _CGROUP_SOCK, "struct bpf_sock",
            lambda name, index, count: name, "cgroup_hook", "cgroup",
            body=_cgroup_body("sock", "sk"),
        ),
        ProbeKind(
            "cgaddr", "cgroup address hook", _CGROUP_SOCK_ADDR, "struct bpf_sock_addr",
            lambda name, index, count: f"READ(call, {name})", "cgroup_hook", "cgroup",
            body=_cgroup_body("bpf_sock_addr_kern", "call"),
        ),
        ProbeKind(
            "iter", "BPF iterator", _TRACING, "", lambda name, index, count: "", "iterator",
            "iterator", _TRACE_ITER, btf_prefix="bpf_iter_", typed=True,
        ),
        ProbeKind(
            # A uprobe_multi link (since 6.6), or a perf event, which accepts the same program.
            "uprobe", "uprobe", _KPROBE, "struct pt_regs", _register, "", "user",
            TRACE_UPROBE_MULTI, needs="uprobe", user_space=True,
        ),
        ProbeKind(
            "uretprobe", "uretprobe", _KPROBE, "struct pt_regs", _register, "", "user",
            TRACE_UPROBE_MULTI, needs="uprobe", at_return=True, user_space=True,
        ),
    )
}  # fmt: skip


def type_of(kind: ProbeKind, target: str) -> int:
    """Return the attach type of a program of this kind, which may depend on its target."""
    return HOOKS[target].number if kind.attach == "cgroup" else kind.attach_type


_TASK_FILE = """\
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct sock *sk = task && file ? sock_of_file(file) : NULL;

	return sk ? {call}(ctx, task, sk) : 0;
"""
_TASK = """\
	struct task_struct *task = ctx->task;

	return task ? {call}(ctx, task) : 0;
"""
_MAP_ELEMENT = """\
	void *key = ctx->key;

	return key ? {call}(ctx, key) : 0;
"""
# The verifier allows no arithmetic with a typed pointer: read it as a number.
_TCP = """\
	struct sock *typed = ctx->sk, *sk = NULL;

	bpf_probe_read_kernel(&sk, sizeof(sk), &typed);
	return sk ? {call}(ctx, sk) : 0;
"""
# By target of an iterator: the context of include/iterators.bpf.h, and the body of the entry.
ITERATORS = {
    "task_file": ("struct task_file_context", _TASK_FILE),
    "task": ("struct task_context", _TASK),
    "bpf_map_elem": ("struct map_element_context", _MAP_ELEMENT),
    "tcp": ("struct tcp_context", _TCP),
}
