/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The system calls on sockets, but for those that move messages. A program that includes this has
 * the probes named like the calls, and defines before
 *   on_make(op, family, type, protocol, result): socket or socketpair has ended,
 *   on_socket_call(op, sk, result, bytes): another call has, `sk` is NULL if that is no socket,
 *   pass_socket(NULL, family) and, with FILTER_ENDS, may_pass_call(sk): whether a call that begins
 *   may be one that was asked for.
 */
#ifndef NETBPF_SOCKET_CALLS_BPF_H
#define NETBPF_SOCKET_CALLS_BPF_H

#include "calls.bpf.h"
#include "earlier.bpf.h"
#include "files.bpf.h"
#include "ops.bpf.h"

/* A system call with these arguments has ended. */
static inline int on_call(int op, u64 a, u64 b, u64 c, s64 result)
{
	if (op == SOCKET || op == SOCKETPAIR)
		return on_make(op, a, b, c, result);
	return on_socket_call(op, socket_of_fd(op == ACCEPT && result >= 0 ? result : a), result,
			      0);
}

static inline int on_close(int fd)
{
	struct sock *sk = socket_of_fd(fd);

	return sk ? on_socket_call(CLOSE, sk, 0, 0) : 0;
}

static inline int on_exit(int op, s64 result)
{
	struct call call = {};

	/* What an accept that began before the start returned tells enough. */
	if (!end_call(&call) && (op != ACCEPT || result < 0))
		return 0;
	return on_call(op, call.args[0], call.args[1], call.args[2], result);
}

static inline int begin_on_fd(int fd)
{
#ifdef FILTER_ENDS
	if (!may_pass_call(socket_of_fd(fd)))
		return 0;
#endif
	return begin_call(fd, 0, 0);
}

static inline int begin_make(u16 family, u32 type, u16 protocol)
{
	return pass_socket(NULL, family) ? begin_call(family, type, protocol) : 0;
}

/*
 * System calls: the end of the kernel's own function shows arguments and result at once; of the
 * tracepoints and kprobes at begin and end each shows one.
 */
#define CALL_FEXIT(probe, op)                                                                      \
	int probe##_fexit(u64 *ctx)                                                                \
	{                                                                                          \
		if (op == ACCEPT)                                                                  \
			mark_told();                                                               \
		return on_call(op, SYSCALL_ARG(ctx[0], 1), SYSCALL_ARG(ctx[0], 2),                 \
			       SYSCALL_ARG(ctx[0], 3), ctx[ARGS_##probe]);                         \
	}
#define CALL_TP(probe, op)                                                                         \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return on_exit(op, ctx->ret);                                                      \
	}
#define CALL_KRETPROBE(probe, op)                                                                  \
	int probe##_kretprobe(struct pt_regs *ctx)                                                 \
	{                                                                                          \
		if (op == ACCEPT)                                                                  \
			mark_told();                                                               \
		return on_exit(op, PT_REGS_RC(ctx));                                               \
	}
#define EARLIER_TP(probe, op)                                                                      \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return was_told() ? 0 : on_exit(op, ctx->ret);                                     \
	}
#define ENTER_FD_TP(probe)                                                                         \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return begin_on_fd(ctx->fd);                                                       \
	}
#define ENTER_MAKE_TP(probe)                                                                       \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return begin_make(ctx->family, ctx->type, ctx->protocol);                          \
	}
#define ENTER_FD_KPROBE(probe)                                                                     \
	int probe##_kprobe(struct pt_regs *ctx)                                                    \
	{                                                                                          \
		u64 regs = PT_REGS_PARM1(ctx);                                                     \
                                                                                                   \
		return begin_on_fd(SYSCALL_ARG(regs, 1));                                          \
	}
#define ENTER_MAKE_KPROBE(probe)                                                                   \
	int probe##_kprobe(struct pt_regs *ctx)                                                    \
	{                                                                                          \
		u64 regs = PT_REGS_PARM1(ctx);                                                     \
                                                                                                   \
		return begin_make(SYSCALL_ARG(regs, 1), SYSCALL_ARG(regs, 2),                      \
				  SYSCALL_ARG(regs, 3));                                           \
	}

#ifdef USE_socket_fexit
CALL_FEXIT(socket, SOCKET)
#endif
#ifdef USE_socketpair_fexit
CALL_FEXIT(socketpair, SOCKETPAIR)
#endif
#ifdef USE_bind_fexit
CALL_FEXIT(bind, BIND)
#endif
#ifdef USE_listen_fexit
CALL_FEXIT(listen, LISTEN)
#endif
#ifdef USE_connect_fexit
CALL_FEXIT(connect, CONNECT)
#endif
#ifdef USE_accept_fexit
CALL_FEXIT(accept, ACCEPT)
#endif
#ifdef USE_accept4_fexit
CALL_FEXIT(accept4, ACCEPT)
#endif
#ifdef USE_socket_tp
CALL_TP(socket, SOCKET)
#endif
#ifdef USE_socketpair_tp
CALL_TP(socketpair, SOCKETPAIR)
#endif
#ifdef USE_bind_tp
CALL_TP(bind, BIND)
#endif
#ifdef USE_listen_tp
CALL_TP(listen, LISTEN)
#endif
#ifdef USE_connect_tp
CALL_TP(connect, CONNECT)
#endif
#ifdef USE_accept_tp
CALL_TP(accept, ACCEPT)
#endif
#ifdef USE_accept4_tp
CALL_TP(accept4, ACCEPT)
#endif
#ifdef USE_earlier_accept_tp
EARLIER_TP(earlier_accept, ACCEPT)
#endif
#ifdef USE_earlier_accept4_tp
EARLIER_TP(earlier_accept4, ACCEPT)
#endif
#ifdef USE_socket_kretprobe
CALL_KRETPROBE(socket, SOCKET)
#endif
#ifdef USE_socketpair_kretprobe
CALL_KRETPROBE(socketpair, SOCKETPAIR)
#endif
#ifdef USE_bind_kretprobe
CALL_KRETPROBE(bind, BIND)
#endif
#ifdef USE_listen_kretprobe
CALL_KRETPROBE(listen, LISTEN)
#endif
#ifdef USE_connect_kretprobe
CALL_KRETPROBE(connect, CONNECT)
#endif
#ifdef USE_accept_kretprobe
CALL_KRETPROBE(accept, ACCEPT)
#endif
#ifdef USE_accept4_kretprobe
CALL_KRETPROBE(accept4, ACCEPT)
#endif
#ifdef USE_enter_socket_tp
ENTER_MAKE_TP(enter_socket)
#endif
#ifdef USE_enter_socketpair_tp
ENTER_MAKE_TP(enter_socketpair)
#endif
#ifdef USE_enter_bind_tp
ENTER_FD_TP(enter_bind)
#endif
#ifdef USE_enter_listen_tp
ENTER_FD_TP(enter_listen)
#endif
#ifdef USE_enter_connect_tp
ENTER_FD_TP(enter_connect)
#endif
#ifdef USE_enter_accept_tp
ENTER_FD_TP(enter_accept)
#endif
#ifdef USE_enter_accept4_tp
ENTER_FD_TP(enter_accept4)
#endif
#ifdef USE_enter_socket_kprobe
ENTER_MAKE_KPROBE(enter_socket)
#endif
#ifdef USE_enter_socketpair_kprobe
ENTER_MAKE_KPROBE(enter_socketpair)
#endif
#ifdef USE_enter_bind_kprobe
ENTER_FD_KPROBE(enter_bind)
#endif
#ifdef USE_enter_listen_kprobe
ENTER_FD_KPROBE(enter_listen)
#endif
#ifdef USE_enter_connect_kprobe
ENTER_FD_KPROBE(enter_connect)
#endif
#ifdef USE_enter_accept_kprobe
ENTER_FD_KPROBE(enter_accept)
#endif
#ifdef USE_enter_accept4_kprobe
ENTER_FD_KPROBE(enter_accept4)
#endif

#ifdef USE_close_fentry
int close_fentry(u64 *ctx)
{
	return on_close(SYSCALL_ARG(ctx[0], 1));
}
#endif
#ifdef USE_close_tp
int close_tp(struct close_args *ctx)
{
	return on_close(ctx->fd);
}
#endif
#ifdef USE_close_kprobe
int close_kprobe(struct pt_regs *ctx)
{
	return on_close(SYSCALL_ARG(PT_REGS_PARM1(ctx), 1));
}
#endif

#endif
