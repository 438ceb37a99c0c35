/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Name lookups of Go programs: GO_PROBES of declare/lookups.py. For where the facts come from, see
 * netbpf/binaries/golang.py.
 */
#ifndef NETBPF_GOLANG_BPF_H
#define NETBPF_GOLANG_BPF_H

#include "lookups.bpf.h"

/* GO_REG_n is entry n of REGISTERS in golang.py. */
#if defined(__TARGET_ARCH_x86) || defined(__x86_64__)
#define GO_REG_3(ctx) ((ctx)->di)
#define GO_REG_4(ctx) ((ctx)->si)
#define GO_REG_5(ctx) ((ctx)->r8)
#define GO_REG_6(ctx) ((ctx)->r9)
#define GO_ROUTINE(ctx) ((ctx)->r14)
#else
#define GO_REG_3(ctx) ((ctx)->regs[3])
#define GO_REG_4(ctx) ((ctx)->regs[4])
#define GO_REG_5(ctx) ((ctx)->regs[5])
#define GO_REG_6(ctx) ((ctx)->regs[6])
#define GO_ROUTINE(ctx) ((ctx)->regs[28])
#endif

/* A lookup of Go's that calls libc: the pointer that libc gets as its first argument. */
struct cgo_call {
	u64 argument;
	u64 pid;
};
BPF_TABLE("lru_hash", struct cgo_call, u8, cgo_calls, LRU_ENTRIES(16384));
/* By process: the offset of net.DNSError's flags. Lookups' entries are probed once more for it. */
BPF_TABLE("lru_hash", u32, u64, go_errors, LRU_ENTRIES(4096));

/* A lookup begins in a program whose net.DNSError has its flags at `offset`: 0 is not known. */
static inline int on_go_errors(u64 offset)
{
	u32 pid = current_pid();
	u64 *known = go_errors.lookup(&pid);

	if (!known || *known != offset)
		go_errors.update(&pid, &offset);
	return 0;
}

/* Read net.DNSError's IsTimeout, IsTemporary and IsNotFound; all false if not known. */
static inline void read_go_error(bool flags[3], u64 error)
{
	u32 pid = current_pid();
	u64 *place = go_errors.lookup(&pid);

	if (!place) /* evicted since the entry, as lookups of many processes have begun */
		count_loss(LOSS_MAP_FULL);
	else if (*place)
		read_user(flags, 3, (void *)(error + *place));
}

/* Does a name of up to 16 characters, or the beginning of a longer one, look like an address? */
static inline bool is_address(const char *text)
{
	bool digits = true;

	for (int i = 0; i < 16 && text[i]; i++) {
		if (text[i] == ':')
			return true;
		if (text[i] != '.' && (text[i] < '0' || text[i] > '9'))
			digits = false;
	}
	return digits && !text[15];
}

/*
 * Has Go announced this call? That may be long ago, as the thread may have waited for the CPU or a
 * page. The entry stays, because getnameinfo() of glibc asks again with a larger buffer. No other call
 * passes the same pointer, as it points to Go's own memory.
 */
static inline bool from_go(u8 func, u64 argument, u8 family)
{
	struct cgo_call key = {.argument = argument, .pid = current_pid()};

	/* getnameinfo() gets a socket address, and looks up sin6_addr or sin_addr in it. */
	if (func == FUNC_GETHOSTBYADDR_R)
		key.argument -= family == AF_INET6 ? 8 : 4;
	return cgo_calls.lookup(&key) != NULL;
}

static inline void go_key(struct call_key *key, u64 goroutine, u8 func)
{
	/* Not the thread or its stack: a goroutine and its stack move from thread to thread. */
	key->thread = goroutine;
	key->pid = current_pid();
	key->func = func;
}

/*
 * A Go function runs again from its entry after its stack had to grow: then it is at the same depth of
 * another stack. The entry of another lookup means that the goroutine left the one before by a panic,
 * or ended in it and another goroutine got its place.
 */
static inline bool is_again(struct call *call, u64 top, u64 depth)
{
	return is_new(call) || (top != call->found && depth == call->sp);
}

static inline int on_go(struct pt_regs *ctx, u8 func)
{
	/* lookupIPAddr has the network before the host. */
	bool has_network = func == FUNC_NET_LOOKUPIPADDR;
	u64 host = has_network ? GO_REG_5(ctx) : GO_REG_3(ctx);
	u64 length = has_network ? GO_REG_6(ctx) : GO_REG_4(ctx);
	/* runtime.g begins with the bounds of its stack: lo, hi. */
	u64 top = read_user_word(GO_ROUTINE(ctx) + 8);
	u64 depth = top - CALL_SP(ctx);
	struct call_key key = {};
	struct call *call;
	char head[17] = {};
	bool cut = length >= HOST_SIZE;

	go_key(&key, GO_ROUTINE(ctx), func);
	call = calls.lookup(&key);
	if (call && is_again(call, top, depth))
		return 0;
	if (call)
		abandon(&key, call);
	if (cut)
		length = HOST_SIZE - 1;
	read_user(head, length > 16 ? 16 : length, (void *)host);
	if (func != FUNC_NET_LOOKUPADDR && is_address(head))
		return 0;
	call = begin(&key, func);
	if (!call)
		return 0;
	call->sp = depth;
	call->found = top;
	call->ev.truncated = cut ? TRUNCATED_HOST : 0;
	read_user(call->ev.host, length & (HOST_SIZE - 1), (void *)host);
	return 0;
}

static inline s32 go_result(u64 error_type, u64 error)
{
	bool flags[3] = {};

	if (!error_type)
		return 0;
	read_go_error(flags, error);
	if (flags[2])
		return EAI_NONAME;
	return flags[0] || flags[1] ? EAI_AGAIN : EAI_FAIL;
}

static inline int on_go_return(struct pt_regs *ctx, u8 func)
{
	struct call_key key = {};
	struct call *call;

	go_key(&key, GO_ROUTINE(ctx), func);
	call = calls.lookup(&key);
	if (call)
		finish(&key, call, go_result(GO_REG_3(ctx), GO_REG_4(ctx)));
	return 0;
}

/*
 * All goroutines of the current process end. Their calls are not kept by thread: the reader finds
 * them (netbpf/run/results/pending.py).
 */
static inline void end_goroutines(void)
{
	struct lookup ended = {.time = bpf_ktime_get_ns(), .result = PROCESS_ENDED};
	u32 pid = current_pid();

	ended.pid = pid;
	if (!go_errors.delete(&pid))
		emit(&ended, sizeof(ended));
}

/* A thread ends, maybe in the middle of a lookup. Its number may be used again. */
static inline int on_exit(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct signal_struct *process = READ(task, signal);

	abandon_calls(bpf_get_current_pid_tgid());
	if (!READ(process, live.counter))
		end_goroutines();
	return 0;
}

/* The current process begins to run another program; `thread` called exec. */
static inline int on_exec(u32 thread)
{
	abandon_calls(thread);
	end_goroutines();
	report_program();
	return 0;
}

/*
 * Go is about to call libc for a lookup that its own functions have shown. What cgo generates uses the
 * calling convention that has all arguments on the stack (ABI0, go:cgo_unsafe_args).
 */
static inline int on_go_libc(struct pt_regs *ctx)
{
	struct cgo_call key = {.argument = read_user_word(CALL_SP(ctx) + 8), .pid = current_pid()};
	u8 known = 1;

	cgo_calls.update(&key, &known);
	return 0;
}

#endif
