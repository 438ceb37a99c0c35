/* SPDX-License-Identifier: GPL-2.0-only */
/* What a BPF iterator over the open files of all tasks is given. */
#ifndef NETBPF_TASK_FILE_BPF_H
#define NETBPF_TASK_FILE_BPF_H

/* bpf_iter__task_file: fixed order; the verifier knows the types, `fd` is a number. */
struct iterator_meta {
	void *seq;
	u64 session_id; /* another one each time that the iterator is run */
};
struct task_file_context {
	struct iterator_meta *meta;
	struct task_struct *task;
	u64 fd;
	struct file *file;
};

#endif
