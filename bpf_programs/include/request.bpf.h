/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Requests of io_uring: what they are, and on which file. Kernels without io_uring have none of the
 * structs. A program that includes this has the probe RING of declare/calls.py, and defines
 *   on_ring(req, result): a request has completed, `req` is NULL for one of several results.
 */
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

#if defined(HAVE_io_kiocb_opcode) && defined(HAVE_io_kiocb_file)
#define SEES_REQUESTS 1
#else
struct io_kiocb;
#endif

static inline int on_ring(struct io_kiocb *req, s32 result);

#ifdef HAVE_io_uring_cqe_res
/* After 6.12 the tracepoint has the completion entry, before it had the result. */
static inline int on_ring_cqe(struct io_kiocb *req, struct io_uring_cqe *cqe)
{
	return on_ring(req, READ(cqe, res));
}
#endif

/* Does the result of this accept() go to io_uring's own table of files? Then it is no descriptor. */
static inline bool accepts_direct(struct io_kiocb *req)
{
#if defined(HAVE_io_kiocb_cmd) && defined(HAVE_io_accept_file_slot)
	return READ((struct io_accept *)FIELD_AT(req, cmd), file_slot);
#else
	return false;
#endif
}

#endif
