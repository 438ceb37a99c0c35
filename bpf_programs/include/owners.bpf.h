/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who owns a socket, and how that is known. An owner is recorded only in a context that proves it:
 * connect, accept or close by the process itself, or the file table of a process at the start. The
 * task that happens to run when a packet arrives is never taken for the owner.
 *
 * A program that defines OWNERS_OF_ALL learns those of UDP and raw sockets from the snapshot, too.
 *
 * A program that includes this gets the probes `accept` and `accept4` (a passive socket gets its
 * owner), `snapshot` (sockets that existed at start) and, unless it has a probe `state` of its own that
 * calls owner_on_state() and forget_owner(), `owner_state`; see OWNER_PROBES in declare/owners.py.
 */
#ifndef NETBPF_OWNERS_BPF_H
#define NETBPF_OWNERS_BPF_H

#include "files.bpf.h"
#include "mptcp.bpf.h"
#include "task_file.bpf.h"

/* Numbers of the column class Owner. */
enum owner_how { OWNER_UNKNOWN, OWNER_EXACT, OWNER_SNAPSHOT };

struct owner {
	struct process process;
	u32 how;
	u32 pass; /* did the process filters let it through? */
#ifdef OWNERS_OF_ALL
	u64 inode; /* of a socket that nobody tells us the end of, see is_owned_still() */
#endif
};
/* By the address of struct sock: in use as long as the socket is, removed by forget_owner(). */
BPF_HASH(owners, u64, struct owner, MAP_ENTRIES);

#ifdef OWNERS_OF_ALL
KERNEL_FIELDS(sock, sk_socket)
KERNEL_FIELDS(socket, file)
KERNEL_FIELDS(inode, i_ino)

/* The number of the socket's inode, which no other one gets; 0 for TCP, whose end we see. */
static inline u64 inode_of_socket(struct sock *sk)
{
	struct socket *socket;
	struct inode *inode;
	struct file *file;

	if (READ(sk, sk_protocol) == IPPROTO_TCP)
		return 0;
	socket = READ(sk, sk_socket);
	file = READ(socket, file);
	inode = READ(file, f_inode);
	return READ(inode, i_ino);
}

/* Is the socket the one whose owner was learnt, and not another one in its place? */
static inline bool is_owned_still(struct sock *sk, struct owner *owner)
{
	return owner->inode == inode_of_socket(sk);
}
#else
static inline bool is_owned_still(struct sock *sk, struct owner *owner)
{
	return true;
}
#endif

static inline void set_owner(struct sock *sk, struct owner *owner)
{
	u64 key = (u64)sk;

#ifdef ON_OWNER /* false: do not follow the socket any longer */
	if (!ON_OWNER(sk, owner->pass)) {
		owners.delete(&key);
		return;
	}
#endif
#ifdef OWNERS_OF_ALL
	owner->inode = inode_of_socket(sk);
#endif
	if (owners.update(&key, owner))
		count_loss(LOSS_MAP_FULL);
}

/* `task` proved by `how` that it owns a socket. */
static inline void own(struct owner *owner, struct task_struct *task, int how)
{
	/* A kernel thread closes for others (delayed fput) or for the kernel itself. */
	if (READ(task, flags) & PF_KTHREAD)
		return;
	read_process(&owner->process, task);
	owner->how = how;
	owner->pass = pass_process(&owner->process, task);
}

static inline void own_current(struct owner *owner)
{
	own(owner, (struct task_struct *)bpf_get_current_task(), OWNER_EXACT);
}

static inline bool find_owner(struct sock *sk, struct owner *to)
{
	u64 key = (u64)sk;
	struct owner *known = owners.lookup(&key);

	if (!known || !is_owned_still(sk, known))
		return false;
	*to = *known;
	return true;
}

static inline void forget_owner(struct sock *sk)
{
	u64 key = (u64)sk;

	owners.delete(&key);
}

/* Would the owner be shown? With a process filter an unknown owner is nobody's match. */
static inline bool pass_owner(const struct owner *owner)
{
#ifdef FILTER_PROCESS
	return owner->pass;
#else
	return true;
#endif
}

/* The TCP socket (with OWNERS_OF_ALL any IP socket) that this one is, or that carries it, or NULL. */
static inline struct sock *ip_sock(struct sock *sk)
{
	u16 family;

	if (sk)
		sk = carrier_of(sk);
	if (!sk)
		return NULL;
#ifndef OWNERS_OF_ALL
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return NULL;
#endif
	family = READ(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : NULL;
}

/* The same behind an open file. */
static inline struct sock *sock_of_file(struct file *file)
{
	return ip_sock(socket_of_file(file));
}

/* A TCP socket in CLOSE may go without another change of state: nobody would forget its owner. */
static inline bool is_closed(struct sock *sk)
{
	return READ(sk, sk_protocol) == IPPROTO_TCP && READ(sk, __sk_common.skc_state) == TCP_CLOSE;
}

static inline int on_accept(struct sock *sk)
{
	struct owner owner = {};

	if (!sk || is_closed(sk))
		return 0;
	own_current(&owner);
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}

/*
 * What a change of a TCP state proves: SYN_SENT comes from connect(), LISTEN from listen(), a FIN of
 * ours from close() or shutdown(). The caller forgets the owner at CLOSE, when it needs it no more.
 */
static inline void owner_on_state(struct sock *sk, int newstate)
{
	struct owner owner = {};

	if (newstate != TCP_SYN_SENT && newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK &&
	    newstate != TCP_LISTEN)
		return;
	own_current(&owner);
	if (owner.how)
		set_owner(sk, &owner);
}

/*
 * For programs that do not follow the states themselves. A new child of a listener (LISTEN to
 * SYN_RECV) may stand where another socket was, and has no owner until it is accepted.
 */
static inline int on_owner_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	owner_on_state(sk, newstate);
	if (newstate == TCP_CLOSE || oldstate == TCP_LISTEN)
		forget_owner(sk);
	return 0;
}

/* Who sends owns, and that is news only where nothing better is known. */
static inline int on_owner_send(struct sock *sk)
{
	struct owner owner = {};

	sk = ip_sock(sk);
	return !sk || find_owner(sk, &owner) ? 0 : on_accept(sk);
}

#ifdef USE_owner_send_rawtp
int owner_send_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_owner_send((struct sock *)RAWTP_ARG(owner_send, sk));
}
#endif
#ifdef USE_owner_send_tp
int owner_send_tp(struct owner_send_args *ctx)
{
	return on_owner_send((struct sock *)ctx->sk);
}
#endif

#ifdef USE_owner_state_rawtp
int owner_state_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_owner_state((struct sock *)RAWTP_ARG(owner_state, sk),
			      RAWTP_ARG(owner_state, oldstate), RAWTP_ARG(owner_state, newstate));
}
#endif
#ifdef USE_owner_state_tp
int owner_state_tp(struct owner_state_args *ctx)
{
	return on_owner_state((struct sock *)ctx->skaddr, ctx->oldstate, ctx->newstate);
}
#endif

#ifdef USE_accept_tp
int accept_tp(struct accept_args *ctx)
{
	return on_accept(ip_sock(socket_of_fd(ctx->ret)));
}
#endif
#ifdef USE_accept4_tp
int accept4_tp(struct accept4_args *ctx)
{
	return on_accept(ip_sock(socket_of_fd(ctx->ret)));
}
#endif

/* Where accept() ties the new socket to its descriptor, whenever the call began. */
#ifdef USE_accept_fentry
int accept_fentry(u64 *ctx)
{
	return on_accept(ip_sock((struct sock *)ctx[ARG_accept_sk]));
}
#endif
#ifdef USE_accept_kprobe
int accept_kprobe(struct pt_regs *ctx)
{
	return on_accept(ip_sock((struct sock *)PT_REGS_PARM1(ctx)));
}
#endif
#ifdef USE_accept_fexit
int accept_fexit(u64 *ctx)
{
	return on_accept((struct sock *)ctx[ARGS_accept]);
}
#endif
#ifdef USE_accept_kretprobe
int accept_kretprobe(struct pt_regs *ctx)
{
	return on_accept((struct sock *)PT_REGS_RC(ctx));
}
#endif

#ifdef USE_snapshot_iter
/* Threads share their descriptors: ask each process once, through its leader. */
int snapshot_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner owner = {};
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || is_closed(sk) || find_owner(sk, &owner)) /* seen in action: that is better */
		return 0;
#ifdef SNAPSHOT_STATES /* a program may care for some states only: bits 1 << TCP_* */
	if (!(SNAPSHOT_STATES >> READ(sk, __sk_common.skc_state) & 1))
		return 0;
#endif
	own(&owner, task, OWNER_SNAPSHOT);
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}
#endif

#endif
