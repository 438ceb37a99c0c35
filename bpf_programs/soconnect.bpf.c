// SPDX-License-Identifier: GPL-2.0-only
/* soconnect: one event per finished attempt to connect. Front-end: netbpf/tools/soconnect.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "files.bpf.h"
#define SNAPSHOT_STATES (1 << TCP_SYN_SENT)
#include "owners.bpf.h"
#include "address.bpf.h"

KERNEL_FIELDS(sock, sk_err, sk_socket)
KERNEL_FIELDS(socket, state)
KERNEL_FIELDS(tcp_sock, total_retrans, segs_out)

#define UNKNOWN (~0ULL)

/* asm-generic/errno.h; the last one only inside the kernel: a call that a signal interrupted */
enum { EINTR = 4, EAGAIN = 11, EADDRNOTAVAIL = 99, EINPROGRESS = 115, ERESTARTSYS = 512 };
enum { SS_UNCONNECTED = 1, SS_CONNECTING = 2 }; /* enum socket_state, linux/net.h */

/* Numbers of the column result in netbpf/tools/soconnect.py that are no error numbers. */
enum { RESULT_PENDING = -1, RESULT_PORTS_USED_UP = 1000, RESULT_CLOSED = 1001 };
enum { ASYNC_UNKNOWN = 2 };
enum total { TOTAL_REPEATED, TOTALS }; /* of the record Totals in netbpf/tools/soconnect.py */
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

/* A connect() that a thread is in. */
struct call {
	u64 began_ns;
	u64 sk;
	struct owner owner;
	u16 proto;
	u16 rport;
	u16 family; /* of the address; 0 if it could not be read */
	u8 sent_syn; /* an attempt began in this call: the rest is with `attempts` */
	struct any_addr to; /* read when the call begins: the memory may serve another then */
};
BPF_HASH(calls, u64, struct call, MAP_ENTRIES);

/* A TCP socket between SYN_SENT and what comes of it. */
struct attempt {
	u64 syn_ns; /* 0: before the start */
	u64 end_ns; /* 0: not yet */
	u64 call_ns; /* 0: no connect() was seen, as with io_uring */
	u64 returned_ns; /* 0: not yet */
	struct owner owner;
	struct endpoints ends;
	s32 error; /* that of the socket */
	s32 ret; /* that of connect() */
	u32 retransmits;
	u8 syn_left; /* a SYN was handed to the network */
	u8 port_chosen; /* the program had bound a local port */
	u8 established;
};
BPF_HASH(attempts, u64, struct attempt, MAP_ENTRIES);
/*
 * An attempt is told when the call has returned and the handshake is over, in whatever order and
 * on two CPUs at once: whoever finds the other one's mark here is the second and tells it.
 */
BPF_HASH(halves, u64, u8, MAP_ENTRIES);

struct connection {
	u64 time;
	u64 latency_us; /* in ns, as all durations here */
	u64 syscall_us;
	u64 handshake_us;
	u64 cgroup;
	u32 pid;
	s32 result;
	s32 errno;
	u32 retransmits;
	u32 uid;
	u32 netns;
	u16 rport;
	u16 proto;
	u16 lport;
	char comm[16];
	u8 family;
	struct any_addr raddr;
	u8 laddr[16];
	u8 async;
	u8 owner;
	u8 pad[2];
};

static inline bool is_stream_of_ours(u16 proto)
{
	return proto == IPPROTO_TCP || proto == IPPROTO_MPTCP;
}

static inline bool is_wanted(u16 proto)
{
#ifdef WITH_UDP
	if (proto == IPPROTO_UDP || proto == IPPROTO_UDPLITE)
		return true;
#endif
#ifdef WITH_UNIX
	if (proto == PROTO_UNIX_STREAM || proto == PROTO_UNIX_DGRAM ||
	    proto == PROTO_UNIX_SEQPACKET)
		return true;
#endif
	return is_stream_of_ours(proto);
}

/* Fill in what all have in common; false if it is not to be shown. */
static inline bool fill(struct connection *ev, struct owner *owner, struct endpoints *ends)
{
	ev->latency_us = ev->handshake_us != UNKNOWN ? ev->handshake_us : ev->syscall_us;
	if (!pass_endpoints(ends) || (ev->latency_us != UNKNOWN && ev->latency_us < MIN_NS))
		return false;
#ifdef ONLY_FAILED
	if (!ev->result)
		return false;
#endif
	ev->cgroup = owner->process.cgroup;
	ev->pid = owner->process.pid;
	ev->uid = owner->how ? owner->process.uid : ~0U;
	ev->owner = owner->how;
	__builtin_memcpy(ev->comm, owner->process.comm, sizeof(ev->comm));
	ev->netns = ends->netns;
	ev->family = ends->family;
	ev->lport = ends->lport;
	__builtin_memcpy(ev->laddr, ends->laddr, 16);
	return true;
}

/* Did connect() return without knowing what would come of it? */
static inline bool left_open(s32 ret)
{
	return ret == -EINPROGRESS || ret == -ERESTARTSYS || ret == -EINTR;
}

/* An attempt as it stands, over or not. */
static inline bool fill_attempt(struct connection *ev, struct attempt *attempt)
{
	s32 error = attempt->error;

	ev->time = bpf_ktime_get_ns();
	ev->syscall_us = ev->handshake_us = UNKNOWN;
	ev->async = attempt->call_ns ? 0 : ASYNC_UNKNOWN;
	if (attempt->returned_ns) {
		ev->syscall_us = attempt->returned_ns - attempt->call_ns;
		/* 0 before the end: Fast Open, where the SYN waits for the first data */
		ev->async = left_open(attempt->ret) ||
			    (!attempt->ret &&
			     (!attempt->end_ns || attempt->end_ns > attempt->returned_ns));
	}
	if (attempt->syn_ns && attempt->syn_left)
		ev->handshake_us = (attempt->end_ns ? attempt->end_ns : ev->time) - attempt->syn_ns;
	if (!error && !attempt->established && attempt->ret < 0 && !left_open(attempt->ret))
		error = -attempt->ret;
	ev->errno = error;
	ev->result = error;
	if (error == EADDRNOTAVAIL && !attempt->syn_left && !attempt->port_chosen)
		ev->result = RESULT_PORTS_USED_UP;
	else if (!error && !attempt->established)
		ev->result = attempt->end_ns ? RESULT_CLOSED : RESULT_PENDING;
	ev->retransmits = attempt->retransmits;
	ev->proto = IPPROTO_TCP;
	ev->rport = attempt->ends.rport;
	any_ip(&ev->raddr, attempt->ends.raddr);
	return fill(ev, &attempt->owner, &attempt->ends);
}

static inline void tell_attempt(u64 key, struct attempt *attempt)
{
	struct connection ev = {};

	if (fill_attempt(&ev, attempt))
		emit(&ev, sizeof(ev));
	halves.delete(&key);
	attempts.delete(&key);
}

/* Is the other half there already? Then it is for the caller to tell the attempt. */
static inline bool is_second_half(u64 key)
{
	u8 mark = 1;

	return halves.insert(&key, &mark);
}

/* What comes of a call without a handshake: UDP, unix, and attempts that never sent a SYN. */
static inline void tell_call(struct call *call, s32 ret)
{
	struct sock *sk = (struct sock *)call->sk;
	struct connection ev = {};
	struct endpoints ends = {};

	ev.time = bpf_ktime_get_ns();
	ev.syscall_us = ev.time - call->began_ns;
	ev.handshake_us = UNKNOWN;
	ev.errno = ret == -ERESTARTSYS ? EINTR : -ret;
	ev.result = ev.errno;
	ev.proto = call->proto;
	ends.family = call->family;
	if (sk) {
		struct net *net = READ(sk, __sk_common.skc_net.net);

		ends.netns = READ(net, ns.inum);
		ends.family = READ(sk, __sk_common.skc_family);
	}
	if (sk && is_inet(ends.family))
		read_endpoints(sk, &ends);
	ev.rport = call->rport;
	__builtin_memcpy(&ev.raddr, &call->to, sizeof(ev.raddr));
	if (ret == 0 && is_inet(ends.family)) {
		any_ip(&ev.raddr, ends.raddr); /* the kernel makes 127.0.0.1 of 0.0.0.0 */
		ev.rport = ends.rport;
	} else if (call->to.kind == ANY_IP) {
		__builtin_memcpy(ends.raddr, call->to.bytes, 16);
		ends.rport = call->rport;
		if (is_mapped(ends.raddr))
			ends.family = AF_INET;
	}
	/* Not bound yet, and no port is left: inet_dgram_connect() */
	if (ret == -EAGAIN && call->proto == IPPROTO_UDP)
		ev.result = RESULT_PORTS_USED_UP;
	if (fill(&ev, &call->owner, &ends))
		emit(&ev, sizeof(ev));
}

/* Another connect() on a socket that is connecting or connected: the first one is what counts. */
static inline void on_repeated(struct call *call, u64 thread)
{
	u64 key = call->sk, *total;
	struct attempt *attempt = attempts.lookup(&key);
	int which = TOTAL_REPEATED;

	/* A signal interrupted the call, and now the kernel begins it anew. */
	if (attempt && attempt->ret == -ERESTARTSYS && !halves.delete(&key)) {
		attempt->returned_ns = 0;
		attempt->ret = 0;
		call->began_ns = attempt->call_ns;
		call->sent_syn = 1;
		if (calls.update(&thread, call))
			count_loss(LOSS_MAP_FULL);
		return;
	}
	total = totals.lookup(&which);
	if (total)
		*total += 1;
}

static inline int on_enter(int fd, const void *addr, u32 len)
{
	struct sock *sk = socket_of_fd(fd);
	u64 thread = bpf_get_current_pid_tgid();
	struct sockaddr_any name = {};
	struct call call = {};

	if (sk) {
		call.sk = (u64)sk;
		call.proto = sock_proto(sk);
		if (!is_wanted(call.proto))
			return 0;
	}
	own_current(&call.owner);
	if (!pass_owner(&call.owner))
		return 0;
	read_sockaddr(&name, addr, len);
	if (!sk && !is_inet(name.family))
		return 0;
	call.family = name.family;
	call.began_ns = bpf_ktime_get_ns();
	any_sockaddr(&call.to, &call.rport, &name, len);
	if (sk && READ(sk, sk_type) != SOCK_DGRAM) {
		struct socket *socket = READ(sk, sk_socket);

		if (READ(socket, state) != SS_UNCONNECTED) {
			on_repeated(&call, thread);
			return 0;
		}
	}
	if (calls.update(&thread, &call))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

static inline int on_leave(s32 ret)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);
	u64 key;

	if (!call)
		return 0;
	key = call->sk;
	if (call->sent_syn) {
		struct attempt *attempt = attempts.lookup(&key);

		if (attempt) {
			attempt->ret = ret;
			attempt->returned_ns = bpf_ktime_get_ns();
			if (is_second_half(key))
				tell_attempt(key, attempt);
		}
	} else if (is_stream_of_ours(call->proto) ? ret && !left_open(ret) : true) {
		tell_call(call, ret);
	}
	calls.delete(&thread);
	return 0;
}

static inline void on_syn(struct sock *sk, u64 key)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct call *call = calls.lookup(&thread);
	struct attempt attempt = {};

	if (call) {
		/* The call's own socket, or the one that carries it: MPTCP has subflows. */
		call->sk = key;
		call->sent_syn = 1;
		attempt.call_ns = call->began_ns;
		attempt.owner = call->owner;
	} else {
		own_current(&attempt.owner);
		if (!pass_owner(&attempt.owner))
			return;
	}
	attempt.syn_ns = bpf_ktime_get_ns();
	attempt.port_chosen = READ((struct inet_sock *)sk, inet_sport) != 0;
	halves.delete(&key);
	if (attempts.update(&key, &attempt))
		count_loss(LOSS_MAP_FULL);
}

/* What the socket itself knows of the attempt, now or at its end. */
static inline void read_attempt(struct attempt *attempt, struct sock *sk)
{
	attempt->retransmits = READ((struct tcp_sock *)sk, total_retrans);
	attempt->syn_left = READ((struct tcp_sock *)sk, segs_out) != 0;
	read_endpoints(sk, &attempt->ends);
}

/* The end of an attempt that was in SYN_SENT at the start: only of these an owner is noted. */
static inline struct attempt *adopt(struct sock *sk, u64 key)
{
	struct attempt before = {};

	if (!find_owner(sk, &before.owner))
		return NULL;
	forget_owner(sk);
	if (!pass_owner(&before.owner))
		return NULL;
	if (attempts.update(&key, &before))
		count_loss(LOSS_MAP_FULL);
	return attempts.lookup(&key);
}

static inline void on_over(struct sock *sk, u64 key, bool established)
{
	struct attempt *attempt = attempts.lookup(&key);

	if (!attempt)
		attempt = adopt(sk, key);
	if (!attempt)
		return;
	read_attempt(attempt, sk);
	attempt->established = established;
	attempt->error = established ? 0 : READ(sk, sk_err);
	attempt->end_ns = bpf_ktime_get_ns();
	if (!attempt->call_ns || is_second_half(key))
		tell_attempt(key, attempt);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	if (newstate == TCP_SYN_SENT)
		on_syn(sk, (u64)sk);
	/* SYN_SENT -> SYN_RECV: both ends call each other at once; and other sockets accept */
	else if ((oldstate == TCP_SYN_SENT && newstate != TCP_SYN_RECV) || oldstate == TCP_SYN_RECV)
		on_over(sk, (u64)sk, newstate == TCP_ESTABLISHED);
	return 0;
}

#include "state_entries.bpf.h"

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
	return on_leave(ctx[ARGS_leave]);
}
#endif
#ifdef USE_leave_tp
int leave_tp(struct leave_args *ctx)
{
	return on_leave(ctx->ret);
}
#endif
#ifdef USE_leave_kretprobe
int leave_kretprobe(struct pt_regs *ctx)
{
	return on_leave(PT_REGS_RC(ctx));
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
