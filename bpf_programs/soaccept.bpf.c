// SPDX-License-Identifier: GPL-2.0-only
/* soaccept: one event per accepted connection or error. Front-end: netbpf/tools/soaccept.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "files.bpf.h"
#include "current.bpf.h"
#include "earlier.bpf.h"
#include "established.bpf.h"
#include "request.bpf.h"
#include "fate.bpf.h"

KERNEL_FIELDS(sock, sk_ack_backlog, sk_max_ack_backlog, sk_receive_queue.qlen)

#define NO_QUEUE (~0U)

enum { EAGAIN = 11, ECANCELED = 125 }; /* asm-generic/errno.h */

/* Of the record Totals in netbpf/tools/soaccept.py. */
enum total { TOTAL_WOULD_BLOCK, TOTAL_INTERRUPTED, TOTAL_RESTARTED, TOTALS };
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static inline void count(int which)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += 1;
}

/* An accept() that a thread is in. */
struct call {
	u64 listener;
	u8 interrupted; /* a signal ended it, and maybe it begins again */
	u8 restarts; /* the kernel has decided that it does */
};
BPF_HASH(calls, u64, struct call, MAP_ENTRIES);

struct acceptance {
	u64 time;
	u64 wait_us; /* in ns */
	u64 cgroup;
	u32 pid;
	s32 fd;
	s32 result;
	u32 queue;
	u32 queue_max;
	s32 errno;
	u32 uid;
	u32 netns;
	u16 rport;
	u16 proto;
	u16 lport;
	char comm[16];
	u8 family;
	struct any_addr raddr;
	struct any_addr laddr;
	u8 listener[16]; /* all ones: not known */
	u8 pad[7];
};

/* Connections that wait in the listener's queue, and how many may. */
static inline void read_queue(struct acceptance *ev, struct sock *listener)
{
	struct sock *sk = carrier_of(listener);

	/* Closed meanwhile? Unix sockets have the same number. */
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_LISTEN)
		return;
	if (READ(sk, __sk_common.skc_family) == AF_UNIX)
		ev->queue = READ(sk, sk_receive_queue.qlen);
	else if (READ(sk, sk_protocol) == IPPROTO_TCP)
		ev->queue = READ(sk, sk_ack_backlog);
	else
		return;
	ev->queue_max = READ(sk, sk_max_ack_backlog);
}

/* Both ends of a socket of any family. */
static inline void read_ends(struct acceptance *ev, struct endpoints *ends, struct sock *sk)
{
	struct net *net = READ(sk, __sk_common.skc_net.net);

	ev->proto = sock_proto(sk);
	ends->family = READ(sk, __sk_common.skc_family);
	ends->netns = READ(net, ns.inum);
	if (ends->family == AF_UNIX) {
		any_unix(&ev->laddr, sk);
	} else if (is_inet(ends->family)) {
		read_endpoints(sk, ends);
		any_ip(&ev->laddr, ends->laddr);
	}
}

/* EAGAIN is an empty queue and no error: counted only. io_uring has ECANCELED. */
static inline bool is_only_counted(s32 ret)
{
	if (ret != -EAGAIN && ret != -ECANCELED)
		return is_interrupted(ret);
	count(ret == -EAGAIN ? TOTAL_WOULD_BLOCK : TOTAL_INTERRUPTED);
	return true;
}

/* `ret` is the descriptor of the new connection `sk`, or an error below 0. */
static inline int on_accepted(struct sock *listener, struct sock *sk, s32 ret)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct process process = {};
	struct endpoints ends = {};
	struct acceptance ev = {};

	ev.wait_us = sk ? waited(sk) : UNKNOWN;
	ev.queue = ev.queue_max = NO_QUEUE;
	read_process(&process, task);
	if (!pass_process(&process, task))
		return 0;
	__builtin_memset(ev.listener, 0xff, 16);
	ends.netns = current_netns();
	if (listener) {
		read_ends(&ev, &ends, listener);
		__builtin_memcpy(ev.listener, ends.laddr, 16);
		read_queue(&ev, listener);
	}
	if (sk) {
		read_ends(&ev, &ends, sk);
		if (is_inet(ends.family))
			any_ip(&ev.raddr, ends.raddr);
	}
#ifdef ONLY_TCP
	if (ev.proto != IPPROTO_TCP && ev.proto != IPPROTO_MPTCP)
		return 0;
#endif
	if (!pass_endpoints(&ends) || is_only_counted(ret))
		return 0;
#ifdef ONLY_ERRORS
	if (ret >= 0)
		return 0;
#endif
	ev.time = bpf_ktime_get_ns();
	ev.cgroup = process.cgroup;
	ev.pid = process.pid;
	ev.uid = process.uid;
	__builtin_memcpy(ev.comm, process.comm, sizeof(ev.comm));
	ev.fd = sk ? ret : -1;
	ev.errno = ret < 0 ? -ret : 0;
	ev.result = ev.errno;
	ev.netns = ends.netns;
	ev.family = ends.family;
	ev.lport = ends.lport;
	ev.rport = ends.rport;
	emit(&ev, sizeof(ev));
	return 0;
}

/* Is the current process, and may this listener's connections be, what was asked for? */
static inline bool is_wanted(struct sock *listener)
{
#ifdef FILTER_PROCESS
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct process process = {};

	read_process(&process, task);
	if (!pass_process(&process, task))
		return false;
#endif
	return may_be_wanted(listener);
}

static inline int on_enter(int fd)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct sock *sk = socket_of_fd(fd);
	struct call call = {.listener = (u64)sk}, *before;

	if (!sk || !is_wanted(sk))
		return 0;
	before = calls.lookup(&thread);
	if (before && before->interrupted && before->listener == call.listener)
		count(TOTAL_RESTARTED);
	if (calls.update(&thread, &call))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The end of a call whose begin was not seen: it is older than the start, or seccomp refused it. */
static inline int on_unseen(s32 ret)
{
	struct sock *sk = socket_of_fd(ret), *listener = NULL;
	struct call_args args = {};

	if (args_of_call(&args, ret)) {
		if (ret < 0)
			listener = socket_of_fd(args.fd);
		else if (ret == args.rolled_back && !(sk && waits(sk)))
			return 0;
	}
	return on_accepted(listener, sk, ret);
}

static inline int on_leave(s32 ret)
{
	u64 thread = bpf_get_current_pid_tgid(), listener;
	struct call *call = calls.lookup(&thread);

	if (!call)
		return on_unseen(ret);
	if (is_interrupted(ret)) {
		call->interrupted = 1;
		return 0;
	}
	listener = call->listener;
	calls.delete(&thread);
	return on_accepted((struct sock *)listener, socket_of_fd(ret), ret);
}

static inline int on_decided(enum fate fate)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);

	if (!call || !call->interrupted || call->restarts)
		return 0;
	if (fate == CALL_RESTARTS) {
		call->restarts = 1;
		return 0;
	}
	if (fate == CALL_FAILS)
		count(TOTAL_INTERRUPTED);
	calls.delete(&thread);
	return 0;
}

#if defined(HAVE_io_kiocb_opcode) && defined(HAVE_io_kiocb_file)
static inline int on_ring_accept(struct io_kiocb *req, s32 ret)
{
	struct sock *listener = socket_of_file(READ(req, file));

	return on_accepted(listener, accepts_direct(req) ? NULL : socket_of_fd(ret), ret);
}
#endif

static inline int on_ring(struct io_kiocb *req, s32 ret)
{
	struct sock *sk;

#if defined(HAVE_io_kiocb_opcode) && defined(HAVE_io_kiocb_file)
	if (req)
		return READ(req, opcode) == RING_ACCEPT ? on_ring_accept(req, ret) : 0;
#endif
	/* Nothing tells of what: the descriptor of a connection that was waiting is an accept's. */
	sk = socket_of_fd(ret);
	return sk && waits(sk) ? on_accepted(NULL, sk, ret) : 0;
}

/* These three serve accept and accept4, which have what matters at the same place. */
#ifdef USE_enter_tp
int enter_tp(struct enter_args *ctx)
{
	return on_enter(ctx->fd);
}
#endif
#ifdef USE_leave_tp
int leave_tp(struct leave_args *ctx)
{
	return on_leave(ctx->ret);
}
#endif
#ifdef USE_earlier_tp
int earlier_tp(struct earlier_args *ctx)
{
	return was_told() ? 0 : on_leave(ctx->ret);
}
#endif

#ifdef USE_enter_fentry
int enter_fentry(u64 *ctx)
{
	return on_enter(ctx[ARG_enter_fd]);
}
#endif
#ifdef USE_leave_fexit
int leave_fexit(u64 *ctx)
{
	mark_told();
	return on_leave(ctx[ARGS_leave]);
}
#endif

#ifdef USE_enter_kprobe
int enter_kprobe(struct pt_regs *ctx)
{
	return on_enter(PT_REGS_PARM1(ctx));
}
#endif
#ifdef USE_leave_kretprobe
int leave_kretprobe(struct pt_regs *ctx)
{
	mark_told();
	return on_leave(PT_REGS_RC(ctx));
}
#endif
