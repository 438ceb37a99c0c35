/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls on sockets that io_uring makes in place of system calls: the probes `ring` and `ring_close`.
 * It needs what socket_calls.bpf.h needs.
 */
#ifndef NETBPF_RING_BPF_H
#define NETBPF_RING_BPF_H

#include "socket_calls.bpf.h"

/* Absent from kernels built without io_uring. */
KERNEL_OPTIONAL(io_kiocb, opcode, file, cmd)
KERNEL_OPTIONAL(io_uring_cqe, res)
KERNEL_OPTIONAL(io_socket, domain, type, protocol)
KERNEL_OPTIONAL(io_close, fd, file_slot)

/* The ABI's numbers: linux/io_uring.h. */
enum ring_op {
	RING_ACCEPT = 13,
	RING_CONNECT = 16,
	RING_CLOSE = 19,
	RING_SOCKET = 45,
	RING_BIND = 56,
	RING_LISTEN = 57,
};

#if defined(HAVE_io_socket_type) && defined(HAVE_io_kiocb_cmd)
#define RING_MAKES_SOCKETS 1 /* since 5.19; what is asked for is in io_kiocb.cmd since 6.0 */
#endif

#ifdef USE_ring_rawtp
int ring_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	struct io_kiocb *req = (struct io_kiocb *)RAWTP_ARG(ring, req);
#ifdef ARG_ring_cqe
	s32 result = READ((struct io_uring_cqe *)RAWTP_ARG(ring, cqe), res);
#elif defined(ARG_ring_res)
	s32 result = RAWTP_ARG(ring, res);
#endif
#ifdef RING_MAKES_SOCKETS
	struct io_socket *asked;
#endif
	int op;

	if (!req) /* one more of many results of one request */
		return 0;
	switch (READ(req, opcode)) {
#ifdef RING_MAKES_SOCKETS
	case RING_SOCKET:
		asked = (struct io_socket *)FIELD_AT(req, cmd);
		return on_make(SOCKET, READ(asked, domain), READ(asked, type),
			       READ(asked, protocol), result);
#endif
	case RING_BIND:
		op = BIND;
		break;
	case RING_LISTEN:
		op = LISTEN;
		break;
	case RING_CONNECT:
		op = CONNECT;
		break;
	case RING_ACCEPT:
		op = ACCEPT;
		break;
	default:
		return 0;
	}
	return on_socket_call(op, socket_of_file(READ(req, file)), result, 0);
}
#endif
#ifdef USE_ring_close_rawtp
int ring_close_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
#if defined(HAVE_io_close_file_slot) && defined(HAVE_io_kiocb_cmd)
	struct io_kiocb *req = (struct io_kiocb *)RAWTP_ARG(ring_close, req);
	struct io_close *asked = (struct io_close *)FIELD_AT(req, cmd);

	if (READ(req, opcode) == RING_CLOSE && !READ(asked, file_slot))
		return on_close(READ(asked, fd));
#endif
	return 0;
}
#endif

#endif
