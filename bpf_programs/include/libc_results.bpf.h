/* SPDX-License-Identifier: GPL-2.0-only */
/* What libc's lookups return, as numbers of the column result: those of getaddrinfo. */
#ifndef NETBPF_LIBC_RESULTS_BPF_H
#define NETBPF_LIBC_RESULTS_BPF_H

#include "lookups.bpf.h"

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
	if (call->ev.func == GETADDRINFO)
		return returned;
	if (!call->error)
		return returned ? 0 : of_h_errno(call->inner_h_errno);
	/* The _r functions of glibc return 0 also if there is no such name. */
	if (read_user_word(call->found))
		return 0;
	/* The caller will try again with a larger buffer. */
	if ((s32)returned == ERANGE)
		return EAI_OVERFLOW;
	return of_h_errno(read_user_word(call->error));
}

#endif
