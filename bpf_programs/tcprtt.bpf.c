// SPDX-License-Identifier: GPL-2.0-only
/* tcprtt: round trip times of TCP, one sample per ACK. Front-end: netbpf/tools/tcprtt.py */
#include "netbpf.bpf.h"
#include "blocks.bpf.h"
#include "histogram.bpf.h"
#include "sock.bpf.h"
#include <netbpf/records.h>

#if defined(FILTER_PROCESS) || defined(BY_COMM) || defined(BY_PID) || defined(BY_UID) ||           \
	defined(BY_CGROUP)
#define NEEDS_OWNER 1
#endif
#if defined(NEEDS_OWNER) || defined(USE_session_iter)
#include "owners.bpf.h"
#endif

KERNEL_FIELDS(sk_buff, data)
KERNEL_FIELDS(tcp_sock, snd_una, snd_nxt, srtt_us, mdev_us, rack.rtt_us, rtt_min.s)

#ifdef BY_KEY
#define KEYS (MAP_ENTRIES / 8 + 1) /* fewer than sockets: each has its buckets on every CPU */
#else
#define KEYS 1
#endif

BPF_F_TABLE("percpu_hash", struct rtt_key, struct rtt_sums, rtts, KEYS, 0);
BPF_PERCPU_ARRAY(zeros, struct rtt_sums, 1);

static inline struct rtt_sums *sums_of(struct rtt_key *key)
{
	struct rtt_sums *sums = rtts.lookup(key), *empty;
	int zero = 0;

	if (sums)
		return sums;
	empty = zeros.lookup(&zero); /* too large for the stack */
	sums = empty ? rtts.lookup_or_try_init(key, empty) : NULL;
	if (!sums)
		count_loss(LOSS_MAP_FULL);
	return sums;
}

#define TCP_RST 0x04 /* flags in byte 13 of the header */
#define TCP_SYN 0x02
#define TCP_ACK 0x10

/*
 * Does the segment acknowledge data for the first time? tcp_probe runs before TCP handles the ACK, so
 * that snd_una is what was acknowledged before, and skb->data is at the TCP header.
 */
static inline bool is_new_ack(struct tcp_sock *tp, struct sk_buff *skb)
{
	const void *header = READ(skb, data);
	u32 una = READ(tp, snd_una), nxt = READ(tp, snd_nxt);
	u8 part[6] = {}; /* the number acknowledged, the length, the flags */
	u32 ack;

	if (bpf_probe_read_kernel(part, sizeof(part), header + 8))
		return false;
	ack = (u32)part[0] << 24 | part[1] << 16 | part[2] << 8 | part[3];
	return (part[5] & (TCP_ACK | TCP_RST | TCP_SYN)) == TCP_ACK && ack - una - 1 < nxt - una;
}

#define NOT_MEASURED ((u32)-1) /* initial value of tp->rtt_min: tcp_init_sock() */

/* The value of --of in microseconds, NOT_MEASURED before the first measurement. */
static inline u32 read_rtt(struct tcp_sock *tp)
{
	u32 sample[2] = {}; /* struct minmax_sample: time and value */
	u32 srtt = READ(tp, srtt_us);

	if (MEASURE == OF_RTT)
		return READ(tp, rack.rtt_us) ?: NOT_MEASURED;
	if (MEASURE == OF_MIN_RTT) {
		bpf_probe_read_kernel(sample, sizeof(sample), FIELD_AT(tp, rtt_min.s));
		return sample[1];
	}
	if (!srtt)
		return NOT_MEASURED;
	/* Eight times the mean, and four times the deviation. */
	return MEASURE == OF_MDEV ? READ(tp, mdev_us) >> 2 : srtt >> 3;
}

static inline int count_value(struct sock *sk)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct endpoints ends = {};
	struct rtt_key key = {};
	struct rtt_sums *sums;
	u32 rtt;

#if defined(FILTER_SOCKET) || defined(BY_KEY)
	read_endpoints(sk, &ends);
	if (!pass_endpoints(&ends))
		return 0;
#endif
#ifdef NEEDS_OWNER
	struct owner owner = {};

	find_owner(sk, &owner);
	if (!pass_owner(&owner))
		return 0;
	SET_BY_comm(&key, owner.process.comm);
	SET_BY_pid(&key, owner.process.pid);
	SET_BY_uid(&key, owner.how ? owner.process.uid : ~0U);
	SET_BY_cgroup(&key, owner.process.cgroup);
#endif
	rtt = read_rtt(tp);
	if (rtt == NOT_MEASURED) {
		add_total(TOTAL_NOT_MEASURED, 1);
		return 0;
	}
	key.of = MEASURE;
	SET_BY_netns(&key, ends.netns);
	SET_BY_family(&key, ends.family);
	SET_BY_laddr(&key, ends.laddr, ends.family);
	SET_BY_lport(&key, ends.lport);
	SET_BY_raddr(&key, ends.raddr, ends.family);
	SET_BY_rport(&key, ends.rport);
	sums = sums_of(&key);
	if (!sums)
		return 0;
	record_value(&sums->histogram, rtt / US_PER_UNIT, 1);
	sums->total_us += rtt;
	return 0;
}

/* A segment has come in for an established connection. */
static inline int on_segment(struct sock *sk, struct sk_buff *skb)
{
	return is_new_ack((struct tcp_sock *)sk, skb) ? count_value(sk) : 0;
}

#ifdef USE_session_iter
/* By the address of the socket: in which pass over all files it was counted. */
BPF_TABLE("lru_hash", u64, u64, passes, LRU_ENTRIES(MAP_ENTRIES));

/* An open socket, once for each process that has it open. */
static inline int on_session(struct task_file_context *ctx, struct task_struct *task,
			     struct sock *sk)
{
	u64 key = (u64)sk, pass = ctx->meta->session_id, *last = passes.lookup(&key);

	if (READ(sk, __sk_common.skc_state) != TCP_ESTABLISHED || (last && *last == pass))
		return 0;
	passes.update(&key, &pass);
	return count_value(sk);
}
#endif
