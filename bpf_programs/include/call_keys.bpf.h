/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The key of a call on a socket for --by. A program includes <netbpf/records.h>, with struct by_key,
 * before this.
 */
#ifndef NETBPF_CALL_KEYS_BPF_H
#define NETBPF_CALL_KEYS_BPF_H

#include "anysock.bpf.h"
#include "blocks.bpf.h"
#include "user_stacks.bpf.h"

#if defined(BY_PID) || defined(BY_UID) || defined(BY_CGROUP)
#define BY_PROCESS_PARTS 1
#endif
#if defined(BY_NETNS) || defined(BY_FAMILY) || defined(BY_LPORT) || defined(BY_RPORT)
#define BY_SOCKET_PARTS 1
#endif

static inline void fill_key(struct by_key *key, int op, int proto, struct sock *sk, u16 family)
{
	SET_BY_op(key, op);
	SET_BY_proto(key, proto);
#ifdef BY_STACK
	SET_BY_stack(key, user_stack());
#endif
#ifdef BY_PROCESS_PARTS
	struct process process = {};

	read_process(&process, (struct task_struct *)bpf_get_current_task());
	SET_BY_comm(key, process.comm);
	SET_BY_pid(key, process.pid);
	SET_BY_uid(key, process.uid);
	SET_BY_cgroup(key, process.cgroup);
#elif defined(BY_COMM)
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = READ(task, group_leader);

	READ_INTO(key->comm, leader, comm); /* all of the process would be six reads */
#endif
#ifdef BY_SOCKET_PARTS
	struct endpoints ends = {};

	read_ends_of_call(sk, family, &ends);
	SET_BY_netns(key, ends.netns);
	SET_BY_family(key, ends.family);
	SET_BY_lport(key, ends.lport);
	SET_BY_rport(key, ends.rport);
	SET_BY_laddr(key, ends.laddr, ends.family);
	SET_BY_raddr(key, ends.raddr, ends.family);
#endif
}

#endif
