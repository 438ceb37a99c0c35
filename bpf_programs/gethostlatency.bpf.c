// SPDX-License-Identifier: GPL-2.0-only
/*
 * gethostlatency: one event per name lookup. Front-end: netbpf/tools/gethostlatency.py; the files
 * that are probed: netbpf/run/lookups.py. Here are libc's functions, in golang.bpf.h those of Go.
 */
#include "netbpf.bpf.h"
#include <netbpf/records.h>

static inline bool is_wanted(const struct lookup *lookup)
{
	return lookup->latency_us >= MIN_NS && (lookup->result || !FAILED_ONLY);
}

#include "lookups.bpf.h"
#include "golang.bpf.h"

#define ERANGE 34
/* netdb.h: the same numbers in glibc and musl. */
enum { NETDB_INTERNAL = -1, HOST_NOT_FOUND = 1, TRY_AGAIN, NO_RECOVERY, NO_DATA };

static inline s32 of_h_errno(s32 number)
{
	switch (number) {
	case HOST_NOT_FOUND:
		return EAI_NONAME;
	case TRY_AGAIN:
		return EAI_AGAIN;
	case NO_DATA:
		return EAI_NODATA;
	case NETDB_INTERNAL:
		return EAI_SYSTEM;
	}
	return EAI_FAIL;
}

static inline s32 result_of(struct call *call, u64 returned)
{
	if (call->ev.func == FUNC_GETADDRINFO)
		return returned;
	if (!call->error)
		return returned ? 0 : of_h_errno(call->inner_h_errno);
	/* The _r functions of glibc return 0 even if the name does not exist. */
	if (read_user_word(call->found))
		return 0;
	/* The caller will try again with a larger buffer. */
	if ((s32)returned == ERANGE)
		return EAI_OVERFLOW;
	return of_h_errno(read_user_word(call->error));
}

/* Did the function of `call` end in a jump to this one, as musl's gethostbyname() does? */
static inline bool is_jump(struct pt_regs *ctx, struct call *call, u8 func)
{
	bool by_name = (call->ev.func == FUNC_GETHOSTBYNAME && func == FUNC_GETHOSTBYNAME2) ||
		       (call->ev.func == FUNC_GETHOSTBYNAME_R && func == FUNC_GETHOSTBYNAME2_R);

	return came_by_jump(ctx) || (by_name && call->back == RETURN_ADDRESS(ctx));
}

static inline int begin_libc(struct pt_regs *ctx, u8 func, u64 host, u8 family, u64 found,
			     u64 error)
{
	u64 sp = CALL_SP(ctx);
	struct call_key key = {};
	struct call *call;

	call = call_at(&key, sp);
	/*
	 * Deeper on the stack: libc makes this call inside of the other. At the same place: a jump
	 * from one function to the next (musl), or one file that is probed twice, under two
	 * identities. Otherwise the program has left the other call by longjmp.
	 */
	if (call &&
	    (sp < call->sp || (sp == call->sp && (is_jump(ctx, call, func) || is_new(call))))) {
		if (sp < call->sp && error) {
			call->inner_sp = sp;
			call->inner_error = error;
		}
		return 0;
	}
	if (call)
		abandon(&key, call);
	if (from_go(func, host, family))
		return 0;
	call = begin(&key, func);
	if (!call)
		return 0;
	call->sp = sp;
	call->back = RETURN_ADDRESS(ctx);
	call->host = host;
	call->ev.family = family;
	call->found = found;
	call->error = error;
	if (func == FUNC_GETADDRINFO)
		call->service = PT_REGS_PARM2(ctx);
	read_host(call);
	read_service(call);
	return 0;
}

/* Entry of a function of libc: where it has the name, the family and the places of its results. */
static inline int on_libc(struct pt_regs *ctx, u8 func)
{
	u64 host = PT_REGS_PARM1(ctx), second = PT_REGS_PARM2(ctx), third = PT_REGS_PARM3(ctx);
	u64 fifth = PT_REGS_PARM5(ctx), sixth = PT_REGS_PARM6(ctx);

	switch (func) {
	case FUNC_GETADDRINFO: /* `third` are hints, with the family behind ai_flags */
		return begin_libc(ctx, func, host, third ? read_user_word(third) >> 32 : 0, 0, 0);
	case FUNC_GETHOSTBYNAME:
		return begin_libc(ctx, func, host, AF_INET, 0, 0);
	case FUNC_GETHOSTBYNAME_R:
		return begin_libc(ctx, func, host, AF_INET, fifth, sixth);
	case FUNC_GETHOSTBYNAME2:
		return begin_libc(ctx, func, host, second, 0, 0);
	case FUNC_GETHOSTBYNAME2_R:
		return begin_libc(ctx, func, host, second, sixth, C_ARG7(ctx));
	case FUNC_GETHOSTBYADDR:
		return begin_libc(ctx, func, host, third, 0, 0);
	default:
		return begin_libc(ctx, func, host, third, C_ARG7(ctx), C_ARG8(ctx));
	}
}

/* Return of a function of libc whose entry was at `sp`. */
static inline int end_libc(struct pt_regs *ctx, u64 sp)
{
	struct call_key key = {};
	struct call *call;

	call = call_at(&key, sp);
	if (!call)
		return 0;
	if (sp == call->sp)
		finish(&key, call, result_of(call, PT_REGS_RC(ctx)));
	else if (sp == call->inner_sp)
		call->inner_h_errno = read_user_word(call->inner_error);
	return 0;
}

static inline int on_ret(struct pt_regs *ctx)
{
	return end_libc(ctx, CALL_SP(ctx));
}

static inline int on_returned(struct pt_regs *ctx)
{
	return end_libc(ctx, CALL_SP_AT_RETURN(ctx));
}
