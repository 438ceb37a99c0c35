// SPDX-License-Identifier: GPL-2.0-only
/* solife: one event per finished socket of IPv4 and IPv6. Front-end: netbpf/tools/solife.py */
#include "netbpf.bpf.h"
#include "iterators.bpf.h"
#include <netbpf/records.h>
#include "lives.bpf.h"
#include "messages.bpf.h"

KERNEL_FIELDS(bpf_sock_addr_kern, sk, uaddr)
KERNEL_FIELDS(msghdr, msg_name)
KERNEL_FIELDS(sock, sk_socket)

enum { OP_SEND, OP_RECV };

/* A program has made a socket. */
static inline int on_create(struct sock *sk)
{
	struct life life = {.origin = ORIGIN_SOCKET};

	if (!may_pass(sk))
		return 0;
	own_life(&life);
	return begin_life(sk, &life);
}

/* socket(2) has made a socket; `kern`: for the kernel itself. */
static inline int on_created(struct socket *socket, int kern)
{
	struct sock *sk = READ(socket, sk);
	u16 family = READ(sk, __sk_common.skc_family);

	return !kern && (family == AF_INET || family == AF_INET6) ? on_create(sk) : 0;
}

/* A listener gets a connection, which a program may accept. */
static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct life life = {.origin = ORIGIN_ACCEPT};

	if (oldstate != TCP_LISTEN || newstate != TCP_SYN_RECV ||
	    READ(sk, sk_protocol) != IPPROTO_TCP || !may_pass(sk))
		return 0;
	return begin_life(sk, &life);
}

/* A TCP socket is destroyed: its program has closed it, or it never had one. */
static inline int on_gone(struct sock *sk)
{
	end_life((u64)sk);
	return 0;
}

static inline int on_message(int op, struct sock *sk, int result, int flags)
{
	u64 key = (u64)sk;
	struct life *life = lives.lookup(&key);

	if (!life)
		return 0;
	if (!life->process.pid)
		own_life(life);
	if (result < 0) {
		if (is_error(result) && !(flags & MSG_ERRQUEUE))
			__sync_fetch_and_add(&life->errors, 1);
	} else if (op == OP_SEND) {
		__sync_fetch_and_add(&life->tx_bytes, result);
		__sync_fetch_and_add(&life->tx_msgs, 1);
	} else if (takes_data(flags) && (result || READ(sk, sk_type) != SOCK_STREAM)) {
		__sync_fetch_and_add(&life->rx_bytes, result);
		__sync_fetch_and_add(&life->rx_msgs, 1);
	}
	return 0;
}

static inline int on_udp_send(struct sock *sk, struct msghdr *msg, int family)
{
	return on_peer(sk, READ(msg, msg_name), family);
}

/*
 * The last descriptor of a socket is closed, in a process's call to close(2) or exit. If a kernel
 * thread does it for the process, that is not known, only the process that made the socket.
 */
static inline int on_release(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	u64 key = (u64)sk;
	struct life *life = lives.lookup(&key);
	u32 flags = READ(task, flags);
	struct process process = {};
	struct finished ev = {};
	bool pass = false;

	if (read_sock_sk_kern_sock(sk) || !pass_proto(sk))
		return 0;
	if (!(flags & PF_KTHREAD)) {
		read_process(&process, task);
		pass = pass_process(&process, task);
		ev.end = flags & PF_EXITING ? END_EXIT : END_CLOSE;
	} else if (life) {
		process = life->process;
		pass = life->pass;
	}
#ifdef FILTER_PROCESS
	if (!pass)
		goto out;
#endif
	if (fill(&ev, sk, life)) {
		set_process(&ev, &process);
		emit(&ev, sizeof(ev));
	}
out:
	end_life(key);
	return 0;
}

static inline int on_released(struct socket *socket)
{
	struct sock *sk = READ(socket, sk);

	return sk ? on_release(sk) : 0;
}

/* A socket that is still open. A connection that no program has accepted yet is none. */
static inline int on_open(struct map_element_context *ctx, u64 *key)
{
	u64 address = *key;
	struct life *life = lives.lookup(&address);
	struct sock *sk = (struct sock *)address;
	struct finished ev = {.end = END_OPEN};
	struct process process = {};

	if (!life || !READ(sk, sk_socket))
		return 0;
#ifdef FILTER_PROCESS
	if (!life->pass)
		return 0;
#endif
	process = life->process;
	if (fill(&ev, sk, life)) {
		set_process(&ev, &process);
		bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	}
	return 0;
}
