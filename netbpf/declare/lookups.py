"""The name lookup functions of libc and Go, and their probes.

The C side is in bpf_programs: gethostlatency.bpf.c and include/golang.bpf.h. `netbpf.run.lookups`
attaches the probes to binaries.
"""

from __future__ import annotations

from netbpf.declare.probes import Probe, Uprobe, Uretprobe

_HOST = ("gethostbyname", "gethostbyname2", "gethostbyaddr")
LIBC = ("getaddrinfo", *(name + end for name in _HOST for end in ("", "_r")))
GO = {"go_ip": "lookupIPAddr", "go_host": "lookupHost", "go_addr": "LookupAddr"}
FUNCTIONS = dict(enumerate((None, *LIBC, *(f"net.{name}" for name in GO.values()))))
_FLAGS = (0, 48, 64)  # offset of the flags in net.DNSError: 48 before Go 1.23, 0 if unknown


def _go(end: str, at: str, call: str) -> tuple[Probe, ...]:
    return tuple(
        Probe(
            name + end,
            Uprobe(
                f"net.(*Resolver).{what}{at}", args=("ctx", f"FUNC_NET_{what.upper()}"), call=call
            ),
        )
        for name, what in GO.items()
    )


LIBC_PROBES = (
    *(Probe(n, Uprobe(n, args=("ctx", f"FUNC_{n.upper()}"), call="on_libc")) for n in LIBC),
    Probe("ret", Uprobe(*(f"{name} RET" for name in LIBC), args=("ctx",), every=True)),
    Probe("returned", Uretprobe(*LIBC, args=("ctx",), every=True)),  # if no RET is known
)
GO_PROBES = (
    *_go("", "", "on_go"),
    *_go("_ret", " RET", "on_go_return"),
    *(
        Probe(f"go_errors{n}", Uprobe(f"net.DNSError+{n}", args=(str(n),), call="on_go_errors"))
        for n in _FLAGS
    ),
    Probe(
        "go_libc",
        Uprobe("net._C2func_getaddrinfo", "net._C2func_getnameinfo", args=("ctx",), every=True),
    ),
)
