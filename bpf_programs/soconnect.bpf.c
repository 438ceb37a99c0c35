// SPDX-License-Identifier: GPL-2.0-only
/* soconnect: one event per finished attempt to connect. Front-end: netbpf/tools/soconnect.py */
#include "attempts.bpf.h"
#include "current.bpf.h"
#include "inflight.bpf.h"
#include "fate.bpf.h"

KERNEL_FIELDS(sock, sk_socket)
KERNEL_FIELDS(socket, state)
KERNEL_FIELDS(task_struct, pid)

enum { SS_UNCONNECTED = 1 }; /* enum socket_state, linux/net.h */
enum { AF_UNSPEC };

/* Of the record Totals in netbpf/tools/soconnect.py. */
enum total { TOTAL_REPEATED, TOTAL_RESTARTED, TOTAL_DISSOLVED, TOTALS };
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static inline void count(int which)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += 1;
}

/* A connect() that a thread is in. */
struct call {
	u64 began_ns; /* 0: the begin was not seen */
	u64 interrupted_ns; /* 0: it is not; or a signal ended it, and maybe it begins again */
	s32 fd;
	u8 restarts; /* the kernel has decided that it does */
	u8 is_repeated; /* on a socket that is connecting or connected */
	u8 dissolves; /* AF_UNSPEC: the socket is to be as it was before connect() */
	u64 sk;
	struct owner owner;
	u16 proto;
	u16 rport;
	u16 family; /* of the address; 0 also if it could not be read */
	u8 sent_syn; /* an attempt began in this call: the rest is with `attempts` */
	struct any_addr to; /* read when the call begins: the memory may serve another then */
};
/* Twice as many as attempts, so that with a full map each socket is counted once, by on_syn(). */
BPF_HASH(calls, u64, struct call, MAP_ENTRIES * 2);

/* A call without a handshake: UDP, unix, and attempts that never sent a SYN. `end_ns` 0: it goes on. */
static inline bool fill_call(struct connection *ev, struct call *call, s32 ret, u64 end_ns)
{
	struct sock *sk = (struct sock *)call->sk;
	struct endpoints ends = {};

	ev->time = bpf_ktime_get_ns();
	ev->syscall_us = ev->handshake_us = UNKNOWN;
	if (call->began_ns)
		ev->syscall_us = (end_ns ? end_ns : ev->time) - call->began_ns;
	ev->errno = ret == DIED ? 0 : -ret;
	ev->result = ret == DIED ? RESULT_CLOSED : end_ns ? ev->errno : RESULT_PENDING;
	ev->proto = call->proto;
	ends.family = call->family;
	if (sk) {
		struct net *net = READ(sk, __sk_common.skc_net.net);

		ends.netns = READ(net, ns.inum);
		ends.family = READ(sk, __sk_common.skc_family);
	} else {
		ends.netns = current_netns();
	}
	if (sk && is_inet(ends.family))
		read_endpoints(sk, &ends);
	ev->rport = call->rport;
	__builtin_memcpy(&ev->raddr, &call->to, sizeof(ev->raddr));
	if (ret == 0 && is_inet(ends.family)) {
		any_ip(&ev->raddr, ends.raddr); /* the kernel makes 127.0.0.1 of 0.0.0.0 */
		ev->rport = ends.rport;
	} else if (call->to.kind == ANY_IP) {
		__builtin_memcpy(ends.raddr, call->to.bytes, 16);
		ends.rport = call->rport;
		if (is_mapped(ends.raddr))
			ends.family = AF_INET;
	}
	/* Not bound yet, and no port is left: inet_dgram_connect() */
	if (ret == -EAGAIN && call->proto == IPPROTO_UDP)
		ev->result = RESULT_PORTS_USED_UP;
	return fill(ev, &call->owner, &ends);
}

/* May a call on what is no socket be one of those that are shown, by the address? */
static inline bool is_named(u16 family)
{
#ifdef WITH_UNIX
	if (family == AF_UNIX)
		return true;
#endif
	return is_inet(family);
}

/* Take down a call that a program makes; false if it is none that was asked for. */
static inline bool read_call(struct call *call, int fd, const void *addr, u32 len)
{
	struct sock *sk = socket_of_fd(fd);
	bool is_read;
	struct socket *socket;
	struct net *net;

	own_current(&call->owner);
	if (!pass_owner(&call->owner))
		return false;
	if (sk) {
		call->sk = (u64)sk;
		call->proto = sock_proto(sk);
		net = READ(sk, __sk_common.skc_net.net);
		if (!is_wanted(call->proto) || !may_pass_early(sk, READ(sk, __sk_common.skc_family),
							       READ(net, ns.inum), false))
			return false;
	}
	is_read = read_sockaddr(&call->to, &call->family, &call->rport, addr, len);
	call->dissolves = is_read && len >= sizeof(call->family) && call->family == AF_UNSPEC;
	if (!sk && (!is_named(call->family) ||
		    !may_pass_early(NULL, call->family, current_netns(), false)))
		return false;
	call->fd = fd;
	if (sk && !call->dissolves && READ(sk, sk_type) != SOCK_DGRAM) {
		socket = READ(sk, sk_socket);
		call->is_repeated = READ(socket, state) != SS_UNCONNECTED;
	}
	return true;
}

static inline int on_enter(int fd, const void *addr, u32 len)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call call = {.began_ns = bpf_ktime_get_ns()}, *before;

	if (!read_call(&call, fd, addr, len))
		return 0;
	before = calls.lookup(&thread);
	if (before && before->interrupted_ns && before->fd == fd) {
		before->interrupted_ns = before->restarts = 0; /* it goes on where it was */
		count(TOTAL_RESTARTED);
		return 0;
	}
	if (calls.update(&thread, &call) && !call.is_repeated && !call.dissolves)
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The call returned: the second half of an attempt, or all of it. */
static inline bool take_call(struct connection *ev, struct call *call, s32 ret, u64 now)
{
	struct attempt *attempt;
	u64 key = call->sk;

	if (!call->sent_syn)
		return (!is_stream_of_ours(call->proto) || (ret && !left_open(ret))) &&
		       fill_call(ev, call, ret, now);
	attempt = attempts.lookup(&key);
	if (!attempt)
		return false;
	attempt->ret = ret;
	attempt->returned_ns = now;
	attempt->deferred = !ret && !attempt->end_ns &&
			    READ((struct tcp_sock *)key, segs_out) == attempt->segs_before;
	return is_second_half(key) && take_attempt(ev, key, attempt);
}

static inline void end_call(u64 thread, struct call *call, s32 ret, u64 now)
{
	struct connection ev = {};

	if (call->is_repeated)
		count(TOTAL_REPEATED);
	else if (call->dissolves && !ret)
		count(TOTAL_DISSOLVED);
	else if (take_call(&ev, call, ret, now))
		emit(&ev, sizeof(ev));
	calls.delete(&thread);
}

/*
 * A call whose begin was not seen: seccomp refused it, or it began before the start. False if it is
 * no attempt of its own: the end of the handshake shows what began before the start.
 */
static inline bool add_unseen(u64 thread, s32 ret)
{
	struct call_args args = {};
	struct call call = {};
	struct sock *sk;

#ifndef WITH_UNIX
	if (!ret)
		return false;
#endif
	if (ret > 0 || left_open(ret) || is_interrupted(ret) || !args_of_call(&args, ret) ||
	    !read_call(&call, args.fd, args.addr, args.len) || call.is_repeated ||
	    (call.dissolves && !ret))
		return false;
	sk = (struct sock *)call.sk;
	if (is_stream_of_ours(call.proto)) {
		sk = carrier_of(sk);
		if (!ret || (sk && READ((struct tcp_sock *)sk, segs_out)))
			return false;
	} else if (!ret && sk && is_inet(READ(sk, __sk_common.skc_family))) {
		return false;
	}
	return !calls.update(&thread, &call);
}

static inline int on_leave(s32 ret)
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

static inline void on_syn(struct sock *sk, u64 key)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);
	struct attempt attempt = {};

	if (!call || call->interrupted_ns) { /* not inside: a write with Fast Open, or io_uring */
		call = NULL;
		own_current(&attempt.owner);
		if (!pass_owner(&attempt.owner))
			return;
	} else {
		/* The call's own socket, or the one that carries it: MPTCP has subflows. */
		call->sk = key;
		call->sent_syn = 1;
		attempt.call_ns = call->began_ns;
		attempt.owner = call->owner;
	}
	read_endpoints(sk, &attempt.ends);
	attempt.begin_ns = bpf_ktime_get_ns();
	attempt.port_chosen = attempt.ends.lport != 0;
	attempt.retrans_before = READ((struct tcp_sock *)sk, total_retrans);
	attempt.segs_before = READ((struct tcp_sock *)sk, segs_out);
	halves.delete(&key);
	if (may_pass_endpoints(&attempt.ends)) {
		if (!attempts.update(&key, &attempt))
			return;
		count_loss(LOSS_MAP_FULL);
	}
	if (call)
		calls.delete(&thread);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT)
		on_syn(sk, (u64)sk);
	else if (oldstate == TCP_SYN_SENT && newstate == TCP_SYN_RECV)
		on_crossing(sk, (u64)sk);
	else if (oldstate == TCP_SYN_SENT ||
		 oldstate == TCP_SYN_RECV) /* or a socket that accepts */
		on_over(sk, (u64)sk, newstate == TCP_ESTABLISHED);
	return 0;
}

/* Another socket may get its address: nothing stays, also if the end of the call was missed. */
static inline int on_gone(struct sock *sk)
{
	u64 key = (u64)sk;
	struct attempt *attempt = attempts.lookup(&key);

	if (attempt)
		show_attempt(key, attempt);
	forget_owner(sk);
	return 0;
}

#ifdef USE_enter_fentry
int enter_fentry(u64 *ctx)
{
	return on_enter(ctx[ARG_enter_fd], (void *)ctx[ARG_enter_uservaddr],
			ctx[ARG_enter_addrlen]);
}
#endif
#ifdef USE_enter_tp
int enter_tp(struct enter_args *ctx)
{
	return on_enter(ctx->fd, (void *)ctx->uservaddr, ctx->addrlen);
}
#endif
#ifdef USE_enter_kprobe
int enter_kprobe(struct pt_regs *ctx)
{
	return on_enter(PT_REGS_PARM1(ctx), (void *)PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}
#endif

#ifdef USE_leave_fexit
int leave_fexit(u64 *ctx)
{
	mark_reported();
	return on_leave(ctx[ARGS_leave]);
}
#endif
#ifdef USE_leave_tp
int leave_tp(struct leave_args *ctx)
{
	return on_leave(ctx->ret);
}
#endif
#ifdef USE_inflight_tp
int inflight_tp(struct inflight_args *ctx)
{
	return was_reported() ? 0 : on_leave(ctx->ret);
}
#endif
#ifdef USE_leave_kretprobe
int leave_kretprobe(struct pt_regs *ctx)
{
	mark_reported();
	return on_leave(PT_REGS_RC(ctx));
}
#endif

#ifdef USE_again_rawtp
int again_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_again((struct sock *)RAWTP_ARG(again, sk));
}
#endif
#ifdef USE_again_tp
int again_tp(struct again_args *ctx)
{
	return on_again((struct sock *)ctx->skaddr);
}
#endif

#ifdef USE_open_iter
/* Attempts that are still on: every TCP socket in SYN_SENT that a process holds. */
int open_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct attempt *attempt, now = {};
	struct connection ev = {};
	struct sock *sk;
	u64 key;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || READ(sk, __sk_common.skc_state) != TCP_SYN_SENT)
		return 0;
	key = (u64)sk;
	attempt = attempts.lookup(&key);
	if (attempt)
		now = *attempt;
	else if (!find_owner(sk, &now.owner))
		own(&now.owner, task, OWNER_SNAPSHOT);
	read_attempt(&now, sk);
	if (pass_owner(&now.owner) && fill_attempt(&ev, &now))
		bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
#endif

#ifdef USE_open_calls_iter
/* bpf_iter__task: fixed order */
struct task_context {
	struct iterator_meta *meta;
	struct task_struct *task;
};

/* Calls that are still on and that no TCP socket shows: of unix sockets, on a full backlog. */
int open_calls_iter(struct task_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct connection ev = {};
	struct call *call;
	u64 thread;

	if (!task)
		return 0;
	thread = (u64)READ(task, tgid) << 32 | (u32)READ(task, pid);
	call = calls.lookup(&thread);
	if (!call || !call->sk || call->sent_syn || call->is_repeated || call->dissolves ||
	    is_stream_of_ours(call->proto) || !fill_call(&ev, call, 0, 0))
		return 0;
	ev.latency_us = ev.syscall_us;
	ev.syscall_us = UNKNOWN;
	bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
#endif
