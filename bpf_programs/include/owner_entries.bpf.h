/* SPDX-License-Identifier: GPL-2.0-only */
/* Entries of the probes that find owners: included by owners.bpf.h. */
#ifdef USE_owner_send_rawtp
int owner_send_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_owner_send((struct sock *)RAWTP_ARG(owner_send, sk));
}
#endif
#ifdef USE_owner_send_tp
int owner_send_tp(struct owner_send_args *ctx)
{
	return on_owner_send((struct sock *)ctx->sk);
}
#endif

#ifdef USE_owner_state_rawtp
int owner_state_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_owner_state((struct sock *)RAWTP_ARG(owner_state, sk),
			      RAWTP_ARG(owner_state, oldstate), RAWTP_ARG(owner_state, newstate));
}
#endif
#ifdef USE_owner_state_tp
int owner_state_tp(struct owner_state_args *ctx)
{
	return on_owner_state((struct sock *)ctx->skaddr, ctx->oldstate, ctx->newstate);
}
#endif

#ifdef USE_accept_tp
int accept_tp(struct accept_args *ctx)
{
	return on_accept(ip_sock(socket_of_fd(ctx->ret)), ctx->ret);
}
#endif
#ifdef USE_accept4_tp
int accept4_tp(struct accept4_args *ctx)
{
	return on_accept(ip_sock(socket_of_fd(ctx->ret)), ctx->ret);
}
#endif

/* Where accept() ties the new socket to its descriptor, whenever the call began. */
#ifdef USE_accept_fentry
int accept_fentry(u64 *ctx)
{
	return on_accept(ip_sock((struct sock *)ctx[ARG_accept_sk]), newest_fd());
}
#endif
#ifdef USE_accept_kprobe
int accept_kprobe(struct pt_regs *ctx)
{
	return on_accept(ip_sock((struct sock *)PT_REGS_PARM1(ctx)), newest_fd());
}
#endif
#ifdef USE_accept_fexit
int accept_fexit(u64 *ctx)
{
	return on_accept((struct sock *)ctx[ARGS_accept], newest_fd());
}
#endif
#ifdef USE_accept_kretprobe
int accept_kretprobe(struct pt_regs *ctx)
{
	return on_accept((struct sock *)PT_REGS_RC(ctx), newest_fd());
}
#endif

#ifdef USE_snapshot_iter
/* Threads share their descriptors: ask each process once, through its leader. */
int snapshot_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct owner owner = {};
	struct sock *sk;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk || is_closed(sk) || find_owner(sk, &owner)) /* recorded, and still true */
		return 0;
#ifdef SNAPSHOT_STATES /* a program may care for some states only: bits 1 << TCP_* */
	if (!(SNAPSHOT_STATES >> READ(sk, __sk_common.skc_state) & 1))
		return 0;
#endif
	own(&owner, task, OWNER_SNAPSHOT);
	owner.fd = ctx->fd;
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}
#endif
