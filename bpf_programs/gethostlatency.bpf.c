// SPDX-License-Identifier: GPL-2.0-only
/*
 * gethostlatency: one event per name lookup. Front-end: netbpf/tools/gethostlatency.py; the files
 * that are probed: netbpf/run/lookups.py. Here are libc's functions, in golang.bpf.h those of Go.
 */
#include "netbpf.bpf.h"
#include "lookups.bpf.h"
#include "golang.bpf.h"
#include "libc_results.bpf.h"

/* Did a function that is known end in a jump to this one, as musl's gethostbyname() does? */
static inline bool is_jump(struct pt_regs *ctx, struct call *call, u8 func)
{
	bool by_name = (call->ev.func == BY_NAME && func == BY_NAME2) ||
		       (call->ev.func == BY_NAME_R && func == BY_NAME2_R);

	return came_by_jump(ctx) || (by_name && call->back == RETURN_ADDRESS(ctx));
}

static inline int on_entry(struct pt_regs *ctx, u8 func, u64 host, u8 family, u64 found, u64 error)
{
	u64 sp = CALL_SP(ctx);
	struct call_key key = {};
	struct call *call;

	call = call_at(&key, sp);
	/*
	 * Deeper on the stack: made inside of a call that is known. At the same place: a jump from
	 * one function to the next (musl), or one file probed twice under two identities, both at
	 * once; else the program has left the other by longjmp.
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
	if (func == GETADDRINFO)
		call->service = PT_REGS_PARM2(ctx);
	read_host(call);
	read_service(call);
	return 0;
}

static inline int on_return(struct pt_regs *ctx, u64 sp)
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

#ifdef USE_ret_uprobe
int ret_uprobe(struct pt_regs *ctx)
{
	return on_return(ctx, CALL_SP(ctx));
}
#endif
#ifdef USE_returned_uretprobe
int returned_uretprobe(struct pt_regs *ctx)
{
	return on_return(ctx, CALL_SP_AT_RETURN(ctx));
}
#endif
#ifdef USE_getaddrinfo_uprobe
int getaddrinfo_uprobe(struct pt_regs *ctx)
{
	u64 hints = PT_REGS_PARM3(ctx);
	u32 family = hints ? read_user_word(hints) >> 32 : 0; /* behind ai_flags */

	return on_entry(ctx, GETADDRINFO, PT_REGS_PARM1(ctx), family, 0, 0);
}
#endif
#ifdef USE_gethostbyname_uprobe
int gethostbyname_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_NAME, PT_REGS_PARM1(ctx), AF_INET, 0, 0);
}
#endif
#ifdef USE_gethostbyname_r_uprobe
int gethostbyname_r_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_NAME_R, PT_REGS_PARM1(ctx), AF_INET, PT_REGS_PARM5(ctx),
			PT_REGS_PARM6(ctx));
}
#endif
#ifdef USE_gethostbyname2_uprobe
int gethostbyname2_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_NAME2, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), 0, 0);
}
#endif
#ifdef USE_gethostbyname2_r_uprobe
int gethostbyname2_r_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_NAME2_R, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM6(ctx),
			C_ARG7(ctx));
}
#endif
#ifdef USE_gethostbyaddr_uprobe
int gethostbyaddr_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_ADDR, PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx), 0, 0);
}
#endif
#ifdef USE_gethostbyaddr_r_uprobe
int gethostbyaddr_r_uprobe(struct pt_regs *ctx)
{
	return on_entry(ctx, BY_ADDR_R, PT_REGS_PARM1(ctx), PT_REGS_PARM3(ctx), C_ARG7(ctx),
			C_ARG8(ctx));
}
#endif
