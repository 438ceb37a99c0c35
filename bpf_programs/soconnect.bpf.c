// SPDX-License-Identifier: GPL-2.0-only
/* soconnect: one event per finished attempt to connect. Front-end: netbpf/tools/soconnect.py */
#include "connect_calls.bpf.h"
#include "inflight.bpf.h"
#include "fate.bpf.h"

KERNEL_FIELDS(task_struct, pid)

/* connect() begins. */
static inline int on_enter(int fd, const void *addr, u32 len)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call call = {.began_ns = bpf_ktime_get_ns()}, *before;

	if (!read_call(&call, fd, addr, len))
		return 0;
	before = calls.lookup(&thread);
	if (before && before->interrupted_ns && before->fd == fd) {
		before->interrupted_ns = before->restarts = 0; /* the kernel restarts the call */
		add_total(TOTAL_RESTARTED, 1);
		return 0;
	}
	if (calls.update(&thread, &call) && !call.is_repeated && !call.dissolves)
		count_loss(LOSS_MAP_FULL);
	return 0;
}

static inline int leave_call(s32 ret)
{
	u64 thread = bpf_get_current_pid_tgid(), now = bpf_ktime_get_ns();
	struct call *call = calls.lookup(&thread);

	if (!call && add_unseen(thread, ret))
		call = calls.lookup(&thread);
	if (!call)
		return 0;
	if (is_interrupted(ret))
		call->interrupted_ns = now;
	else
		end_call(thread, call, ret, now);
	return 0;
}

/* connect() returns. */
static inline int on_leave(s32 ret)
{
	mark_reported();
	return leave_call(ret);
}

/* The system call connect(2) returns: if on_leave() has not seen the call, it ends here. */
static inline int on_inflight(s32 ret)
{
	return was_reported() ? 0 : leave_call(ret);
}

/* The kernel restarts or ends the interrupted call of the current thread. */
static inline int on_decided(enum fate fate)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);

	if (!call || !call->interrupted_ns || call->restarts)
		return 0;
	if (fate == CALL_RESTARTS)
		call->restarts = 1;
	else
		end_call(thread, call, fate == CALL_FAILS ? -EINTR : DIED, call->interrupted_ns);
	return 0;
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk;

	if (!is_wanted(PROTO_TCP) || READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT)
		start_attempt(sk, key);
	else if (oldstate == TCP_SYN_SENT && newstate == TCP_SYN_RECV)
		cross_attempt(sk, key);
	else if (oldstate == TCP_SYN_SENT || oldstate == TCP_SYN_RECV) /* or an accepted socket */
		end_attempt(sk, key, newstate == TCP_ESTABLISHED);
	return 0;
}

/* A socket is destroyed. Its address may be used again: emit an attempt whose call was missed. */
static inline int on_gone(struct sock *sk)
{
	u64 key = (u64)sk;
	struct attempt *attempt = attempts.lookup(&key);

	if (attempt)
		emit_attempt(key, attempt);
	forget_owner(sk);
	return 0;
}

BPF_PERCPU_ARRAY(open_attempt, struct connection, 1); /* too large for the stack */

/* Attempts that are still under way: every TCP socket in SYN_SENT that a process holds. */
static inline int on_open(struct task_file_context *ctx, struct task_struct *task, struct sock *sk)
{
	struct attempt now = {}, *attempt;
	struct connection *ev;
	u64 key = (u64)sk;
	int zero = 0;

	if (!is_wanted(PROTO_TCP) || READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;
	ev = open_attempt.lookup(&zero);
	if (!ev)
		return 0;
	__builtin_memset(ev, 0, sizeof(*ev));
	attempt = attempts.lookup(&key);
	if (attempt)
		now = *attempt;
	else if (!find_owner(sk, &now.owner))
		owner_from_task(&now.owner, task, OWNER_SNAPSHOT);
	read_attempt(&now, sk);
	if (pass_owner(&now.owner) && fill_attempt(ev, &now))
		bpf_seq_write(ctx->meta->seq, ev, sizeof(*ev));
	return 0;
}

/* Calls that are still under way and that no TCP socket shows: on unix sockets with a full backlog. */
static inline int on_open_calls(struct task_context *ctx, struct task_struct *task)
{
	u64 thread = (u64)READ(task, tgid) << 32 | (u32)READ(task, pid);
	struct call *call = calls.lookup(&thread);
	struct connection ev = {};

	if (!call || !call->sk || call->sent_syn || call->is_repeated || call->dissolves ||
	    is_tcp(call->proto) || !fill_call(&ev, call, 0, 0))
		return 0;
	ev.latency_us = ev.syscall_us;
	ev.syscall_us = UNKNOWN;
	bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
