/* SPDX-License-Identifier: GPL-2.0-only */
/* Who sends on sockets that can send ICMP, and whether such a socket is closed. */
#ifndef NETBPF_PINGERS_BPF_H
#define NETBPF_PINGERS_BPF_H

#include "filter.bpf.h"
#include "iterators.bpf.h"

KERNEL_FIELDS(sock, sk_socket)
KERNEL_FIELDS(socket, file, sk)
KERNEL_FIELDS(file, f_inode)
KERNEL_FIELDS(inode, i_ino)

#define IPPROTO_RAW 255 /* of sockets whose programs write IP headers */

struct pinger {
	struct process process;
	u64 inode; /* as in struct request */
	u64 pass; /* did the process filters let it through? */
};
/* By the address of struct sock: who sent on it last. Removed when the socket is closed. */
BPF_HASH(pingers, u64, struct pinger, MAP_ENTRIES);

/* The number of the inode of a socket's file, 0 after it is closed. */
static inline u64 inode_of(struct sock *sk)
{
	struct socket *socket = READ(sk, sk_socket);
	struct file *file = socket ? READ(socket, file) : NULL;
	struct inode *inode = file ? READ(file, f_inode) : NULL;

	return inode ? READ(inode, i_ino) : 0;
}

/* Is the socket gone that had this inode? One without a file is the kernel's own. */
static inline bool is_closed(u64 sk, u64 inode)
{
	return inode && inode_of((struct sock *)sk) != inode;
}

/* The current task sends on a socket. */
static inline void note_owner(struct sock *sk)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct pinger pinger = {.inode = inode_of(sk)};
	u64 key = (u64)sk;

	if (READ(task, flags) & PF_KTHREAD)
		return;
	read_process(&pinger.process, task);
	pinger.pass = pass_process(&pinger.process, task);
	if (pingers.update(&key, &pinger))
		count_loss(LOSS_MAP_FULL);
}

/* The socket of a pinger may be closed, which no probe shows. */
static inline int on_forget(struct map_element_context *ctx, u64 *at)
{
	u64 key = *at;
	struct pinger *pinger = pingers.lookup(&key);

	if (pinger && is_closed(key, pinger->inode))
		pingers.delete(&key);
	return 0;
}

#endif
