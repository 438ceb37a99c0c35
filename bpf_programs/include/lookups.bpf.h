/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Name lookups from the call to the return, of any function in any language. A program that includes
 * this includes <netbpf/records.h> before, and defines
 *   is_wanted(lookup): whether filters let a lookup that has ended pass.
 */
#ifndef NETBPF_LOOKUPS_BPF_H
#define NETBPF_LOOKUPS_BPF_H

#include "filter.bpf.h"
#include "signals.bpf.h"
#include "user.bpf.h"

KERNEL_FIELDS(task_struct, nsproxy, start_time, signal, sas_ss_sp, sas_ss_size)
KERNEL_FIELDS(signal_struct, live.counter)
KERNEL_FIELDS(nsproxy, net_ns)
KERNEL_FIELDS(net, ns.inum)

/* In the key of a call, instead of a function of Go's: any of libc's, on a second stack or not. */
enum { NO_FUNC, OTHER_STACK = 255 };
/* Results that no function returns. PROCESS_ENDED: all lookups of a process ended at that time. */
enum { STILL_WAITING = 1, PROCESS_ENDED = 3 };

#define HOST_SIZE 256
#define SAME_CALL_NS 1000000 /* later, an entry at the same place is another call */
#define STACK_SPAN (1 << 20) /* libc does not go as deep: further away is another stack */

/* A lookup that is under way; the time in `ev` is that of its start. */
struct call {
	struct lookup ev;
	u64 sp; /* at the entry: calls that libc makes inside are deeper; see golang.bpf.h for Go */
	u64 born; /* start time of its thread: another thread may get its number */
	u64 back; /* its return address */
	u64 signalled; /* when the thread last handled a signal, whose handler may leave the call */
	u64 host; /* addresses of arguments in the process */
	u64 service;
	u64 found; /* the _r functions' result and h_errnop */
	u64 error;
	u64 inner_sp; /* the _r function that a plain one calls has its h_errno */
	u64 inner_error;
	s64 inner_h_errno;
};
struct call_key {
	u64 thread; /* thread id, or address of the goroutine */
	u32 pid;
	u32 func;
};
BPF_HASH(calls, struct call_key, struct call, MAP_ENTRIES);
/* Never written: a new call begins as a copy of it, too large for the stack. */
BPF_ARRAY(blank_call, struct call, 1);

/* Is the call so young that another entry at the same place is the same call? */
static inline bool is_new(struct call *call)
{
	return bpf_ktime_get_ns() - call->ev.time < SAME_CALL_NS;
}

/* Read a string of the program; true if it is longer than `size`. */
static inline bool read_cut(char *to, u32 size, u64 from)
{
	char next = 0;

	if (read_user_text(to, size, (void *)from) == size)
		read_user(&next, 1, (void *)(from + size - 1));
	return next;
}

static inline void read_host(struct call *call)
{
	char *host = call->ev.host;
	void *from = (void *)call->host;

	if (host[0] || host[HOST_SIZE - 1] || !from)
		return;
	if (call->ev.func != FUNC_GETHOSTBYADDR && call->ev.func != FUNC_GETHOSTBYADDR_R) {
		if (read_cut(host, HOST_SIZE - 1, call->host))
			call->ev.truncated |= TRUNCATED_HOST;
	} else if (call->ev.family == AF_INET) {
		host[10] = host[11] = 0xff;
		host[HOST_SIZE - 1] = !read_user(host + 12, 4, from);
	} else {
		host[HOST_SIZE - 1] = !read_user(host, 16, from);
	}
}

static inline void read_service(struct call *call)
{
	if (call->service && !call->ev.service[0] &&
	    read_cut(call->ev.service, sizeof(call->ev.service), call->service))
		call->ev.truncated |= TRUNCATED_SERVICE;
}

/* Add a new call; NULL if filters exclude it or the map is full. */
static inline struct call *begin(struct call_key *key, u8 func)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct nsproxy *spaces = READ(task, nsproxy);
	struct net *net = READ(spaces, net_ns);
	u32 netns = READ(net, ns.inum);
	struct process process = {};
	struct call *call;
	int zero = 0;

	read_process(&process, task);
	if (!pass_process(&process, task) || !pass_netns(netns))
		return NULL;
	call = blank_call.lookup(&zero);
	if (!call)
		return NULL;
	if (calls.update(key, call)) {
		count_loss(LOSS_MAP_FULL);
		return NULL;
	}
	call = calls.lookup(key);
	if (!call)
		return NULL;
	call->born = READ(task, start_time);
	call->ev.time = bpf_ktime_get_ns();
	call->ev.container = process.cgroup;
	call->ev.pid = process.pid;
	call->ev.uid = process.uid;
	call->ev.netns = netns;
	call->ev.result = STILL_WAITING;
	call->ev.func = func;
	__builtin_memcpy(call->ev.comm, process.comm, sizeof(process.comm));
	return call;
}

static inline void end(struct call_key *key, struct call *call, s32 result, u64 when)
{
	call->ev.latency_us = when - call->ev.time;
	call->ev.time = when;
	call->ev.result = result;
	if (is_wanted(&call->ev))
		emit(&call->ev, sizeof(call->ev));
	calls.delete(key);
}

static inline void finish(struct call_key *key, struct call *call, s32 result)
{
	u64 now = bpf_ktime_get_ns();

	/* What was not in memory at the entry is there now: libc has read it. */
	read_host(call);
	read_service(call);
	end(key, call, result, now);
}

/*
 * A lookup that will never return. No probe shows a jump out of it. The handler of a signal makes it,
 * so the time is that of the last signal. The arguments may be gone from memory.
 */
static inline void abandon(struct call_key *key, struct call *call)
{
	end(key, call, ABANDONED, call->signalled ? call->signalled : bpf_ktime_get_ns());
}

static inline void libc_key(struct call_key *key)
{
	u64 id = bpf_get_current_pid_tgid();

	key->thread = (u32)id;
	key->pid = id >> 32;
	key->func = NO_FUNC;
}

/* The calls of a thread, if any, will never return. */
static inline void abandon_calls(u32 thread)
{
	struct call_key key = {};
	struct call *call;

	libc_key(&key);
	key.thread = thread;
	call = calls.lookup(&key);
	if (call)
		abandon(&key, call);
	key.func = OTHER_STACK;
	call = calls.lookup(&key);
	if (call)
		abandon(&key, call);
}

/* Is `sp` on the stack that the thread has for handlers? As on_sig_stack() in linux/sched/signal.h. */
static inline bool on_signal_stack(struct task_struct *task, u64 sp)
{
	u64 begin = READ(task, sas_ss_sp);

	return sp > begin && sp - begin <= READ(task, sas_ss_size);
}

/* Are two places on different stacks of a thread: a handler's, those of coroutines? */
static inline bool on_other_stack(u64 sp, u64 other)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();

	if (sp == other) /* nearly always, at the return */
		return false;
	return sp - other + STACK_SPAN > 2 * STACK_SPAN ||
	       on_signal_stack(task, sp) != on_signal_stack(task, other);
}

/*
 * The call of the current thread on the stack at `sp`, NULL if it has none there; `key` is set to
 * the place of the call, or of one to come.
 */
static inline struct call *call_at(struct call_key *key, u64 sp)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct call *call;

	libc_key(key);
	call = calls.lookup(key);
	if (call && call->born != READ(task, start_time)) {
		abandon(key, call); /* of a thread whose end was missed */
		call = NULL;
	}
	if (!call || !on_other_stack(sp, call->sp))
		return call;
	key->func = OTHER_STACK;
	return calls.lookup(key);
}

static inline int on_signal(int sig, u64 handler, u64 flags)
{
	bool dies = ends_process(sig, handler);
	struct call_key key = {};
	struct call *call;

	if (!is_handler(handler) && !dies)
		return 0;
	libc_key(&key);
	call = calls.lookup(&key);
	if (call)
		call->signalled = dies ? 0 : bpf_ktime_get_ns();
	key.func = OTHER_STACK;
	call = calls.lookup(&key);
	if (call)
		call->signalled = dies ? 0 : bpf_ktime_get_ns();
	return 0;
}

#endif
