/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Entries of the probe `ring`, which all end in on_ring(req, result): a request has a result. `req`
 * is NULL if that is one of many results of one request.
 */
#ifdef USE_ring_rawtp
int ring_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
#ifdef ARG_ring_cqe
	s32 result = READ((struct io_uring_cqe *)RAWTP_ARG(ring, cqe), res);
#elif defined(ARG_ring_res)
	s32 result = RAWTP_ARG(ring, res);
#endif

	return on_ring((struct io_kiocb *)RAWTP_ARG(ring, req), result);
}
#endif
#ifdef USE_ring_tp
int ring_tp(struct ring_args *ctx)
{
	return on_ring((struct io_kiocb *)ctx->req, ctx->res);
}
#endif
