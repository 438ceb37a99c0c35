/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who owns a socket, and how that is known: records an owner, and finds it again, even if a child
 * process inherited the socket. owners.bpf.h has the probes that prove owners.
 *
 * With OWNERS_SHARED, the map is that of owners.bpf.c, which records and removes owners for several
 * tools: this program only looks them up.
 */
#ifndef NETBPF_OWNER_MAP_BPF_H
#define NETBPF_OWNER_MAP_BPF_H

#include "holding.bpf.h"
#include "sock.bpf.h"
#include "unfollowed.bpf.h"

#if defined(OWNERS_OF_ALL) || defined(OWNERS_SHARED)
#define WITH_INODE 1
#endif

struct owner {
	struct process process;
	u64 leader; /* the process's leading task: an address to compare and read, it may be freed */
	s32 fd; /* a guess: the descriptor under which the process held the socket */
	u8 how;
	u8 pass; /* did the process filters let it through? */
	u8 pad[2];
#ifdef WITH_INODE
	u64 inode; /* of a socket whose end no probe shows, see is_owned_still() */
#endif
};
/* By the address of struct sock: in use as long as the socket is, removed by forget_owner(). */
BPF_HASH(owners, u64, struct owner, MAP_ENTRIES);

KERNEL_FIELDS(sock, sk_protocol)
KERNEL_FIELDS(task_struct, tgid, children.next, children.prev, sibling.next, sibling.prev)

#ifdef WITH_INODE
KERNEL_FIELDS(inode, i_ino)

/* The number of the socket's inode, which is never reused; 0 for TCP, whose end a probe shows. */
static inline u64 inode_of_socket(struct sock *sk)
{
	struct inode *inode;
	struct file *file;

	if (READ(sk, sk_protocol) == IPPROTO_TCP)
		return 0;
	file = file_of_sock(sk);
	inode = READ(file, f_inode);
	return READ(inode, i_ino);
}

/* Is the socket still the one whose owner was recorded, or a new one at the same address? */
static inline bool is_owned_still(struct sock *sk, struct owner *owner)
{
	return owner->inode == inode_of_socket(sk);
}
/* The key of a loss, if the map is full: the address of a socket without a visible end is reused. */
#define COUNTED_BY(key, owner) ((owner)->inode ?: (key))
#else
#define COUNTED_BY(key, owner) (key)
static inline bool is_owned_still(struct sock *sk, struct owner *owner)
{
	return true;
}
#endif

static inline void forget_owner(struct sock *sk)
{
	u64 key = (u64)sk;

#ifndef OWNERS_SHARED
	owners.delete(&key);
#endif
	forget_unfollowed(key);
}

/* Record who owns a socket, unless filters exclude the process or the socket. */
static inline void set_owner(struct sock *sk, struct owner *owner)
{
	u64 key = (u64)sk;

#ifdef ON_OWNER /* defined by a program before it includes owners.bpf.h: called for each proof */
	ON_OWNER(sk, owner->pass);
#endif
#ifdef OWNERS_SHARED
	return;
#endif
#ifdef FILTER_PROCESS
	if (!owner->pass) {
		owners.delete(&key);
		return;
	}
#endif
	if (!may_pass_socket(sk))
		return;
#ifdef WITH_INODE
	owner->inode = inode_of_socket(sk);
#endif
	if (owners.update(&key, owner))
		count_unfollowed(COUNTED_BY(key, owner));
}

/*
 * Fill in an owner: `how` is the kind of proof that `task` owns a socket. Of a process that filters
 * exclude, only what they compare is read.
 */
static inline void owner_from_task(struct owner *owner, struct task_struct *task, int how)
{
	/* A kernel thread closes for others (delayed fput) or for the kernel itself. */
	if (READ(task, flags) & PF_KTHREAD)
		return;
	owner->leader = (u64)READ(task, group_leader);
	owner->how = how;
	owner->pass = false;
#ifdef FILTER_PID
	owner->process.pid = READ(task, tgid);
	if (!FILTER_PID(owner->process.pid))
		return;
#endif
	read_identity(&owner->process, task);
	owner->pass = pass_process(&owner->process, task);
#ifdef FILTER_PROCESS
	if (!owner->pass)
		return;
#endif
	read_cgroup(&owner->process, task);
}

static inline void owner_from_current(struct owner *owner)
{
	owner_from_task(owner, (struct task_struct *)bpf_get_current_task(), OWNER_EXACT);
}

#define CHILDREN 16 /* of a process that are looked at */

/*
 * The recorded owner has closed the socket: a server that forks a process for each connection closes
 * its own copy. Has one of its children inherited it?
 */
static inline bool find_heir(struct owner *owner, struct file *file)
{
	struct task_struct *parent = (struct task_struct *)owner->leader;
	const void *node = READ(parent, children.prev);
	u64 heir = 0;

	/* After the eldest child comes the list's head, where no process is read. */
#pragma nounroll
	for (int i = 0; i < CHILDREN; i++) {
		struct task_struct *child =
			(void *)node - (u64)FIELD_AT((struct task_struct *)0, sibling);
		u64 inherited = has_inherited(child, owner->fd, file);

		heir = (heir & ~inherited) | ((u64)child & inherited);
		node = READ(child, sibling.prev);
	}
	if (!heir || READ((struct task_struct *)heir, tgid) <= 0)
		return false;
	owner_from_task(owner, (struct task_struct *)heir, OWNER_EXACT);
	return true;
}

/* The owner as it was recorded. */
static inline bool recorded_owner(struct sock *sk, struct owner *to)
{
	u64 key = (u64)sk;
	struct owner *known = owners.lookup(&key);

	if (!known || !is_owned_still(sk, known))
		return false;
	*to = *known;
	return true;
}

static inline bool has_record(struct sock *sk)
{
	u64 key = (u64)sk;

	return owners.lookup(&key);
}

/*
 * Find the process that has the socket now, or had it last. Returns false if the recorded process has
 * closed its descriptor or has ended, and none of its children has the socket open.
 */
static inline bool find_owner(struct sock *sk, struct owner *to)
{
	struct file *file = file_of_sock(sk);
	struct task_struct *leader;
	u64 key = (u64)sk;

	if (!recorded_owner(sk, to))
		return false;
	if (!file)
		return true;
	leader = (struct task_struct *)to->leader;
	if (READ(leader, tgid) == to->process.pid) {
		if (holds_file(leader, file, to->fd))
			return true;
		if (find_heir(to, file)) {
			owners.update(&key, to); /* replaces an entry: there is room */
			return true;
		}
		if (may_hold_more(leader))
			return true;
	}
	__builtin_memset(to, 0, sizeof(*to));
	return false;
}

/* Fill in the columns of the owner; `by` is a struct owner. */
#define SET_OWNER(to, by)                                                                          \
	({                                                                                         \
		(to)->pid = (by)->process.pid;                                                     \
		(to)->uid = (by)->how ? (by)->process.uid : ~0U;                                   \
		(to)->cgroup = (by)->process.cgroup;                                               \
		(to)->owner = (by)->how;                                                           \
		__builtin_memcpy((to)->comm, (by)->process.comm, sizeof((to)->comm));              \
	})

/* Does the owner pass the filters? A process filter never matches an unknown owner. */
static inline bool pass_owner(const struct owner *owner)
{
#ifdef FILTER_PROCESS
	return owner->pass;
#else
	return true;
#endif
}

#endif
