/* SPDX-License-Identifier: GPL-2.0-only */
/* Reading the memory of the current process. */
#ifndef NETBPF_USER_MEMORY_BPF_H
#define NETBPF_USER_MEMORY_BPF_H

#include "netbpf.bpf.h"

/* Not by bcc's names: bcc reads all of /proc/kallsyms for each call of those. */
static long (*read_user)(void *to, u32 size, const void *from) = (void *)BPF_FUNC_probe_read_user;
static long (*read_user_text)(void *to, u32 size,
			      const void *from) = (void *)BPF_FUNC_probe_read_user_str;

static inline u64 read_user_word(u64 address)
{
	u64 word = 0;

	read_user(&word, sizeof(word), (void *)address);
	return word;
}

#endif
