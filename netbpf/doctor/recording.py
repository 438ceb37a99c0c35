"""Record a kernel as test data: whole subsystems, not only what tools use today.

`netbpf.kernel.inspect.RecordedKernel` reads such a file in place of a running kernel. Because a
recording holds whole subsystems, it still serves when a tool needs another field or event.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from netbpf.bpf import layout
from netbpf.declare.probes import Alternative
from netbpf.declare.tool import Tool, all_tools
from netbpf.doctor import machine
from netbpf.doctor.report import manifests_of, missing_fields, selections_of
from netbpf.errors import NetbpfError, PrivilegeError, Unsupported
from netbpf.kernel.btf import ENUM, ENUM64, FUNC, STRUCT, UNION, Btf, Member
from netbpf.kernel.inspect import Kernel, LiveKernel, tracefs
from netbpf.kernel.recorded import AT, SIZE, covers, join_names
from netbpf.system.privileges import missing_privileges

# What a recording contains completely; other names that tools use are added. Trace events of
# modules (bridge, mac80211, sunrpc) exist only while the module is loaded. They are not listed,
# because a recording could not distinguish an unloaded module from a missing one.
COVERS = {
    "tracepoint": """
        sock tcp udp skb net qdisc napi irq icmp xdp io_uring mptcp fib fib6 neigh netlink sched
        signal task cgroup oom syscalls raw_syscalls page_pool timer
    """.split(),
    "function": """
        tcp_* __tcp_* tcp4_* tcp6_* tcp_v4_* tcp_v6_* inet_* __inet_* inet6_* __inet6_* udp_*
        __udp_* udp4_* udp6_* udpv6_* __udp4_* __udp6_* ip_* __ip_* ip6_* __ip6_* ipv6_* ipv4_*
        sock_* __sock_* sk_* __sk_* sock?_* skb_* __skb_* kfree_skb* __kfree_skb* consume_skb*
        __consume_* alloc_skb* __alloc_skb* dev_* __dev_* netif_* __netif_* netdev_* napi_*
        __napi_* qdisc_* __qdisc_* sch_* pfifo_* unix_* __unix_* netlink_* __netlink_* mptcp_*
        __mptcp_* raw_* rawv6_* packet_* tpacket_* xsk_* __xsk_* security_sock* security_sk_*
        security_inet_* security_file_* security_task_* security_unix_* __sys_* __x64_sys_*
        __arm64_sys_* do_sys_* do_accept* do_send* do_recv* do_ep_* ep_* do_exit do_group_exit
        do_tcp_* do_fcntl* do_signal* get_signal* filp_* fput* __fput* fd_* __fd_* close_fd*
        __close_fd* file_close_fd* fget* __fget* fdget* __fdget* receive_fd* __receive_fd* scm_*
        __scm_* io_* __io_* icmp_* __icmp_* icmpv6_* icmp6_* ndisc_* neigh_* __neigh_* arp_*
        fib_* __fib_* fib6_* rt_* rt6_* nf_hook* nf_conntrack_* nf_nat_* nf_send_* nft_do_*
        ipt_do_* reqsk_* cookie_* __cookie_* bpf_skops_* move_addr_* import_iovec* import_*
        vfs_* sendmsg_* ____sys_* ___sys_* splice_* kernel_* release_sock lock_sock*
        __lock_sock* __release_sock task_work_* exit_* signal_* send_signal* do_splice*
        loopback_* veth_* vlan_* macvlan_* ipvlan_* team_* bond_* br_handle_* br_forward*
        gso_* __gso_* gro_*
        inet*_hashtables* *_sock_destruct* *_xmit* cgroup_attach_* cgroup_exit* *seccomp*
        __secure_computing* do_poll* do_select* schedule* sockfd_* syscall_trace_* do_syscall_64
        kill_* wake_up_new_task copy_process
    """.split(),
    "struct": """
        sock sock_* socket socket_* sockaddr* inet_* inet6_* ipv6_* in_addr in6_addr in_device
        in6_* tcp_* tcphdr tcp6_* udp_* udp6_* udphdr udplite* raw_* raw6_* icmp* ip_* iphdr
        ip6_* unix_* netlink_* nlmsghdr packet_* xdp_* xsk_* mptcp_* sk_* skb_* request_sock*
        fastopen_* sctp_sock net net_* netns_* netdev_* netdevice_* neigh* dst_* rtable rt6_*
        fib_* fib6_* flowi* Qdisc* qdisc_* sch_* napi_* softnet_data packet_type offload_* gro_*
        vlan_* macvlan_* veth_* tun_struct tun_file bonding slave bpf_iter__* bpf_map_memory
        bpf_ringbuf* bpf_map bpf_prog task_struct thread_info thread_struct signal_struct
        sighand_struct sigpending sigqueue k_sigaction sigaction kernel_siginfo ksignal siginfo*
        cred user_namespace user_struct nsproxy ns_common pid upid pid_* time_namespace
        uts_namespace mnt_namespace cgroup_namespace ipc_namespace css_set cgroup cgroup_*
        kernfs_* kn_* mm_struct mm_* vm_area_struct file file_operations inode super_block
        file_system_type files_struct fdtable fd path dentry qstr* vfsmount mount msghdr
        user_msghdr mmsghdr cmsghdr iov_iter iovec kvec bio_vec kiocb scm_* ubuf_info* page
        folio io_* async_poll epitem eventpoll eppoll_entry wait_queue_* poll_* work_struct
        delayed_work timer_list hrtimer list_head hlist_* hlist_nulls_* llist_* rb_* kref
        refcount_struct kuid* kgid* atomic* spinlock raw_spinlock lockdep_map mutex rw_semaphore
        percpu_counter pt_regs trace_entry tracepoint_ext seq_file seq_operations proto
        proto_ops net_proto_family nf_hook_state nf_conn nf_conntrack* nft_pktinfo in_ifaddr
        in_pktinfo gnet_* gso_* rps_* ethhdr arphdr gre_* ip_tunnel* bpf_sock* bpf_skb*
        cgroup_bpf* psock_* strparser tasklet_struct softirq_action rusage rlimit task_io_*
        sched_entity task_cputime prev_cputime uid_gid* group_info seccomp*
    """.split(),
    "enum": """
        tcp_* TCP_* sk_* __sk_* sock_* skb_* tsq_* net_* netdev_* netns_* inet_* ip_* ip6_*
        ipv6_* in6_* udp_* unix_* mptcp_* qdisc_* neigh_* nl_* nf_* nft_* xdp_* io_* req_flag_*
        socket_* pid_type siginfo_* signal* cgroup_* kernfs_* tc_* pkt_* gro_* bpf_prog_type
        bpf_func_id
        bpf_attach_type bpf_map_type rt_* rtattr* rtnetlink* lwtunnel_* flow_* icmp_* iter_type
        fib_* mod_* sknetlink_* iptunnel_* hrtimer_* packet_* msg_* linux_mptcp_* linux_mib*
        tls_* xfrm_*
    """.split(),
    "raw_tracepoint": ["*"],
}  # fmt: skip


def record(path: str, btf: str = "") -> None:
    """Write what the running kernel has to the file `path`; without root it would answer less.

    Raises PrivilegeError, and NetbpfError if the file cannot be written.
    """
    missing = missing_privileges()
    if missing:
        raise PrivilegeError(
            f"recording needs {', '.join(missing)}",
            f"run it as root: sudo netbpf doctor --record {path}",
        )
    text = json.dumps(
        recording_of(LiveKernel(btf)), indent=0, separators=(",", ":"), sort_keys=True
    )
    try:
        Path(path).write_text(text + "\n")
    except OSError as error:
        raise NetbpfError(f"cannot write '{path}': {error.strerror}") from None


def recording_of(kernel: LiveKernel) -> dict[str, Any]:
    """Return the recording of `kernel` for JSON, in the format that `RecordedKernel` reads."""
    btf = kernel.btf
    assert isinstance(btf, Btf)
    structs, enums = btf.names(STRUCT, UNION), btf.names(ENUM, ENUM64)
    recorder = QueryRecorder(kernel)
    machine.kernel_checks(recorder)
    for tool in all_tools():
        query_everything(tool, recorder)
    wanted = {part: [*COVERS[part], *recorder.uncovered(part)] for part in COVERS}
    functions = sorted(n for n in btf.names(FUNC) if covers(wanted["function"], n))
    raw = sorted(n[len(_RAW) :] for n in btf.names(FUNC) if n.startswith(_RAW))
    common, events = _events(kernel, wanted["tracepoint"])
    return {
        "release": kernel.release,
        "covers": wanted,
        "common_fields": common,
        "tracepoint": events,
        "raw_tracepoint": {name: join_names(kernel.raw_tracepoint(name)) for name in raw},
        "function": {name: join_names(kernel.function(name)) for name in functions},
        "untyped": [name for name in functions if not kernel.typed(name)],
        "iterator": sorted(n[len(_ITER) :] for n in structs if n.startswith(_ITER)),
        "dynamic": {kind: kernel.dynamic(kind) for kind in ("fentry", "kprobe", "uprobe")},
        "preempts": {programs: kernel.preempts(programs) for programs in ("rawtp", "syscalls")},
        "struct": _structs(btf, (n for n in structs if covers(wanted["struct"], n))),
        "enum": {n: btf.enumerators(n) for n in enums if covers(wanted["enum"], n)},
    }


_RAW, _ITER, _COMMON = "__traceiter_", "bpf_iter__", "common_"


def _events(kernel: Kernel, systems: Iterable[str]) -> tuple[str, dict[str, dict[str, str]]]:
    """Return the common fields of trace events, and {system: {event: its other fields}}."""
    events: dict[str, dict[str, str]] = {}
    common: list[str] = []
    for system in systems:
        paths = sorted(Path(tracefs(), "events", system).glob("*/format"))
        for event in (path.parent.name for path in paths):
            fields = kernel.tracepoint(f"{system}:{event}") or ()
            common = [name for name in fields if name.startswith(_COMMON)]
            events.setdefault(system, {})[event] = " ".join(fields[len(common) :])
    return " ".join(common), events


def _structs(btf: Btf, names: Iterable[str]) -> dict[str, dict[str, Any]]:
    """Return the structs `names` and all structs that they contain."""
    structs: dict[str, dict[str, Any]] = {}
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in structs:
            members = _members(btf.members(name), waiting)
            structs[name] = {SIZE: btf.size(name), **members}
    return structs


def _members(members: dict[str, Member], nested: list[str]) -> dict[str, Any]:
    """Return the members for JSON; append the names of structs among them to `nested`."""
    result: dict[str, Any] = {}
    for name, (field, struct, inner) in members.items():
        bits = f":{field.bit_size}" if field.bit_size else ""
        result[name] = f"{field.bit_offset}{bits} {struct or field.ctype}"
        if struct:
            nested.append(struct)
        elif inner is not None:
            size = int(field.ctype[len("u8 %s[") : -1])
            result[name] = {SIZE: size, AT: field.bit_offset, **_members(inner, nested)}
    return result


class QueryRecorder:
    """Forwards queries to a kernel and records the names that they are about."""

    def __init__(self, kernel: Kernel) -> None:
        """Forward queries to `kernel`."""
        self.kernel = kernel
        self.queried: dict[str, set[str]] = {}

    def __getattr__(self, query: str) -> Any:
        method = getattr(self.kernel, query)
        if not callable(method):
            return method

        def forward(*args: str) -> Any:
            part = {"field": "struct", "size": "struct", "enumerator": "enum"}.get(query)
            self.queried.setdefault(part or query, set()).add(args[0])
            return method(*args)

        return forward

    def uncovered(self, part: str) -> list[str]:
        """Return the queried names of `part` (a key of COVERS) that COVERS does not match."""
        names = {name.partition(":")[0] for name in self.queried.get(part, ())}
        return sorted(name for name in names if not covers(COVERS[part], name))


def query_everything(tool: Tool, kernel: Kernel) -> None:
    """Query `kernel` for all that selecting probes and laying out structs for `tool` may need."""
    for probe in tool.all_probes:
        for alternative in probe.alternatives:
            _query(alternative, kernel)
    list(missing_fields(tool, kernel))
    with suppress(Unsupported):
        layout.header(kernel, manifests_of(tool), selections_of(tool, kernel))


def _query(alternative: Alternative, kernel: Kernel) -> None:
    for name in alternative.names if alternative.how.offers else ():
        getattr(kernel, alternative.how.offers)(name)
