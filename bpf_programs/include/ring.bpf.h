/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Calls on sockets that io_uring makes instead of system calls: RING_PROBES of declare/calls.py. A
 * program that includes this defines before what socket_calls.bpf.h needs.
 */
#ifndef NETBPF_RING_BPF_H
#define NETBPF_RING_BPF_H

#include "request.bpf.h"
#include "socket_calls.bpf.h"

KERNEL_OPTIONAL(io_socket, domain, type, protocol)
KERNEL_OPTIONAL(io_close, fd, file_slot)

#if defined(HAVE_io_socket_type) && defined(HAVE_io_kiocb_cmd)
#define RING_MAKES_SOCKETS 1 /* since 5.19; the arguments are in io_kiocb.cmd since 6.0 */
#endif

#ifdef SEES_REQUESTS
static inline int on_request(struct io_kiocb *req, s32 result)
{
#ifdef RING_MAKES_SOCKETS
	struct io_socket *asked = (struct io_socket *)FIELD_AT(req, cmd);
#endif
	int op;

	switch (READ(req, opcode)) {
#ifdef RING_MAKES_SOCKETS
	case RING_SOCKET:
		return on_make(OP_SOCKET, READ(asked, domain), READ(asked, type),
			       READ(asked, protocol), result);
#endif
	case RING_BIND:
		op = OP_BIND;
		break;
	case RING_LISTEN:
		op = OP_LISTEN;
		break;
	case RING_CONNECT:
		op = OP_CONNECT;
		break;
	case RING_ACCEPT:
		op = OP_ACCEPT;
		break;
	default:
		return 0;
	}
	return on_socket_call(op, socket_of_file(READ(req, file)), result, 0);
}
#endif

static inline int on_ring(struct io_kiocb *req, s32 result)
{
#ifdef SEES_REQUESTS
	if (req)
		return on_request(req, result);
#endif
	return 0;
}

/* A request is submitted. */
static inline int on_ring_close(struct io_kiocb *req)
{
#if defined(HAVE_io_close_file_slot) && defined(HAVE_io_kiocb_cmd)
	struct io_close *asked = (struct io_close *)FIELD_AT(req, cmd);

	if (READ(req, opcode) == RING_CLOSE && !READ(asked, file_slot))
		return on_close(READ(asked, fd));
#endif
	return 0;
}

#endif
