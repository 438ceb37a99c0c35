/* SPDX-License-Identifier: GPL-2.0-only */
/* Name lookups of a program from the call to the return, whatever function or language it is. */
#ifndef NETBPF_LOOKUPS_BPF_H
#define NETBPF_LOOKUPS_BPF_H

#include "filter.bpf.h"
#include "user.bpf.h"

KERNEL_FIELDS(task_struct, nsproxy)
KERNEL_FIELDS(nsproxy, net_ns)
KERNEL_FIELDS(net, ns.inum)

/* Numbers of the column func. */
enum func {
	NO_FUNC, /* in the key of a call: any of libc's */
	GETADDRINFO,
	BY_NAME,
	BY_NAME_R,
	BY_NAME2,
	BY_NAME2_R,
	BY_ADDR,
	BY_ADDR_R,
	GO_LOOKUPIPADDR,
	GO_LOOKUPHOST,
	GO_LOOKUPADDR,
};
/* The same in glibc and musl, and so are the numbers of h_errno. */
enum { EAI_NONAME = -2, EAI_AGAIN = -3, EAI_FAIL = -4, EAI_NODATA = -5 };
enum { EAI_SYSTEM = -11, EAI_OVERFLOW = -12, STILL_WAITING = 1 };

#define HOST_SIZE 256
#define SAME_CALL_NS 1000000 /* later, an entry at the same place is another call */

struct lookup {
	u64 time;
	u64 latency_us; /* in ns, as all durations here */
	u64 container; /* its cgroup */
	u32 pid;
	u32 uid;
	u32 netns;
	s32 result;
	char comm[16];
	char host[HOST_SIZE]; /* or, with a 1 in the last byte, an address of 16 bytes */
	u8 family;
	char service[32];
	u8 func;
	u8 pad[6];
};

/* A lookup that is under way; the time in `ev` is that of its start. */
struct call {
	struct lookup ev;
	u64 sp; /* at the entry: tells a call from those that libc makes inside of it */
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

static inline void read_host(struct call *call)
{
	char *host = call->ev.host;
	void *from = (void *)call->host;

	if (host[0] || host[HOST_SIZE - 1] || !from)
		return;
	if (call->ev.func != BY_ADDR && call->ev.func != BY_ADDR_R) {
		read_user_text(host, HOST_SIZE - 1, from);
	} else if (call->ev.family == AF_INET) {
		host[10] = host[11] = 0xff;
		host[HOST_SIZE - 1] = !read_user(host + 12, 4, from);
	} else {
		host[HOST_SIZE - 1] = !read_user(host, 16, from);
	}
}

static inline void read_service(struct call *call)
{
	if (call->service && !call->ev.service[0])
		read_user_text(call->ev.service, sizeof(call->ev.service), (void *)call->service);
}

/* Remember a new call; NULL if it was filtered out or there is no room. */
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

static inline void finish(struct call_key *key, struct call *call, s32 result)
{
	u64 now = bpf_ktime_get_ns();

	call->ev.latency_us = now - call->ev.time;
	call->ev.time = now;
	call->ev.result = result;
	if (call->ev.latency_us >= MIN_NS && (result || !FAILED_ONLY)) {
		/* What was not in memory at the entry: libc has read it since. */
		read_host(call);
		read_service(call);
		emit(&call->ev, sizeof(call->ev));
	}
	calls.delete(key);
}

static inline void libc_key(struct call_key *key)
{
	u64 id = bpf_get_current_pid_tgid();

	key->thread = (u32)id;
	key->pid = id >> 32;
	key->func = NO_FUNC;
}

/* A thread that ends in the middle of a lookup: its number will be another's. */
static inline int on_thread_exit(void)
{
	struct call_key key = {};

	libc_key(&key);
	calls.delete(&key);
	return 0;
}

#ifdef USE_exit_rawtp
int exit_rawtp(struct bpf_raw_tracepoint_args *ctx)
{
	return on_thread_exit();
}
#endif
#ifdef USE_exit_tp
int exit_tp(struct exit_args *ctx)
{
	return on_thread_exit();
}
#endif

#endif
