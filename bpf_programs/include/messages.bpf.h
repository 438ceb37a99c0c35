/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages that are sent and received on sockets, by whatever call. A program that includes this has
 * the probes `send` and `recv`, and defines before
 *   on_message(op, sk, result, flags): `result` is the number of bytes, or a negative error.
 */
#ifndef NETBPF_MESSAGES_BPF_H
#define NETBPF_MESSAGES_BPF_H

#include "calls.bpf.h"
#include "ops.bpf.h"

KERNEL_FIELDS(socket, sk)

/* Messages: the tracepoints are in the one place that all of them pass, whoever asks. */
#define MESSAGE_RAWTP(probe, op)                                                                   \
	int probe##_rawtp(struct bpf_raw_tracepoint_args *ctx)                                     \
	{                                                                                          \
		return on_message(op, (struct sock *)RAWTP_ARG(probe, sk), RAWTP_ARG(probe, ret),  \
				  RAWTP_ARG(probe, flags));                                        \
	}
#define MESSAGE_TP(probe, op)                                                                      \
	int probe##_tp(struct probe##_args *ctx)                                                   \
	{                                                                                          \
		return on_message(op, (struct sock *)ctx->sk, ctx->ret, ctx->flags);               \
	}
/*
 * Before 6.3: what each family does to send and receive a message. Sockets of AF_UNIX that keep
 * packets apart pass unix_seqpacket_*msg() and, unless that is a part of it, unix_dgram_*msg(), too:
 * only the probes `*_packets` count them.
 */
static inline bool keeps_packets(struct sock *sk)
{
	return READ(sk, __sk_common.skc_family) == AF_UNIX && READ(sk, sk_type) == SOCK_SEQPACKET;
}

#define MESSAGE_FEXIT(probe, op, flags, packets)                                                   \
	int probe##_fexit(u64 *ctx)                                                                \
	{                                                                                          \
		struct socket *socket = (struct socket *)ctx[ARG_##probe##_sock];                  \
		struct sock *sk = READ(socket, sk);                                                \
                                                                                                   \
		if (keeps_packets(sk) != packets)                                                  \
			return 0;                                                                  \
		return on_message(op, sk, ctx[ARGS_##probe], flags);                               \
	}
#define MESSAGE_KPROBE(probe, flags, packets)                                                      \
	int probe##_kprobe(struct pt_regs *ctx)                                                    \
	{                                                                                          \
		struct socket *socket = (struct socket *)PT_REGS_PARM1(ctx);                       \
		struct sock *sk = READ(socket, sk);                                                \
                                                                                                   \
		if (keeps_packets(sk) != packets)                                                  \
			return 0;                                                                  \
		return begin_call((u64)sk, flags, 0);                                              \
	}
#define MESSAGE_KRETPROBE(probe, op)                                                               \
	int probe##_kretprobe(struct pt_regs *ctx)                                                 \
	{                                                                                          \
		struct call call;                                                                  \
                                                                                                   \
		if (!end_call(&call))                                                              \
			return 0;                                                                  \
		return on_message(op, (struct sock *)call.args[0], PT_REGS_RC(ctx), call.args[1]); \
	}

#ifdef USE_send_rawtp
MESSAGE_RAWTP(send, SEND)
#endif
#ifdef USE_recv_rawtp
MESSAGE_RAWTP(recv, RECV)
#endif
#ifdef USE_send_tp
MESSAGE_TP(send, SEND)
#endif
#ifdef USE_recv_tp
MESSAGE_TP(recv, RECV)
#endif
#ifdef USE_send_fexit
MESSAGE_FEXIT(send, SEND, 0, false)
#endif
#ifdef USE_send_packets_fexit
MESSAGE_FEXIT(send_packets, SEND, 0, true)
#endif
#ifdef USE_recv_fexit
MESSAGE_FEXIT(recv, RECV, ctx[ARG_recv_flags], false)
#endif
#ifdef USE_recv_packets_fexit
MESSAGE_FEXIT(recv_packets, RECV, ctx[ARG_recv_packets_flags], true)
#endif
#ifdef USE_enter_send_kprobe
MESSAGE_KPROBE(enter_send, 0, false)
#endif
#ifdef USE_enter_send_packets_kprobe
MESSAGE_KPROBE(enter_send_packets, 0, true)
#endif
#ifdef USE_enter_recv_kprobe
MESSAGE_KPROBE(enter_recv, PT_REGS_PARM4(ctx), false)
#endif
#ifdef USE_enter_recv_packets_kprobe
MESSAGE_KPROBE(enter_recv_packets, PT_REGS_PARM4(ctx), true)
#endif
#ifdef USE_send_kretprobe
MESSAGE_KRETPROBE(send, SEND)
#endif
#ifdef USE_send_packets_kretprobe
MESSAGE_KRETPROBE(send_packets, SEND)
#endif
#ifdef USE_recv_kretprobe
MESSAGE_KRETPROBE(recv, RECV)
#endif
#ifdef USE_recv_packets_kretprobe
MESSAGE_KRETPROBE(recv_packets, RECV)
#endif

#endif
