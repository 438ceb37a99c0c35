/* SPDX-License-Identifier: GPL-2.0-only */
/* Does a process hold an open file, by its table of descriptors? */
#ifndef NETBPF_HOLDING_BPF_H
#define NETBPF_HOLDING_BPF_H

#include "files.bpf.h"

KERNEL_FIELDS(sock, sk_socket)
KERNEL_FIELDS(socket, file)
KERNEL_OPTIONAL(task_struct, io_uring)

/* The open file of a socket, NULL after its last descriptor was closed. */
static inline struct file *file_of_sock(struct sock *sk)
{
	struct socket *socket = READ(sk, sk_socket);

	return socket ? READ(socket, file) : NULL;
}

#define DESCRIPTORS 256 /* of a process that are compared: a power of two */

struct descriptors {
	u64 file[DESCRIPTORS];
};
/* Too large for the stack. A program that interrupts another one here makes it miss a file. */
BPF_PERCPU_ARRAY(descriptors, struct descriptors, 1);

static inline struct fdtable *descriptors_of(struct task_struct *leader)
{
	struct files_struct *files = READ(leader, files);

	return READ(files, fdt);
}

/*
 * Returns a number whose highest bit is 0 if `a` and `b` are equal, and 1 otherwise. Jumps in a loop
 * would double the paths that the verifier follows with each round, and the time to load a program.
 */
static inline u64 differ(u64 a, const void *b)
{
	u64 difference = a ^ (u64)b, negative = -difference;

	asm volatile("" : "+r"(negative)); /* or clang turns it into a comparison and a jump */
	return difference | negative;
}

/* The open file of descriptor `fd` of a table, 0 if there is none. Each table has 64 or more. */
static inline u64 file_at(struct fdtable *table, u32 fd)
{
	u64 found = 0, at = (u64)((void **)READ(table, fd) + (u64)fd);

	if (!__builtin_constant_p(fd)) {
		u64 inside = (s64)((u64)fd - READ(table, max_fds)) >> 63; /* all ones, or 0 */

		asm volatile("" : "+r"(inside));
		at &= inside; /* reading address 0 fails, and leaves 0 */
	}
	bpf_probe_read_kernel(&found, sizeof(found), (void *)at);
	return found;
}

/*
 * Has a child the file under this number, or under inetd's (0) or that of systemd's Accept=yes (3)?
 * Returns 0 or all ones.
 */
static inline u64 has_inherited(struct task_struct *child, s32 fd, struct file *file)
{
	struct fdtable *table = descriptors_of(child);
	u64 differs = differ(file_at(table, fd), file) & differ(file_at(table, 0), file) &
		      differ(file_at(table, 3), file);
	u64 equal = (differs >> 63) - 1;

	asm volatile("" : "+r"(equal));
	return equal;
}

/* Copy the first descriptors of a table, zeros behind its end. */
static inline void copy_descriptors(struct descriptors *row, struct fdtable *table)
{
	u64 size = READ(table, max_fds) * sizeof(struct file *);

	bpf_probe_read_kernel(row, sizeof(struct descriptors), NULL); /* fails, and leaves zeros */
	size = size < sizeof(struct descriptors) ? size : sizeof(struct descriptors);
	asm volatile("" : "+r"(size)); /* or clang drops the mask, and the verifier sees no bound */
	bpf_probe_read_kernel(row, size & (2 * sizeof(struct descriptors) - 1), READ(table, fd));
}

/*
 * Does a process have an open file among its first descriptors? False if the address of its task is
 * out of date.
 */
static inline bool holds_file(struct task_struct *leader, struct file *file, s32 fd)
{
	struct fdtable *table = descriptors_of(leader);
	u64 all_differ = ~0ULL;
	int zero = 0;
	struct descriptors *row = descriptors.lookup(&zero);

	if (!row || file_at(table, fd) == (u64)file)
		return row;
	copy_descriptors(row, table);
	/* The highest bit stays 1 only if all files differ. */
#pragma nounroll
	for (u64 i = 0; i < DESCRIPTORS; i += 4) {
		all_differ &= differ(row->file[i], file) & differ(row->file[i + 1], file) &
			      differ(row->file[i + 2], file) & differ(row->file[i + 3], file);
	}
	return !(all_differ >> 63);
}

/* The highest of the first descriptors under which a process has an open file, or -1. */
static inline s32 descriptor_of(struct task_struct *leader, struct file *file)
{
	u64 found = 0;
	int zero = 0;
	struct descriptors *row = descriptors.lookup(&zero);

	if (!row)
		return -1;
	copy_descriptors(row, descriptors_of(leader));
#pragma nounroll
	for (u64 i = 0; i < DESCRIPTORS; i++) {
		u64 equal = (differ(row->file[i], file) >> 63) - 1;

		asm volatile("" : "+r"(equal));
		found = (found & ~equal) | ((i + 1) & equal);
	}
	return (s32)found - 1;
}

/*
 * Can a process have files that holds_file() does not see: under a higher descriptor, or under none,
 * as io_uring can have them?
 */
static inline bool may_hold_more(struct task_struct *leader)
{
#ifdef HAVE_task_struct_io_uring
	if (READ(leader, io_uring))
		return true;
#endif
	return READ(descriptors_of(leader), max_fds) > DESCRIPTORS;
}

#endif
