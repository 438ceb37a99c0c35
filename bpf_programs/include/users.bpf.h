/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which process uses a socket: for sockets without states (UDP, raw, packet), of which owners.bpf.h
 * sees no beginning. A program that includes this defines OWNERS_OF_ALL, and has the probes of
 * USER_PROBES in declare/owners.py.
 */
#ifndef NETBPF_USERS_BPF_H
#define NETBPF_USERS_BPF_H

#include "owners.bpf.h"
#include "packet.bpf.h"

/* The descriptor under which the current process has a socket open, or -1. */
static inline s32 current_descriptor(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct file *file = file_of_sock(sk);

	if (!file || READ(task, flags) & PF_KTHREAD)
		return -1;
	return descriptor_of(READ(task, group_leader), file);
}

/* A process has sent or received: the socket is its own. TCP's owners are found by other probes. */
static inline int on_user(struct sock *sk)
{
	u16 family = READ(sk, __sk_common.skc_family);
	struct owner owner = {};
	s32 fd;

	if (READ(sk, sk_protocol) == IPPROTO_TCP || (family != AF_INET && family != AF_INET6))
		return 0;
#ifdef FILTER_PID
	if (!FILTER_PID(current_pid()))
		return 0;
#endif
	if (recorded_owner(sk, &owner) && owner.process.pid == current_pid())
		return 0;
	fd = current_descriptor(sk);
	return own_new_sock(sk, fd < 0 ? 0 : fd);
}

/* States of TCP that a process has brought about: it is the owner, and close() leaves no descriptor. */
#define OWN_STATES                                                                                 \
	(1 << TCP_SYN_SENT | 1 << TCP_FIN_WAIT1 | 1 << TCP_FIN_WAIT2 | 1 << TCP_CLOSING |          \
	 1 << TCP_LAST_ACK)

/*
 * Find the process that has a socket, as find_owner() does. What looking through its descriptors has
 * found is kept: it would cost more than all else that is done with a packet.
 */
static inline bool find_user(struct sock *sk, struct owner *to)
{
	u64 key = (u64)sk;
	struct owner *known = owners.lookup(&key);
	struct file *file = file_of_sock(sk);
	struct task_struct *leader;
	s32 fd;

	if (!known || !is_owned_still(sk, known))
		return false;
	*to = *known;
	if (!file || (READ(sk, sk_protocol) == IPPROTO_TCP &&
		      OWN_STATES >> READ(sk, __sk_common.skc_state) & 1))
		return true;
	leader = (struct task_struct *)to->leader;
	if (READ(leader, tgid) == to->process.pid) {
		if (file_at(descriptors_of(leader), to->fd) == (u64)file)
			return true;
		fd = descriptor_of(leader, file);
		if (fd >= 0) {
			known->fd = fd;
			return true;
		}
	}
	return find_owner(sk, to);
}

/*
 * Find the process that uses the socket of a packet that is sent. The current process does, if it has
 * the socket open: the first packet leaves before the call that sends it returns.
 */
static inline void find_sender(struct sock *sk, struct owner *owner)
{
	u8 state = READ(sk, __sk_common.skc_state);
	s32 fd;

	if (find_user(owner_sk(sk), owner) || state == TCP_NEW_SYN_RECV || state == TCP_TIME_WAIT)
		return;
	fd = current_descriptor(sk);
	if (fd >= 0 && !own_new_sock(sk, fd))
		recorded_owner(sk, owner);
}

#endif
