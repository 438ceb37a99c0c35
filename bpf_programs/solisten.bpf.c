// SPDX-License-Identifier: GPL-2.0-only
/* solisten: one event per call of listen(2). Front-end: netbpf/tools/solisten.py */
#include "netbpf.bpf.h"
#include "address.bpf.h"
#include <netbpf/records.h>
#include "anysock.bpf.h"
#include "calls.bpf.h"
#include "files.bpf.h"
#include "request.bpf.h"

KERNEL_FIELDS(sock, sk_max_ack_backlog, __sk_common.skc_state)
KERNEL_OPTIONAL(io_listen, backlog) /* since 6.11 */

#define NO_QUEUE (~0U)

/* The limit of the accept queue; the state has the same number for unix sockets. */
static inline u32 limit_of(struct sock *listener)
{
	struct sock *sk = listener ? transport_sock(listener) : NULL;

	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return NO_QUEUE;
	if (READ(sk, __sk_common.skc_family) != AF_UNIX && READ(sk, sk_protocol) != IPPROTO_TCP)
		return NO_QUEUE;
	return READ(sk, sk_max_ack_backlog);
}

/* The current process has called listen() for `sk`, NULL if its file is no socket. */
static inline int on_listened(struct sock *sk, s32 backlog, s32 result)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u16 family = sk ? READ(sk, __sk_common.skc_family) : 0;
	struct process process = {};
	struct endpoints ends = {};
	struct listening ev = {};

#ifdef ONLY_ERRORS
	if (result >= 0)
		return 0;
#endif
	ev.proto = sk ? proto_of_sock(sk, family) : PROTO_OTHER;
#ifdef FILTER_PROTO
	if (!FILTER_PROTO(ev.proto))
		return 0;
#endif
	read_process(&process, task);
	read_ends_of_call(sk, family, &ends);
	if (!pass_process(&process, task) || !pass_endpoints(&ends))
		return 0;
	if (family == AF_UNIX)
		any_unix(&ev.laddr, sk);
	else if (is_inet(family))
		any_ip(&ev.laddr, ends.laddr);
	ev.time = bpf_ktime_get_ns();
	ev.cgroup = process.cgroup;
	ev.pid = process.pid;
	ev.uid = process.uid;
	__builtin_memcpy(ev.comm, process.comm, sizeof(ev.comm));
	ev.family = ends.family;
	ev.netns = ends.netns;
	ev.lport = ends.lport;
	ev.backlog = backlog;
	ev.queue_max = limit_of(sk);
	ev.errno = result < 0 ? -result : 0;
	ev.result = ev.errno;
	emit(&ev, sizeof(ev));
	return 0;
}

static inline int on_call(u64 regs, s64 result)
{
	return on_listened(socket_of_fd(SYSCALL_ARG(regs, 1)), SYSCALL_ARG(regs, 2), result);
}

static inline int on_enter(int fd, s32 backlog)
{
#ifdef FILTER_SOCKET
	if (!may_pass_call(socket_of_fd(fd)))
		return 0;
#endif
	return begin_call(fd, (u32)backlog, 0);
}

static inline int on_enter_regs(u64 regs)
{
	return on_enter(SYSCALL_ARG(regs, 1), SYSCALL_ARG(regs, 2));
}

static inline int on_exit(s64 result)
{
	struct call call = {};

	/* seccomp may have refused it: then it has no begin. */
	return end_call(&call) ? on_listened(socket_of_fd(call.args[0]), call.args[1], result) : 0;
}

static inline int on_ring(struct io_kiocb *req, s32 result)
{
#if defined(SEES_REQUESTS) && defined(HAVE_io_listen_backlog) && defined(HAVE_io_kiocb_cmd)
	if (req && READ(req, opcode) == RING_LISTEN)
		return on_listened(socket_of_file(READ(req, file)),
				   READ((struct io_listen *)FIELD_AT(req, cmd), backlog), result);
#endif
	return 0;
}
