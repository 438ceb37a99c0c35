/* SPDX-License-Identifier: GPL-2.0-only */
/* tcpsynbl where functions can be probed: both queues as each SYN finds them, SYN cookies. */
#ifndef NETBPF_SYN_ENTRIES_BPF_H
#define NETBPF_SYN_ENTRIES_BPF_H

static inline struct listener_sums *sums_at(struct sock *sk)
{
	struct listener listener = {};
	struct endpoints ends = {};
	struct known *found;

	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return NULL;
	found = know_of(sk, &ends);
	if (!found || !pass_owner(&found->owner))
		return NULL;
	describe(&listener, sk, found, &ends);
	return sums_of(&listener, sk, found);
}

/* A SYN arrives: both queues as it finds them. */
static inline int on_syn(struct sock *sk)
{
	struct listener_sums *sums = sums_at(sk);
	struct at_work *now = working();

	if (now) {
		now->listener = (u64)sk;
		now->answered = 0;
	}
	if (sums) {
		__sync_fetch_and_add(&sums->syns, 1);
		look(sums, sk, 0);
	}
	return 0;
}

static inline int on_synack(struct sock *sk, int type)
{
	struct listener_sums *sums = type == TCP_SYNACK_COOKIE ? sums_at(sk) : NULL;
	struct at_work *now = working();

	if (now)
		now->answered = 1;
	if (sums)
		__sync_fetch_and_add(&sums->cookies, 1);
	return 0;
}

#ifdef USE_syn_fentry
int syn_fentry(u64 *ctx)
{
	return on_syn((struct sock *)ctx[ARG_syn_sk]);
}
#endif
#ifdef USE_syn_kprobe
int syn_kprobe(struct pt_regs *ctx)
{
	return on_syn((struct sock *)PT_REGS_PARM3(ctx));
}
#endif
#ifdef USE_synack_fentry
int synack_fentry(u64 *ctx)
{
	return on_synack((struct sock *)ctx[ARG_synack_sk], ctx[ARG_synack_synack_type]);
}
#endif
#ifdef USE_synack_kprobe
int synack_kprobe(struct pt_regs *ctx)
{
	return on_synack((struct sock *)PT_REGS_PARM1(ctx), PT_REGS_PARM5(ctx));
}
#endif

#endif
