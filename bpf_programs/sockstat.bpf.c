// SPDX-License-Identifier: GPL-2.0-only
/* sockstat: calls on sockets by operation, protocol and result. Front-end: netbpf/tools/sockstat.py */
#include "netbpf.bpf.h"
#include <netbpf/records.h>
#include "anysock.bpf.h"
#include "messages.bpf.h"

#ifdef BY_KEY
#include "call_keys.bpf.h"

BPF_F_TABLE("percpu_hash", struct by_key, struct call_sums, calls_by_key, MAP_ENTRIES * 4, 0);
#else
#define CALL_KINDS 1024 /* more than there are operations, protocols and errors in use */
BPF_F_TABLE("percpu_hash", struct call_key, struct call_sums, calls_by_protocol, CALL_KINDS, 0);
#endif
#ifdef BY_PROCESS
/* A process makes calls of several kinds, which end in several ways. */
BPF_F_TABLE("percpu_hash", struct process_key, struct call_sums, calls_by_process, MAP_ENTRIES * 4,
	    0);
#endif

/* What a call is counted by. */
struct counted {
#ifdef BY_KEY
	struct by_key key;
#else
	struct call_key key;
#endif
#ifdef BY_PROCESS
	struct process_key who;
#endif
};

static inline void add(struct call_sums *sums, u64 bytes)
{
	if (!sums) {
		count_loss(LOSS_MAP_FULL);
		return;
	}
	sums->calls++;
	sums->bytes += bytes;
}

static inline void count(struct counted *what, s32 error, u64 bytes)
{
	struct call_sums none = {};

	what->key.error = error;
#ifdef BY_KEY
	add(calls_by_key.lookup_or_try_init(&what->key, &none), bytes);
#else
	add(calls_by_protocol.lookup_or_try_init(&what->key, &none), bytes);
#endif
#ifdef BY_PROCESS
	what->who.error = error;
	add(calls_by_process.lookup_or_try_init(&what->who, &none), bytes);
#endif
}

#include "restarts.bpf.h"

static inline int count_call(int op, int proto, struct sock *sk, u16 family, s64 result, u64 bytes)
{
	struct counted what = {};

	if (!pass_call(op, proto))
		return 0;
#ifdef BY_KEY
	fill_key(&what.key, op, proto, sk, family);
#else
	what.key.op = op;
	what.key.proto = proto;
#endif
#ifdef BY_PROCESS
	struct task_struct *caller = (struct task_struct *)bpf_get_current_task();
	struct task_struct *leader = READ(caller, group_leader);

	what.who.pid = current_pid();
	what.who.op = op;
	READ_INTO(what.who.comm, leader, comm);
#endif
	if (is_interrupted(result)) {
		on_interrupted(result, &what);
		return 0;
	}
	call_ended();
	count(&what, result < 0 ? -result : 0, bytes);
	return 0;
}

/* A call on `sk`, NULL if its file is no socket. */
static inline int on_socket_call(int op, struct sock *sk, s64 result, u64 bytes)
{
	u16 family = sk ? READ(sk, __sk_common.skc_family) : 0;

	if (!pass_socket(sk, family))
		return 0;
	return count_call(op, sk ? proto_of_sock(sk, family) : PROTO_OTHER, sk, family, result,
			  bytes);
}

/* socket() and socketpair(): their arguments say which protocol, even if there is no socket. */
static inline int on_make(int op, u16 family, u32 type, u16 protocol, s64 result)
{
	if (!pass_socket(NULL, family))
		return 0;
	return count_call(op, proto_of(family, type & SOCK_TYPE_MASK, protocol), NULL, family,
			  result, 0);
}

static inline int on_message(int op, struct sock *sk, int result, int flags)
{
	return on_socket_call(op, sk, result, result > 0 && takes_data(flags) ? result : 0);
}

#include "socket_calls.bpf.h"
#include "ring.bpf.h"
