// SPDX-License-Identifier: GPL-2.0-only
/* socksize: sizes of socket messages. Front-end: netbpf/tools/socksize.py */
#include "netbpf.bpf.h"
#include "histogram.bpf.h"
#include <netbpf/records.h>
#include "call_keys.bpf.h"
#include "messages.bpf.h"

#define SMALL 128 /* bytes: a larger message is not small */
enum { EAGAIN = 11, EINPROGRESS = 115 }; /* asm-generic/errno.h */

BPF_F_TABLE("percpu_hash", struct by_key, struct sizes, sizes, MAP_ENTRIES, 0);
BPF_PERCPU_ARRAY(zeros, struct sizes, 1);

/* What a call is counted by. */
struct counted {
	struct by_key key;
};
static inline void count(struct counted *what, s32 error, u64 bytes);

#include "restarts.bpf.h"

/* The sizes of a key, with one more call; NULL if there is no room for it. */
static inline struct sizes *with_call(struct by_key *key)
{
	struct sizes *found = sizes.lookup(key), *empty;
	int zero = 0;

	if (!found) {
		empty = zeros.lookup(&zero); /* too large for the stack */
		found = empty ? sizes.lookup_or_try_init(key, empty) : NULL;
	}
	if (found)
		found->calls++;
	else
		count_loss(LOSS_MAP_FULL);
	return found;
}

/* Count a call that moved no message. One that is killed has no error. */
static inline void count(struct counted *what, s32 error, u64 bytes)
{
	struct sizes *sizes;

	if (error == RESTARTED) /* the program does not notice: it is the same call */
		return;
	sizes = with_call(&what->key);
	if (!sizes)
		return;
	if (error == EAGAIN || error == EINPROGRESS)
		sizes->would_block++;
	else if (error)
		sizes->errors++;
}

static inline void count_message(struct counted *what, u32 size, bool taken)
{
	struct sizes *sizes = with_call(&what->key);

	if (!sizes)
		return;
	if (!taken) {
		sizes->peeks++;
		return;
	}
	record_value(&sizes->histogram, size, 1);
	sizes->small += size <= SMALL;
}

static inline int on_message(int op, struct sock *sk, int result, int flags)
{
	u16 family = READ(sk, __sk_common.skc_family);
	struct counted what = {};
	int proto = PROTO_OTHER;

#if defined(FILTER_PROTO) || defined(BY_PROTO)
	proto = proto_of_sock(sk, family);
#endif
	if (!pass_call(op, proto) || !pass_socket(sk, family))
		return 0;
	fill_key(&what.key, op, proto, sk, family);
	if (is_interrupted(result)) {
		on_interrupted(result, &what);
		return 0;
	}
	call_ended();
	if (result < 0)
		count(&what, -result, 0);
	else
		count_message(&what, result, takes_data(flags));
	return 0;
}
