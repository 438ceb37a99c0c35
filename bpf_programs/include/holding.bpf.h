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

enum holding { HOLDS_NOT, HOLDS, HOLDS_MAYBE };

static inline struct fdtable *descriptors_of(struct task_struct *leader)
{
	struct files_struct *files = READ(leader, files);

	return READ(files, fdt);
}

/* Is descriptor `fd` of a table this open file? */
static inline bool is_file(struct fdtable *table, s32 fd, struct file *file)
{
	struct file *found = NULL;
	u64 at = (u32)fd; /* LLVM 11 crashes where it has to extend the sign */

	if (at < READ(table, max_fds))
		bpf_probe_read_kernel(&found, sizeof(found), (void **)READ(table, fd) + at);
	return found == file;
}

/* Has a child the file under this number, or under inetd's (0) or that of systemd's Accept=yes (3)? */
static inline bool has_inherited(struct task_struct *child, s32 fd, struct file *file)
{
	struct fdtable *table = descriptors_of(child);

	return is_file(table, fd, file) | is_file(table, 0, file) | is_file(table, 3, file);
}

/* Returns a number whose highest bit is 0 if `a` and `b` are equal, and 1 otherwise. */
static inline u64 differ(u64 a, const void *b)
{
	u64 difference = a ^ (u64)b, negative = -difference;

	asm volatile("" : "+r"(negative)); /* or clang turns it into a comparison and a jump */
	return difference | negative;
}

/*
 * Does a process have an open file? HOLDS_NOT if the address of its task is out of date. A process
 * that uses io_uring may have files without a descriptor.
 */
static inline enum holding holds_file(struct task_struct *leader, struct file *file, s32 fd)
{
	struct fdtable *table = descriptors_of(leader);
	u64 size = READ(table, max_fds) * sizeof(struct file *);
	u64 all_differ = ~0ULL;
	int zero = 0;
	struct descriptors *row = descriptors.lookup(&zero);

	if (!row || !table)
		return HOLDS_NOT;
	if (is_file(table, fd, file))
		return HOLDS;
	bpf_probe_read_kernel(row, sizeof(struct descriptors), NULL); /* fails, and leaves zeros */
	size = size < sizeof(struct descriptors) ? size : sizeof(struct descriptors);
	asm volatile("" : "+r"(size)); /* or clang drops the mask, and the verifier sees no bound */
	bpf_probe_read_kernel(row, size & (2 * sizeof(struct descriptors) - 1), READ(table, fd));
	/* The highest bit stays 1 only if all files differ; this takes no jump per descriptor. */
#pragma nounroll
	for (u64 i = 0; i < DESCRIPTORS; i += 4) {
		all_differ &= differ(row->file[i], file) & differ(row->file[i + 1], file) &
			      differ(row->file[i + 2], file) & differ(row->file[i + 3], file);
	}
	if (!(all_differ >> 63))
		return HOLDS;
#ifdef HAVE_task_struct_io_uring
	if (READ(leader, io_uring))
		return HOLDS_MAYBE;
#endif
	return READ(table, max_fds) > DESCRIPTORS ? HOLDS_MAYBE : HOLDS_NOT;
}

#endif
