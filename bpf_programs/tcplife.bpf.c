// SPDX-License-Identifier: GPL-2.0-only
/* tcplife: one event per finished TCP session. Front-end: netbpf/tools/tcplife.py */
#include "netbpf.bpf.h"
#include "followed.bpf.h"
#include "sockmap.bpf.h"

/*
 * A RST of ours may leave after the change to CLOSE. The reader holds back an event whose `key` is
 * not 0 for a moment; a second one with the same key and AMENDMENT in it changes its `close`.
 */
#define AMENDMENT 1

/*
 * By the address of struct sock: the key of the event that was sent last, if it may be amended. The
 * RST follows in the same call or for the same packet, so that only the newest entries matter.
 */
BPF_TABLE("lru_hash", u64, u64, shown, LRU_ENTRIES(16384));
/*
 * By key: amendments that found no room in the ring. No event is lost by that: the reader looks here,
 * and removes what it has read.
 */
BPF_HASH(late, u64, u8, 4096);

struct session {
	u64 time;
	u64 key; /* see AMENDMENT */
	u64 tx_bytes;
	u64 rx_bytes;
	u64 handshake_us; /* in ns, as all durations here */
	u64 duration_us;
	u64 tx_unacked;
	u64 cgroup;
	u32 pid;
	u32 retrans;
	u32 srtt_us;
	u32 uid;
	u32 netns;
	u16 lport;
	u16 rport;
	char comm[16];
	u8 owner;
	u8 family;
	u8 laddr[16];
	u8 raddr[16];
	u8 role;
	u8 close;
	u8 state;
	u8 pad[3];
};

static inline void fill_owner(struct session *ev, struct owner *owner)
{
	ev->pid = owner->process.pid;
	ev->uid = owner->how ? owner->process.uid : ~0U;
	ev->cgroup = owner->process.cgroup;
	ev->owner = owner->how;
	__builtin_memcpy(ev->comm, owner->process.comm, sizeof(ev->comm));
}

static inline void fill_volume(struct session *ev, struct sock *sk, struct life *life, int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	struct volume volume = {};

	read_volume(&volume, sk, life, state);
	ev->tx_bytes = volume.written;
	ev->tx_unacked = volume.unacked;
	ev->rx_bytes = volume.received;
	ev->retrans = READ(tp, total_retrans);
	ev->srtt_us = READ(tp, srtt_us) >> 3;
}

/* How long the session has been usable, in ns; a Fast Open child is from its SYN on. */
static inline u64 age_of(const struct life *life, u64 now)
{
	u64 since = life->established_ns;

	if (!since && life->role == ROLE_PASSIVE)
		since = life->begin_ns;
	return since ? now - since : UNKNOWN;
}

/* Fill in what is known of a session that is in `state`, or was before CLOSE. */
static inline void fill(struct session *ev, struct sock *sk, struct life *life, struct owner *owner,
			int state)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	ev->time = bpf_ktime_get_ns();
	fill_volume(ev, sk, life, state);
	ev->handshake_us = life->handshake_ns ? life->handshake_ns : UNKNOWN;
	ev->duration_us = age_of(life, ev->time);
	ev->role = life->role;
	fill_owner(ev, owner);
	ev->netns = ends.netns;
	ev->family = ends.family;
	ev->lport = ends.lport;
	ev->rport = ends.rport;
	__builtin_memcpy(ev->laddr, ends.laddr, 16);
	__builtin_memcpy(ev->raddr, ends.raddr, 16);
}

static inline void finish(struct sock *sk, struct life *life, struct owner *current, int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 now = bpf_ktime_get_ns(), key = (u64)sk, left;
	struct session ev = {};

	shown.delete(&key); /* an earlier session's at this address */
	if (sent_nothing(tp, state))
		return; /* no port was free, or Fast Open waited for data: there was no session */
	/* No packet and no timer: its owner closes it, or the listener that it waited at. */
	if (life->rst || READ(sk, sk_err))
		__builtin_memset(current, 0, sizeof(*current));
	if (!current->how)
		find_owner(sk, current);
	if (!pass_owner(current))
		return;
	if (state == TCP_SYN_SENT) { /* what there was is a handshake that failed */
		left = syn_left(tp, life, now);
		life->handshake_ns = left ? now - left : 0;
	}
	fill(&ev, sk, life, current, state);
	ev.close = end_of_session(sk, life, state);
	ev.state = TCP_CLOSE;
	ev.key = may_reset(tp, life, state) ? ev.time & ~(u64)AMENDMENT : 0;
	if (emit(&ev, sizeof(ev)) && ev.key)
		shown.update(&key, &ev.key);
}

static inline void on_close(struct sock *sk, u64 key, struct owner *current, int oldstate)
{
	struct life life = {}, *known = lives.lookup(&key);

	if (known) {
		life = *known;
		lives.delete(&key);
	}
	finish(sk, &life, current, oldstate);
	forget_owner(sk);
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	struct owner current = {};
	u64 key = (u64)sk;

	if (READ(sk, sk_protocol) != IPPROTO_TCP || newstate == TCP_LISTEN)
		return 0;
	if (!pass_ends(sk)) {
		/* What was not known at its begin is known now. */
		if (newstate == TCP_ESTABLISHED || newstate == TCP_CLOSE) {
			lives.delete(&key);
			forget_owner(sk);
		}
		return 0;
	}
	if (oldstate == TCP_LISTEN) {
		forget_owner(
			sk); /* the listener's, or one of a socket that a child stands in for */
		if (newstate == TCP_SYN_RECV)
			on_child(sk, key);
		return 0;
	}
	/* At one place: the verifier tries each way through a filter by name. */
	if (is_by_owner(sk, oldstate, newstate))
		own_current(&current);
	if (newstate == TCP_SYN_SENT)
		on_connect(sk, key, &current);
	else if (newstate == TCP_ESTABLISHED)
		on_established(sk, key, oldstate);
	else if (newstate == TCP_CLOSE_WAIT || newstate == TCP_CLOSING)
		on_remote_fin(sk, oldstate, newstate);
	else if (newstate == TCP_CLOSE)
		on_close(sk, key, &current, oldstate);
	else if (current.how)
		set_owner(sk, &current);
	return 0;
}

/* The session has ended by a RST of ours, which left after the change to CLOSE. */
static inline void amend(struct sock *sk)
{
	struct session ev = {.close = RST_LOCAL};
	u64 key = (u64)sk, *amended = pass_ends(sk) ? shown.lookup(&key) : NULL;

	if (!amended)
		return;
	ev.time = bpf_ktime_get_ns();
	ev.key = *amended | AMENDMENT;
	shown.delete(&key);
	if (events.ringbuf_output(&ev, sizeof(ev), 0)) {
		ev.key ^= AMENDMENT;
		if (late.update(&ev.key, &ev.close))
			count_loss(LOSS_RING_FULL);
	}
}

#include "resets.bpf.h"

#ifdef USE_open_iter
/* Sessions that are still open: every TCP socket in a file table, once. */
int open_iter(struct task_file_context *ctx)
{
	struct task_struct *task = ctx->task;
	struct file *file = ctx->file;
	struct life *known, life = {};
	struct owner owner = {};
	struct session ev = {};
	struct sock *sk;
	u64 key;

	if (!task || !file)
		return 0;
	sk = sock_of_file(file);
	if (!sk)
		return 0;
	ev.state = READ(sk, __sk_common.skc_state);
	if (ev.state == TCP_CLOSE || ev.state == TCP_LISTEN)
		return 0;
	key = (u64)sk;
	known = lives.lookup(&key);
	if (known)
		life = *known;
	if (!find_owner(sk, &owner))
		own(&owner, task, OWNER_SNAPSHOT);
	if (!pass_owner(&owner) || !pass_ends(sk))
		return 0;
	fill(&ev, sk, &life, &owner, ev.state);
	bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
#endif
