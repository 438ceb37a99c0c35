/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The system calls on sockets, except those that move messages. A program that includes this has the
 * probes of CALL_PROBES in declare/calls.py and a column `op`, includes <netbpf/records.h> before,
 * and defines before
 *   on_make(op, family, type, protocol, result): socket or socketpair has ended,
 *   on_socket_call(op, sk, result, bytes): another call has, `sk` is NULL if its file is no socket.
 */
#ifndef NETBPF_SOCKET_CALLS_BPF_H
#define NETBPF_SOCKET_CALLS_BPF_H

#include "anysock.bpf.h"
#include "calls.bpf.h"
#include "files.bpf.h"
#include "inflight.bpf.h"

/* A system call with these arguments has ended. */
static inline int on_ended(int op, u64 a, u64 b, u64 c, s64 result)
{
	if (op == OP_SOCKET || op == OP_SOCKETPAIR)
		return on_make(op, a, b, c, result);
	return on_socket_call(op, socket_of_fd(op == OP_ACCEPT && result >= 0 ? result : a), result,
			      0);
}

/* Exit of the kernel's function of the call: it shows the arguments (in `regs`) and the result. */
static inline int on_call(int op, u64 regs, s64 result)
{
	if (op == OP_ACCEPT)
		mark_reported();
	return on_ended(op, SYSCALL_ARG(regs, 1), SYSCALL_ARG(regs, 2), SYSCALL_ARG(regs, 3),
			result);
}

/* The call's trace event at the exit: it shows the result only. */
static inline int on_exit(int op, s64 result)
{
	struct call call = {};

	/* Of an accept that began before the start, the descriptor that it returns is enough. */
	if (!end_call(&call) && (op != OP_ACCEPT || result < 0))
		return 0;
	return on_ended(op, call.args[0], call.args[1], call.args[2], result);
}

/* Return of the kernel's function of the call: it shows the result only. */
static inline int on_return(int op, s64 result)
{
	if (op == OP_ACCEPT)
		mark_reported();
	return on_exit(op, result);
}

static inline int on_inflight(int op, s64 result)
{
	return was_reported() ? 0 : on_exit(op, result);
}

/* A call on a descriptor begins: what filters exclude already takes no room in the map. */
static inline int on_enter_fd(int fd)
{
#ifdef FILTER_SOCKET
	if (!may_pass_call(socket_of_fd(fd)))
		return 0;
#endif
	return begin_call(fd, 0, 0);
}

static inline int on_enter_fd_regs(u64 regs)
{
	return on_enter_fd(SYSCALL_ARG(regs, 1));
}

/* socket() or socketpair() begins. */
static inline int on_enter_make(u16 family, u32 type, u16 protocol)
{
	return pass_socket(NULL, family) ? begin_call(family, type, protocol) : 0;
}

static inline int on_enter_make_regs(u64 regs)
{
	return on_enter_make(SYSCALL_ARG(regs, 1), SYSCALL_ARG(regs, 2), SYSCALL_ARG(regs, 3));
}

static inline int on_close(int fd)
{
	struct sock *sk = socket_of_fd(fd);

	return sk ? on_socket_call(OP_CLOSE, sk, 0, 0) : 0;
}

static inline int on_close_regs(u64 regs)
{
	return on_close(SYSCALL_ARG(regs, 1));
}

#endif
