/* SPDX-License-Identifier: GPL-2.0-only */
/* Requests of io_uring: what they are, and on which file. All is absent from kernels without it. */
#ifndef NETBPF_REQUEST_BPF_H
#define NETBPF_REQUEST_BPF_H

#include "netbpf.bpf.h"

KERNEL_OPTIONAL(io_kiocb, opcode, file, cmd)
KERNEL_OPTIONAL(io_uring_cqe, res)
KERNEL_OPTIONAL(io_accept, file_slot)

/* The ABI's numbers: linux/io_uring.h. */
enum ring_op {
	RING_ACCEPT = 13,
	RING_CONNECT = 16,
	RING_CLOSE = 19,
	RING_SOCKET = 45,
	RING_BIND = 56,
	RING_LISTEN = 57,
};

static inline int on_ring(struct io_kiocb *req, s32 result);

#ifdef HAVE_io_uring_cqe_res
/* The tracepoint gives the whole result here; on other kernels its number. */
static inline int on_ring_cqe(struct io_kiocb *req, struct io_uring_cqe *cqe)
{
	return on_ring(req, READ(cqe, res));
}
#endif

/* Does what this accept() returns go to a table of io_uring's own? Then it is no descriptor. */
static inline bool accepts_direct(struct io_kiocb *req)
{
#if defined(HAVE_io_kiocb_cmd) && defined(HAVE_io_accept_file_slot)
	return READ((struct io_accept *)FIELD_AT(req, cmd), file_slot);
#else
	return false;
#endif
}

#endif
