// SPDX-License-Identifier: GPL-2.0-only
/* tcplife: one event per finished TCP session. Front-end: netbpf/tools/tcplife.py */
#include "netbpf.bpf.h"
#include "sock.bpf.h"
#include "owners.bpf.h"

KERNEL_FIELDS(sock, sk_err, __sk_common.skc_flags)
KERNEL_FIELDS(tcp_sock, bytes_acked, bytes_received, bytes_sent, bytes_retrans, total_retrans)
KERNEL_FIELDS(tcp_sock, write_seq, snd_una, snd_nxt, srtt_us)
KERNEL_ENUM(sock_flags, SOCK_DONE)

#define UNKNOWN (~0ULL)

/* Errors that a session ends with: asm-generic/errno.h */
enum { EPIPE = 32, ECONNRESET = 104, ETIMEDOUT = 110, ECONNREFUSED = 111, EHOSTUNREACH = 113 };

/* Numbers of the columns role and close in netbpf/tools/tcplife.py. */
enum role { ROLE_UNKNOWN, ROLE_ACTIVE, ROLE_PASSIVE };
enum close_reason {
	STILL_OPEN,
	FIN_LOCAL,
	FIN_REMOTE,
	RST_LOCAL,
	RST_REMOTE,
	TIMEOUT,
	REFUSED,
	UNREACHABLE,
	ABORTED,
};

/* What is remembered of a session from its first state change on. */
struct life {
	u64 syn_ns; /* SYN sent (active side), 0 if it was before the start */
	u64 established_ns; /* 0: before the start, or never */
	u64 handshake_ns;
	u8 role;
	u8 first_fin; /* FIN_LOCAL or FIN_REMOTE */
	u8 fin_sent;
	u8 pad[5];
};
BPF_HASH(lives, u64, struct life, MAP_ENTRIES);

struct session {
	u64 time;
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

/* Octets that the program wrote and that its peer sent: the kernel counts SYN and FIN as well. */
static inline void read_bytes(struct session *ev, struct sock *sk, struct life *life)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u32 write_seq = READ(tp, write_seq);
	u32 snd_una = READ(tp, snd_una);
	u32 snd_nxt = READ(tp, snd_nxt);
	u64 written = READ(tp, bytes_acked) + (u32)(write_seq - snd_una);
	u64 payload = READ(tp, bytes_sent) - READ(tp, bytes_retrans) + (u32)(write_seq - snd_nxt);
	u64 fin_received = READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1;

	written -= life->fin_sent;
	/*
	 * The active side's SYN counts in bytes_acked. Where the beginning was not seen, payload
	 * sent less payload sent again shows whether it is in there.
	 */
	if (life->role == ROLE_UNKNOWN && written - payload <= 1)
		life->role = written == payload ? ROLE_PASSIVE : ROLE_ACTIVE;
	if (life->role == ROLE_ACTIVE)
		written -= 1;
	ev->tx_bytes = written;
	ev->tx_unacked = (u32)(write_seq - snd_una);
	if (ev->tx_unacked && (life->fin_sent || life->established_ns == 0))
		ev->tx_unacked = ev->tx_unacked - 1; /* the FIN, or the SYN of a failed attempt */
	ev->rx_bytes = READ(tp, bytes_received) - fin_received;
	ev->retrans = READ(tp, total_retrans);
	ev->srtt_us = READ(tp, srtt_us) >> 3;
}

static inline u8 close_reason(struct life *life, int oldstate, int err)
{
	if (err == ETIMEDOUT)
		return TIMEOUT;
	if (oldstate == TCP_SYN_SENT) {
		if (err == ECONNREFUSED || err == ECONNRESET)
			return REFUSED;
		return err ? UNREACHABLE : ABORTED;
	}
	if (err == ECONNRESET || err == EPIPE)
		return RST_REMOTE;
	if (err)
		return err == EHOSTUNREACH ? UNREACHABLE : ABORTED;
	return life->first_fin ? life->first_fin : RST_LOCAL;
}

static inline void fill_owner(struct session *ev, struct owner *owner)
{
	ev->pid = owner->process.pid;
	ev->uid = owner->how ? owner->process.uid : ~0U;
	ev->cgroup = owner->process.cgroup;
	ev->owner = owner->how;
	__builtin_memcpy(ev->comm, owner->process.comm, sizeof(ev->comm));
}

/* Fill in what is known of a session that is alive; false if it was filtered out. */
static inline bool fill(struct session *ev, struct sock *sk, struct life *life, struct owner *owner)
{
	struct endpoints ends = {};

	read_endpoints(sk, &ends);
	if (!pass_owner(owner) || !pass_endpoints(&ends))
		return false;
	ev->time = bpf_ktime_get_ns();
	read_bytes(ev, sk, life);
	ev->handshake_us = life->handshake_ns ? life->handshake_ns : UNKNOWN;
	ev->duration_us = life->established_ns ? ev->time - life->established_ns : UNKNOWN;
	ev->role = life->role;
	fill_owner(ev, owner);
	ev->netns = ends.netns;
	ev->family = ends.family;
	ev->lport = ends.lport;
	ev->rport = ends.rport;
	__builtin_memcpy(ev->laddr, ends.laddr, 16);
	__builtin_memcpy(ev->raddr, ends.raddr, 16);
	return true;
}

static inline void finish(struct sock *sk, struct life *life, int oldstate)
{
	struct owner owner = {};
	struct session ev = {};
	int err = READ(sk, sk_err);

	ev.close = close_reason(life, oldstate, err);
	/* No FIN and no error: the owner closes with data unread or without lingering. */
	if (ev.close == RST_LOCAL)
		own_current(&owner);
	if (!owner.how)
		find_owner(sk, &owner);
	if (oldstate == TCP_SYN_SENT) /* what there was is a handshake that failed */
		life->handshake_ns = life->syn_ns ? bpf_ktime_get_ns() - life->syn_ns : 0;
	if (!fill(&ev, sk, life, &owner))
		return;
	if (oldstate == TCP_SYN_SENT)
		ev.duration_us = 0;
	ev.state = TCP_CLOSE;
	emit(&ev, sizeof(ev));
}

static inline void start_life(u64 key, struct life *life)
{
	if (lives.update(&key, life))
		count_loss(LOSS_MAP_FULL);
}

static inline void on_established(struct sock *sk, u64 key, struct life *life, int oldstate)
{
	u64 now = bpf_ktime_get_ns();
	u32 srtt_us = READ((struct tcp_sock *)sk, srtt_us) >> 3;

	life->established_ns = now;
	if (oldstate == TCP_SYN_SENT) {
		life->role = ROLE_ACTIVE;
		life->handshake_ns = life->syn_ns ? now - life->syn_ns : 0;
	} else {
		/*
		 * The request is gone by now, but its round trip, SYN-ACK to ACK, is the first
		 * RTT sample (tcp_synack_rtt_meas): none was taken if it was retransmitted.
		 */
		life->role = ROLE_PASSIVE;
		life->handshake_ns = srtt_us * 1000ULL;
	}
	start_life(key, life);
}

static inline void on_local_fin(struct life *life, int oldstate)
{
	life->fin_sent = 1;
	if (!life->first_fin)
		life->first_fin = oldstate == TCP_CLOSE_WAIT ? FIN_REMOTE : FIN_LOCAL;
}

static inline int on_state(struct sock *sk, int oldstate, int newstate)
{
	u64 key = (u64)sk;
	struct life *known, life = {};

	if (READ(sk, sk_protocol) != IPPROTO_TCP || newstate == TCP_LISTEN)
		return 0;
	if (oldstate == TCP_LISTEN) { /* a new child where another socket may have been */
		forget_owner(sk);
		return 0;
	}
	known = lives.lookup(&key);
	if (known)
		life = *known;
	owner_on_state(sk, newstate);
	if (newstate == TCP_SYN_SENT) {
		life.syn_ns = bpf_ktime_get_ns();
		life.role = ROLE_ACTIVE;
		start_life(key, &life);
	} else if (newstate == TCP_ESTABLISHED) {
		on_established(sk, key, &life, oldstate);
	} else if (newstate == TCP_FIN_WAIT1 || newstate == TCP_LAST_ACK) {
		on_local_fin(&life, oldstate);
		start_life(key, &life);
	} else if (newstate == TCP_CLOSE_WAIT) {
		life.first_fin = FIN_REMOTE;
		start_life(key, &life);
	} else if (newstate == TCP_CLOSE) {
		/* A FIN of ours that was sent before the start: the state tells. */
		if (oldstate == TCP_FIN_WAIT1 || oldstate == TCP_FIN_WAIT2 ||
		    oldstate == TCP_LAST_ACK || oldstate == TCP_CLOSING)
			life.fin_sent = 1;
		if (life.fin_sent && !life.first_fin)
			life.first_fin = oldstate == TCP_LAST_ACK ? FIN_REMOTE : FIN_LOCAL;
		finish(sk, &life, oldstate);
		lives.delete(&key);
		forget_owner(sk);
	}
	return 0;
}

#include "state_entries.bpf.h"

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
	if (ev.state != TCP_ESTABLISHED && ev.state != TCP_CLOSE_WAIT && ev.state != TCP_SYN_SENT &&
	    ev.state != TCP_SYN_RECV)
		life.fin_sent = 1;
	if (!find_owner(sk, &owner))
		own(&owner, task, OWNER_SNAPSHOT);
	if (fill(&ev, sk, &life, &owner))
		bpf_seq_write(ctx->meta->seq, &ev, sizeof(ev));
	return 0;
}
#endif
