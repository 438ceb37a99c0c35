/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The probes that prove who owns a socket. An owner is recorded only in a context that proves it:
 * connect, accept or close by the process itself, or the file table of a process at the start. The
 * task that happens to run when a packet arrives is never taken for the owner.
 *
 * With OWNERS_OF_ALL, the snapshot records owners of UDP and raw sockets as well as of TCP sockets.
 *
 * A program that includes this gets the probes `accept` and `accept4` (a passive socket gets its
 * owner), `snapshot` (sockets that existed at start) and, unless it has a probe `state` of its own that
 * calls owner_on_state() and forget_owner(), `owner_state`; see OWNER_PROBES in declare/owners.py.
 */
#ifndef NETBPF_OWNERS_BPF_H
#define NETBPF_OWNERS_BPF_H

#include "iterators.bpf.h"
#include "mptcp.bpf.h"
#include "owner_map.bpf.h"

KERNEL_FIELDS(files_struct, next_fd)

/* The TCP socket (with OWNERS_OF_ALL any IP socket) that this one is, or that carries it, or NULL. */
static inline struct sock *ip_sock(struct sock *sk)
{
	u16 family;

	if (sk)
		sk = transport_sock(sk);
	if (!sk)
		return NULL;
#ifndef OWNERS_OF_ALL
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return NULL;
#endif
	family = READ(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : NULL;
}

/* The same for an open file. */
static inline struct sock *sock_of_file(struct file *file)
{
	return ip_sock(socket_of_file(file));
}

/* A TCP socket in CLOSE may be freed without another change of state: its owner would stay. */
static inline bool is_closed(struct sock *sk)
{
	return READ(sk, sk_protocol) == IPPROTO_TCP && READ(sk, __sk_common.skc_state) == TCP_CLOSE;
}

/* The descriptor that the current process has just reserved: see alloc_fd() in fs/file.c. */
static inline s32 newest_fd(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = READ(task, files);

	return READ(files, next_fd) - 1;
}

/* Record the current process as the owner of a socket; `fd` is its descriptor, 0 if not known. */
static inline int own_new_sock(struct sock *sk, s32 fd)
{
	struct owner owner = {.fd = fd};

	if (!sk || is_closed(sk) || !may_pass_socket(sk))
		return 0;
	owner_from_current(&owner);
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}

/*
 * What a change of a TCP state proves: SYN_SENT comes from connect(), LISTEN from listen(), a FIN of
 * ours from close() or shutdown(). The caller forgets the owner at CLOSE, when it needs it no more.
 */
static inline void owner_from_state(struct owner *owner, struct sock *sk, int newstate)
{
	if (newstate != TCP_SYN_SENT && newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK &&
	    newstate != TCP_LISTEN)
		return;
	owner_from_current(owner);
	if (owner->how)
		set_owner(sk, owner);
}

static inline void owner_on_state(struct sock *sk, int newstate)
{
	struct owner owner = {};

	owner_from_state(&owner, sk, newstate);
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
	/* At ESTABLISHED the local port is known, which connect() chooses after SYN_SENT. */
	if (newstate == TCP_CLOSE || oldstate == TCP_LISTEN ||
	    (newstate == TCP_ESTABLISHED && !may_pass_socket(sk)))
		forget_owner(sk);
	return 0;
}

/* A sender owns the socket. */
static inline int on_owner_send(struct sock *sk)
{
	struct owner owner = {};

#ifdef FILTER_PID
	if (!FILTER_PID(current_pid()))
		return 0;
#endif
	sk = ip_sock(sk);
	if (!sk || (recorded_owner(sk, &owner) && owner.process.pid == current_pid()))
		return 0;
	return own_new_sock(sk, 0);
}

/* inet_csk_accept() returns the new socket. */
static inline int on_accept(struct sock *sk)
{
	return own_new_sock(sk, newest_fd());
}

/* accept() attaches a new socket to its descriptor, whenever the call began. */
static inline int on_graft(struct sock *sk)
{
	return own_new_sock(ip_sock(sk), newest_fd());
}

/* The system call accept() returns. */
static inline int on_accept_exit(int fd)
{
	return own_new_sock(ip_sock(socket_of_fd(fd)), fd);
}

/* Each open socket, once per process that has it open. */
static inline int on_snapshot(struct task_file_context *ctx, struct task_struct *task,
			      struct sock *sk)
{
	struct owner owner = {};

	if (is_closed(sk))
		return 0;
#ifndef OWNERS_SHARED
	if (find_owner(sk, &owner)) /* recorded, and still the owner */
		return 0;
#endif
#ifdef SNAPSHOT_STATES /* the states that the program needs: bits 1 << TCP_* */
	if (!(SNAPSHOT_STATES >> READ(sk, __sk_common.skc_state) & 1))
		return 0;
#endif
	owner_from_task(&owner, task, OWNER_SNAPSHOT);
	owner.fd = ctx->fd;
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}

/* A connection that no process has accepted yet has the owner of its listener, if there is one. */
static inline void find_owner_or_listener(struct sock *sk, u64 listener, struct owner *owner)
{
	if (owner->how || find_owner(sk, owner) || !listener)
		return;
	if (find_owner((struct sock *)listener, owner))
		owner->how = OWNER_LISTENER;
}

#endif
