// SPDX-License-Identifier: GPL-2.0-only
/* soaccept: one event per accepted connection or error. Front-end: netbpf/tools/soaccept.py */
#include "netbpf.bpf.h"
#include "address.bpf.h"
#include "files.bpf.h"
#include "inflight.bpf.h"
#include "request.bpf.h"
#include "fate.bpf.h"
#include <netbpf/records.h>
#include "acceptance.bpf.h"

/* By thread: the accept() that it is in. */
struct call {
	u64 listener;
	u8 interrupted; /* a signal ended it, and the kernel may begin it again */
	u8 restarts; /* the kernel has decided to begin it again */
};
BPF_HASH(calls, u64, struct call, MAP_ENTRIES);

static inline int on_enter(int fd)
{
	u64 thread = bpf_get_current_pid_tgid();
	struct sock *sk = socket_of_fd(fd);
	struct call call = {.listener = (u64)sk}, *before;

	if (!sk || !pass_current() || !may_be_wanted(sk))
		return 0;
	before = calls.lookup(&thread);
	if (before && before->interrupted && before->listener == call.listener)
		add_total(TOTAL_RESTARTED, 1);
	if (calls.update(&thread, &call))
		count_loss(LOSS_MAP_FULL);
	return 0;
}

/* The end of a call whose begin was not seen: it began before the start, or seccomp refused it. */
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

/* A call ends with the descriptor of a connection, or with an error below 0. */
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

/* Return of the kernel's function, a moment before the system call exits. */
static inline int on_return(s32 ret)
{
	mark_reported();
	return on_leave(ret);
}

static inline int on_inflight(s32 ret)
{
	return was_reported() ? 0 : on_leave(ret);
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
		add_total(TOTAL_INTERRUPTED, 1);
	calls.delete(&thread);
	return 0;
}

#ifdef SEES_REQUESTS
static inline int on_ring_accept(struct io_kiocb *req, s32 ret)
{
	struct sock *listener = socket_of_file(READ(req, file));

	return on_accepted(listener, accepts_direct(req) ? NULL : socket_of_fd(ret), ret);
}
#endif

static inline int on_ring(struct io_kiocb *req, s32 ret)
{
	struct sock *sk;

#ifdef SEES_REQUESTS
	if (req)
		return READ(req, opcode) == RING_ACCEPT ? on_ring_accept(req, ret) : 0;
#endif
	/* The request is not known: a descriptor of a connection that waited is an accept's result. */
	sk = socket_of_fd(ret);
	return sk && waits(sk) ? on_accepted(NULL, sk, ret) : 0;
}
