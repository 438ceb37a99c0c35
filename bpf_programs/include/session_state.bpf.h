/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a TCP session has been through, by its socket and its packets: when its SYN left, whether it
 * was set up, the bytes that programs wrote and read, and which packet ended it.
 */
#ifndef NETBPF_SESSION_STATE_BPF_H
#define NETBPF_SESSION_STATE_BPF_H

#include "sock.bpf.h"

KERNEL_FIELDS(sock, sk_err, sk_err_soft, sk_user_data, __sk_common.skc_flags)
KERNEL_FIELDS(tcp_sock, bytes_acked, bytes_received, bytes_sent, bytes_retrans, total_retrans)
KERNEL_FIELDS(tcp_sock, write_seq, snd_una, snd_nxt, srtt_us, segs_in, segs_out, retrans_stamp)
KERNEL_FIELDS(tcp_sock, repair, syn_data_acked, rx_opt.rcv_tsecr)
KERNEL_OPTIONAL(tcp_sock, tcp_usec_ts) /* since 6.7: what the unit of retrans_stamp is */
KERNEL_FIELDS(inet_connection_sock, icsk_accept_queue.fastopenq.max_qlen)
KERNEL_FIELDS(inet_connection_sock, icsk_accept_queue.rskq_defer_accept)
KERNEL_ENUM(sock_flags, SOCK_DONE)

/* Errors that a session ends with: asm-generic/errno.h */
enum { EPIPE = 32, ECONNABORTED = 103, ECONNRESET, ETIMEDOUT = 110, ECONNREFUSED };

/* What is kept of a session from its first state change on. */
struct session_state {
	u64 begin_ns; /* connect(), or the SYN of a child; 0: before the start */
	u64 established_ns; /* 0: before the start, or never */
	u64 handshake_ns; /* 0: not known */
	u8 role; /* ROLE_ACTIVE, ROLE_PASSIVE, or 0: not known */
	u8 rst; /* the first RST: CLOSE_RST_LOCAL or CLOSE_RST_REMOTE */
	u8 first_fin; /* CLOSE_FIN_REMOTE where the TCP states imply CLOSE_FIN_LOCAL */
	u8 fin_on_syn; /* the peer's FIN came with its SYN, where bytes_received leaves it out */
	u8 deferred; /* the listener had TCP_DEFER_ACCEPT */
	u8 restored; /* put together in repair mode: no SYN was sent or received */
	u8 bypassed; /* in a sockmap, which moves bytes beside TCP */
	u8 pad;
};

/* How long the session has been usable, in ns; a Fast Open child is from its SYN on. */
static inline u64 age_of(const struct session_state *session, u64 now)
{
	u64 since = session->established_ns;

	if (!since && session->role == ROLE_PASSIVE)
		since = session->begin_ns;
	return since ? now - since : UNKNOWN;
}

/* Are there bytes, or a FIN, that have not been handed to IP? */
static inline bool is_unsent(struct tcp_sock *tp)
{
	return READ(tp, snd_nxt) != READ(tp, write_seq);
}

/*
 * In these states the last thing to send is a FIN (tcp_send_fin): it counts in bytes_acked once it is
 * acknowledged, and in write_seq before.
 */
static inline bool has_own_fin(int state)
{
	return state == TCP_FIN_WAIT1 || state == TCP_FIN_WAIT2 || state == TCP_CLOSING ||
	       state == TCP_LAST_ACK;
}

/*
 * Was no SYN handed to IP? Then the sequence numbers are not set, or those of an earlier session.
 */
static inline bool sent_nothing(struct tcp_sock *tp, int state)
{
	return state == TCP_SYN_SENT && !READ(tp, segs_out);
}

/*
 * When the first SYN left, in ns. SYN_SENT comes before the search for a local port, and with
 * TCP_FASTOPEN_CONNECT long before the SYN; tcp_connect() stamps the SYN in units of ms.
 */
static inline u64 syn_left(struct tcp_sock *tp, const struct session_state *session, u64 now)
{
	u32 stamp = READ(tp, retrans_stamp), unit = 1000000;
	u64 ticks, age, left;

#ifdef HAVE_tcp_sock_tcp_usec_ts
	if (read_tcp_sock_tcp_usec_ts(tp))
		unit = 1000;
#endif
	if (!stamp || !session->begin_ns)
		return session->begin_ns;
	ticks = now / unit;
	age = (u32)((u32)ticks - stamp);
	left = (ticks - age) * unit;
	return left > session->begin_ns && left <= now ? left : session->begin_ns;
}

/*
 * If the SYN was sent once, the first RTT sample is SYN to SYN-ACK, and more exact than retrans_stamp.
 */
static inline u64 active_handshake(struct tcp_sock *tp, const struct session_state *session,
				   int oldstate, u64 now)
{
	u32 srtt_us = READ(tp, srtt_us) >> 3;
	u64 left;

	if (oldstate == TCP_SYN_SENT && srtt_us && !READ(tp, total_retrans))
		return srtt_us * 1000ULL;
	left = syn_left(tp, session, now);
	return left ? now - left : 0;
}

/*
 * SYN-ACK to ACK. The request is freed by now; its round trip is the first RTT sample
 * (tcp_synack_rtt_meas), unless the SYN-ACK was sent again, or the ACK was dropped for
 * TCP_DEFER_ACCEPT and data made the child. With a SYN cookie there was no request: the sample then
 * comes from time stamps in ms, whose low bits hold the cookie. A Fast Open child exists since its
 * SYN was answered; its first sample may come from its data.
 */
static inline u64 passive_handshake(struct tcp_sock *tp, const struct session_state *session,
				    u64 now)
{
	u32 srtt_us = READ(tp, srtt_us) >> 3;

	if (read_tcp_sock_syn_data_acked(tp))
		return session->begin_ns ? now - session->begin_ns : 0;
	if (session->deferred || READ(tp, total_retrans))
		return 0;
	if (srtt_us % 1000 == 0 && READ(tp, rx_opt.rcv_tsecr))
		return 0;
	return srtt_us * 1000ULL;
}

/* Was the peer's FIN, which has just arrived, part of its SYN or SYN-ACK (tcp_fastopen_add_skb)? */
static inline bool is_fin_on_syn(struct tcp_sock *tp, int oldstate)
{
	return oldstate == TCP_SYN_RECV ||
	       (read_tcp_sock_syn_data_acked(tp) && READ(tp, segs_in) == 1);
}

/*
 * Is the socket in a sockmap? Its data may bypass TCP, whose counters then lack it. sk_psock_init()
 * stores its object with SK_USER_DATA_NOCOPY (1); SK_USER_DATA_BPF (2) marks other objects. close()
 * removes it before the state changes.
 */
static inline bool is_in_sockmap(struct sock *sk)
{
	return ((u64)READ(sk, sk_user_data) & 3) == 1;
}

struct volume {
	u64 written; /* octets that the program wrote */
	u64 unacked; /* of these, octets that the peer never acknowledged */
	u64 received; /* octets that the peer sent */
};

/*
 * What programs wrote and received: SYN and FIN, which the kernel counts too, are subtracted. `state`
 * is the state now, or the one before CLOSE.
 */
static inline void read_volume(struct volume *to, struct sock *sk, struct session_state *session,
			       int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	u64 acked = READ(tp, bytes_acked), received = READ(tp, bytes_received);
	u64 fin = READ(sk, __sk_common.skc_flags) >> SOCK_DONE & 1 && !session->fin_on_syn;
	u32 write_seq = READ(tp, write_seq), left = write_seq - READ(tp, snd_una);
	u64 payload, more = 0;

	if (session->bypassed || is_in_sockmap(sk)) {
		to->written = to->unacked = to->received = UNKNOWN;
		return;
	}
	to->received = received - (received ? fin : 0);
	if (sent_nothing(tp, state))
		return;
	if (state == TCP_SYN_SENT)
		session->role = ROLE_ACTIVE;
	to->written = acked + left;
	if (has_own_fin(state) && to->written) {
		to->written--;
		more = left ? 1 : 0;
	}
	/*
	 * The kernel counts the active side's SYN. If the role is not known, the payload sent without
	 * retransmissions shows whether a SYN is in the count.
	 */
	if (!session->role && !session->restored) {
		payload = READ(tp, bytes_sent) - READ(tp, bytes_retrans) +
			  (u32)(write_seq - READ(tp, snd_nxt));
		if (has_own_fin(state) && is_unsent(tp))
			payload--;
		if (to->written - payload <= 1)
			session->role = to->written == payload ? ROLE_PASSIVE : ROLE_ACTIVE;
	}
	if (session->role == ROLE_ACTIVE && to->written) {
		to->written--;
		more += acked ? 0 : 1; /* the SYN is not acknowledged either */
	}
	to->unacked = left > more ? left - more : 0;
}

/* Why an attempt to connect failed. A RST or ICMP's "port unreachable" refuses it. */
static inline u8 end_of_attempt(const struct session_state *session, int err)
{
	if (session->rst == CLOSE_RST_REMOTE || err == ECONNREFUSED)
		return CLOSE_REFUSED;
	if (err == ETIMEDOUT)
		return CLOSE_TIMEOUT;
	return err && err != ECONNABORTED ? CLOSE_UNREACHABLE : CLOSE_ABORTED;
}

/*
 * Did the session end in order, with our FIN acknowledged? CLOSE follows FIN_WAIT2 and CLOSING when
 * the kernel replaces the socket by a timewait socket.
 */
static inline bool in_order(struct tcp_sock *tp, int state)
{
	return state == TCP_FIN_WAIT2 || ((state == TCP_CLOSING || state == TCP_LAST_ACK) &&
					  READ(tp, snd_una) == READ(tp, write_seq));
}

/* Whose FIN was first, by the state that the FINs led to; CLOSE_SILENT if none was sent or received. */
static inline u8 first_fin(struct tcp_sock *tp, const struct session_state *session, int state)
{
	if (session->first_fin)
		return session->first_fin;
	if (state == TCP_CLOSE_WAIT || state == TCP_LAST_ACK)
		return CLOSE_FIN_REMOTE;
	if (state == TCP_FIN_WAIT2 || state == TCP_CLOSING)
		return CLOSE_FIN_LOCAL;
	/* The FIN is queued, and may never have left. */
	return state == TCP_FIN_WAIT1 && !is_unsent(tp) ? CLOSE_FIN_LOCAL : CLOSE_SILENT;
}

/*
 * Why a session ended, as far as is known when it changes from `state` to CLOSE: we may send a RST
 * afterwards, see may_reset(). sk_err alone proves no packet: IP_RECVERR, kTLS and strparser set it
 * in sessions that continue.
 */
static inline u8 end_of_session(struct sock *sk, const struct session_state *session, int state)
{
	struct tcp_sock *tp = (struct tcp_sock *)sk;
	int err = READ(sk, sk_err);

	if (state == TCP_SYN_SENT)
		return end_of_attempt(session, err);
	/* Giving up, the timers of keepalive and TCP_USER_TIMEOUT may send a RST. */
	if (err == ETIMEDOUT)
		return CLOSE_TIMEOUT;
	if (!in_order(tp, state) && err && err == READ(sk, sk_err_soft))
		return CLOSE_UNREACHABLE; /* a timer gave up (tcp_write_err) after ICMP or routing failed */
	if (session->rst)
		return session->rst;
	if (err == ECONNRESET || err == EPIPE) /* set by tcp_reset(); the map had no room for it */
		return CLOSE_RST_REMOTE;
	if (state == TCP_SYN_RECV && err)
		return end_of_attempt(session, err);
	return first_fin(tp, session, state);
}

/*
 * May we send a RST after CLOSE? close() and disconnect() send it after the change of state. So does
 * the kernel in answer to data that no program can read any more (TCPAbortOnData: our FIN or the
 * peer's was first), for which it calls tcp_reset() as if a RST had arrived. We send none after a RST
 * that was received before any FIN.
 */
static inline bool may_reset(struct tcp_sock *tp, const struct session_state *session, int state)
{
	if (state == TCP_SYN_SENT || session->rst == CLOSE_RST_LOCAL)
		return false;
	if (session->rst == CLOSE_RST_REMOTE)
		return has_own_fin(state) || state == TCP_CLOSE_WAIT;
	return state != TCP_LAST_ACK || !in_order(tp, state);
}

#endif
