/* SPDX-License-Identifier: GPL-2.0-only */
/* From a descriptor or an open file to the socket behind it. */
#ifndef NETBPF_FILES_BPF_H
#define NETBPF_FILES_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(task_struct, files)
KERNEL_FIELDS(files_struct, fdt)
KERNEL_FIELDS(fdtable, max_fds, fd)
KERNEL_FIELDS(file, private_data, f_inode)
KERNEL_FIELDS(inode, i_mode)
KERNEL_FIELDS(socket, sk)

#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* The open file behind descriptor `fd` of the current task, or NULL. */
static inline struct file *file_of_fd(int fd)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = READ(task, files);
	struct fdtable *table = READ(files, fdt);
	struct file *file = NULL;

	if (fd < 0 || (u32)fd >= READ(table, max_fds))
		return NULL;
	bpf_probe_read_kernel(&file, sizeof(file), (void **)READ(table, fd) + fd);
	return file;
}

/* The socket of any family behind an open file, or NULL if it is something else. */
static inline struct sock *socket_of_file(struct file *file)
{
	struct inode *inode = READ(file, f_inode);
	struct socket *socket = READ(file, private_data);

	return (READ(inode, i_mode) & S_IFMT) == S_IFSOCK ? READ(socket, sk) : NULL;
}

/* The socket of any family behind descriptor `fd` of the current task, or NULL. */
static inline struct sock *socket_of_fd(int fd)
{
	struct file *file = file_of_fd(fd);

	return file ? socket_of_file(file) : NULL;
}

#endif
