/* SPDX-License-Identifier: GPL-2.0-only */
/* Contexts of BPF iterators: over open files of all tasks, tasks, elements of a map, and sockets. */
#ifndef NETBPF_ITERATORS_BPF_H
#define NETBPF_ITERATORS_BPF_H

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
/* bpf_iter__task */
struct task_context {
	struct iterator_meta *meta;
	struct task_struct *task;
};
/* bpf_iter__bpf_map_elem: once more at the end, without key and value. */
struct map_element_context {
	struct iterator_meta *meta;
	void *map;
	void *key;
	void *value;
};
/* bpf_iter__tcp: listeners first, then all others. */
struct tcp_context {
	struct iterator_meta *meta;
	struct sock *sk;
};

#endif
