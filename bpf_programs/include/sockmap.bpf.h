/* SPDX-License-Identifier: GPL-2.0-only */
/* The probe `sockmap`: sessions that a process puts into a sockmap. */
#ifndef NETBPF_SOCKMAP_BPF_H
#define NETBPF_SOCKMAP_BPF_H

#include "files.bpf.h"
#include "sessions.bpf.h"

KERNEL_FIELDS(bpf_map, map_type)

/* The ABI's numbers: linux/bpf.h. */
enum { MAP_UPDATE = 2, TYPE_SOCKMAP = 15, TYPE_SOCKHASH = 18 };

/* bpf(2) begins. What BPF programs put into a sockmap is seen by is_in_sockmap() only. */
static inline int on_sockmap(int cmd, const void *uattr)
{
	struct {
		u32 map, pad;
		u64 key, value;
	} update = {};
	struct session_state *session;
	struct file *file;
	struct sock *sk;
	int fd = -1;
	u32 type;

	if (cmd != MAP_UPDATE)
		return 0;
	bpf_probe_read_user(&update, sizeof(update), uattr);
	file = file_of_fd(update.map);
	if (!file)
		return 0;
	type = READ((struct bpf_map *)READ(file, private_data), map_type);
	if (type != TYPE_SOCKMAP && type != TYPE_SOCKHASH)
		return 0;
	bpf_probe_read_user(&fd, sizeof(fd), (void *)update.value);
	sk = ip_sock(socket_of_fd(fd));
	session = sk && pass_ends(sk) ? session_of(sk) : NULL;
	if (session)
		session->bypassed = 1;
	return 0;
}

#endif
