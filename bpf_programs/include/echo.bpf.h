/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Echo requests until they are over. A program that includes this includes <netbpf/records.h>, with
 * struct echo, before.
 */
#ifndef NETBPF_ECHO_BPF_H
#define NETBPF_ECHO_BPF_H

#include "icmp.bpf.h"
#include "pingers.bpf.h"

enum step { QUEUED, WITH_DRIVER, DROPPED }; /* of a request that leaves */

struct request {
	u64 begin_ns; /* when it was handed to a device, else dropped */
	u64 sent_ns; /* 0: no device had it */
	u64 answered_ns; /* 0: not yet, or not seen at a device */
	u64 sk; /* 0: it is forwarded */
	u64 inode; /* of the socket's file, which is another one if a new socket is at its address */
	u64 skb;
	u64 head; /* of the buffer's memory, which clones share */
	u64 device;
	u8 laddr[16];
	u8 raddr[16];
	u8 from[16];
	char dev[16];
	u32 len; /* 0: sent in fragments */
	u8 family;
	u8 result; /* RESULT_WAITING: no answer yet */
	u8 ttl;
	u8 dropped;
	u8 with_driver; /* the device's driver has it */
	u8 pad[7];
};
/* Until the answer is read, the socket is closed, or the time is over. */
BPF_HASH(echoes, struct echo_key, struct request, MAP_ENTRIES);

struct arrival {
	u64 time;
	struct echo_key key;
};
/*
 * The latest answers that came off a device, by the buffer's memory, which its copies for sockets share.
 * LRU: a buffer's end is not seen, and each new answer in the same memory replaces the entry.
 */
BPF_TABLE("lru_hash", u64, struct arrival, arrivals, LRU_ENTRIES(4096));

/* Who is proven to have sent on the socket of a request, or NULL. */
static inline struct pinger *pinger_of(const struct request *request)
{
	u64 key = request->sk;
	struct pinger *pinger = pingers.lookup(&key);

	return pinger && pinger->inode == request->inode ? pinger : NULL;
}

/* Is a packet of interest that this socket sends, NULL if it is only forwarded? */
static inline bool is_wanted(struct sock *sk, int step)
{
#ifdef FORWARDED
	return sk || step == QUEUED;
#else
	return sk;
#endif
}

static inline bool pass_request(const struct packet *packet)
{
#ifdef FILTER_SOCKET
	struct endpoints ends = {.family = packet->family, .netns = packet->netns};

	__builtin_memcpy(ends.laddr, packet->saddr, 16);
	__builtin_memcpy(ends.raddr, packet->daddr, 16);
	return pass_endpoints(&ends);
#else
	return true;
#endif
}

/* Is a packet the one that was seen before, at another step or a device below (VLAN, bridge)? */
static inline bool is_same(const struct request *request, struct sk_buff *skb)
{
	return !request->answered_ns &&
	       (request->skb == (u64)skb || request->head == (u64)READ(skb, head));
}

/* Drivers free packets that they have sent, and some free them as dropped: that is no drop. */
static inline void note_step(struct request *request, int step)
{
	if (step == DROPPED)
		request->dropped |= !request->with_driver;
	else
		request->with_driver = step == WITH_DRIVER;
}

/*
 * Was a packet handed to a device before? __dev_queue_xmit() sets mac_header first. Requests of others
 * have come by one: those in the queue of a raw socket are dropped when it is closed.
 */
static inline bool had_device(struct sk_buff *skb)
{
	return READ(skb, mac_header) != (u16)~0;
}

/* A request begins; `dev` is NULL if it was dropped before a device had it. */
static inline void begin(struct echo_key *key, const struct packet *packet, struct sk_buff *skb,
			 struct sock *sk, struct net_device *dev)
{
	struct request request = {.dropped = !dev};

	request.begin_ns = bpf_ktime_get_ns();
	if (dev) {
		request.sent_ns = request.begin_ns;
		request.device = (u64)dev;
		READ_INTO(request.dev, dev, name);
	}
	request.sk = (u64)sk;
	request.inode = sk ? inode_of(sk) : 0;
	request.skb = (u64)skb;
	request.head = (u64)READ(skb, head);
	__builtin_memcpy(request.laddr, packet->saddr, 16);
	__builtin_memcpy(request.raddr, packet->daddr, 16);
	request.len = packet->len;
	request.family = packet->family;
	if (echoes.update(key, &request))
		count_loss(LOSS_MAP_FULL);
}

/* Find the request of an answer, and make `key` its key. */
static inline struct request *find_request(struct echo_key *key)
{
	struct request *request = echoes.lookup(key);
	struct echo_key group = {.netns = key->netns, .ident = key->ident, .seq = key->seq};

	if (request)
		return request;
	request = echoes.lookup(&group);
	if (request)
		*key = group;
	return request;
}

/* Is a socket the one that sent the request, or does it belong to the same process? */
static inline bool is_asker(const struct request *request, struct sock *sk)
{
	struct pinger *pinger;

	if (request->sk == (u64)sk)
		return true;
	pinger = pinger_of(request);
	return pinger && pinger->process.pid == current_pid();
}

/* The first answer counts; `time` is 0 if it was not seen at a device. */
static inline void note_answer(struct request *request, const struct answer *answer, u64 time)
{
	if (request->result != RESULT_WAITING)
		return;
	request->answered_ns = time;
	request->result = answer->result;
	request->ttl = answer->ttl;
	__builtin_memcpy(request->from, answer->from, 16);
}

/* Fill in an event of which the owner is missing; return false if it is not wanted. */
static inline bool fill(struct echo *ev, const struct echo_key *key, const struct request *request,
			u8 result)
{
	u64 answered = request->answered_ns, sent = request->sent_ns;

	ev->result = request->result ?: request->dropped ? RESULT_DROPPED : result;
	ev->time = bpf_ktime_get_ns();
	ev->age_us = ev->rtt_us = ev->wait_us = UNKNOWN;
	if (request->result == RESULT_WAITING)
		ev->age_us = ev->time - request->begin_ns;
	if (answered && sent)
		ev->rtt_us = answered - sent;
#ifdef ONLY_LOST
	if (ev->result == RESULT_REPLY)
		return false;
#endif
	if (MIN_NS && (ev->rtt_us == UNKNOWN ? ev->age_us : ev->rtt_us) < MIN_NS)
		return false;
	ev->family = request->family;
	ev->len = request->len;
	ev->ttl = request->ttl;
	ev->ident = key->ident;
	ev->seq = key->seq;
	ev->netns = key->netns;
	__builtin_memcpy(ev->laddr, request->laddr, 16);
	__builtin_memcpy(ev->raddr, request->raddr, 16);
	__builtin_memcpy(ev->from_addr, request->from, 16);
	__builtin_memcpy(ev->dev, request->dev, sizeof(ev->dev));
	return true;
}

static inline void set_owner(struct echo *ev, const struct process *process)
{
	ev->owner = OWNER_EXACT;
	ev->pid = process->pid;
	ev->uid = process->uid;
	ev->cgroup = process->cgroup;
	__builtin_memcpy(ev->comm, process->comm, sizeof(ev->comm));
}

/* The same for a request whose answer no program has read. */
static inline bool fill_unread(struct echo *ev, const struct echo_key *key,
			       const struct request *request, u8 result)
{
	struct pinger *pinger = pinger_of(request);

	ev->uid = ~0U;
#ifdef FILTER_PROCESS
	if (!pinger || !pinger->pass)
		return false;
#endif
	if (pinger)
		set_owner(ev, &pinger->process);
	return fill(ev, key, request, result);
}

/* A request is over, and no program has read an answer. */
static inline void finish(struct echo_key *key, struct request *known, u8 result)
{
	struct request request = *known;
	struct echo ev = {};

	if (!echoes.delete(key) && fill_unread(&ev, key, &request, result))
		emit(&ev, sizeof(ev));
}

/* The current task reads the answer: it is the owner. */
static inline void finish_read(struct echo_key *key, struct request *known)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct request request = *known;
	struct process process = {};
	struct echo ev = {};

	if (echoes.delete(key)) /* another thread reads at the same time */
		return;
	read_process(&process, task);
	if (!pass_process(&process, task) || !fill(&ev, key, &request, RESULT_LOST))
		return;
	set_owner(&ev, &process);
	if (request.answered_ns)
		ev.wait_us = ev.time - request.answered_ns;
	emit(&ev, sizeof(ev));
}

#endif
