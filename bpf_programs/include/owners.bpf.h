/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Who owns a socket, and how that is known. An owner is recorded only in a context that proves it:
 * connect, accept or close by the process itself, or the file table of a process at the start. The
 * task that happens to run when a packet arrives is never taken for the owner.
 *
 * A program that defines OWNERS_OF_ALL learns those of UDP and raw sockets from the snapshot, too.
 *
 * A program that includes this gets the probes `accept` and `accept4` (a passive socket gets its
 * owner), `snapshot` (sockets that existed at start) and, unless it has a probe `state` of its own that
 * calls owner_on_state() and forget_owner(), `owner_state`; see OWNER_PROBES in declare/owners.py.
 */
#ifndef NETBPF_OWNERS_BPF_H
#define NETBPF_OWNERS_BPF_H

#include "holding.bpf.h"
#include "mptcp.bpf.h"
#include "iterators.bpf.h"
#include "unfollowed.bpf.h"

struct owner {
	struct process process;
	u64 leader; /* the process's leading task: an address to compare and read, it may be freed */
	s32 fd; /* a guess: the descriptor under which the process held the socket */
	u8 how;
	u8 pass; /* did the process filters let it through? */
	u8 pad[2];
#ifdef OWNERS_OF_ALL
	u64 inode; /* of a socket that nobody tells us the end of, see is_owned_still() */
#endif
};
/* By the address of struct sock: in use as long as the socket is, removed by forget_owner(). */
BPF_HASH(owners, u64, struct owner, MAP_ENTRIES);

KERNEL_FIELDS(files_struct, next_fd)
KERNEL_FIELDS(task_struct, tgid, children.next, children.prev, sibling.next, sibling.prev)

#ifdef OWNERS_OF_ALL
KERNEL_FIELDS(inode, i_ino)

/* The number of the socket's inode, which no other one gets; 0 for TCP, whose end we see. */
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

/* Is the socket the one whose owner was learnt, and not another one in its place? */
static inline bool is_owned_still(struct sock *sk, struct owner *owner)
{
	return owner->inode == inode_of_socket(sk);
}
/* What it is counted by if it finds no room: another one gets its address, and shows no end. */
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

	owners.delete(&key);
	forget_unfollowed(key);
}

/* Record who owns a socket, unless filters exclude the process or the socket. */
static inline void set_owner(struct sock *sk, struct owner *owner)
{
	u64 key = (u64)sk;

#ifdef ON_OWNER /* a program's own, before owners.bpf.h: what each proof of an owner shows */
	ON_OWNER(sk, owner->pass);
#endif
#ifdef FILTER_PROCESS
	if (!owner->pass) {
		owners.delete(&key);
		return;
	}
#endif
	if (!may_pass_socket(sk))
		return;
#ifdef OWNERS_OF_ALL
	owner->inode = inode_of_socket(sk);
#endif
	if (owners.update(&key, owner))
		count_unfollowed(COUNTED_BY(key, owner));
}

/* `task` proved by `how` that it owns a socket. */
static inline void own(struct owner *owner, struct task_struct *task, int how)
{
	/* A kernel thread closes for others (delayed fput) or for the kernel itself. */
	if (READ(task, flags) & PF_KTHREAD)
		return;
	read_process(&owner->process, task);
	owner->leader = (u64)READ(task, group_leader);
	owner->how = how;
	owner->pass = pass_process(&owner->process, task);
}

static inline void own_current(struct owner *owner)
{
	own(owner, (struct task_struct *)bpf_get_current_task(), OWNER_EXACT);
}

#define CHILDREN 16 /* of a process that are looked at */

/*
 * The owner that was recorded has the socket no more: a server that forks a process for each
 * connection closes its own copy. Is it with one of its children?
 */
static inline bool find_heir(struct owner *owner, struct file *file)
{
	struct task_struct *parent = (struct task_struct *)owner->leader, *heir = NULL;
	const void *node = READ(parent, children.prev);

	/* Behind the eldest comes the list's head: what is read there is no process. */
#pragma nounroll
	for (int i = 0; i < CHILDREN; i++) {
		struct task_struct *child =
			(void *)node - (u64)FIELD_AT((struct task_struct *)0, sibling);

		heir = has_inherited(child, owner->fd, file) ? child : heir;
		node = READ(child, sibling.prev);
	}
	if (!heir || READ(heir, tgid) <= 0)
		return false;
	own(owner, heir, OWNER_EXACT);
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

/*
 * Who has the socket now, or had it last: false if the process that was recorded has closed its
 * descriptor, or has ended, and none of its children holds the socket either.
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
		enum holding holding = holds_file(leader, file, to->fd);

		if (holding == HOLDS)
			return true;
		if (find_heir(to, file)) {
			owners.update(&key, to); /* in its place: there is room */
			return true;
		}
		if (holding == HOLDS_MAYBE)
			return true;
	}
	__builtin_memset(to, 0, sizeof(*to));
	return false;
}

/* Fill in the columns that say whose an event is; `by` is a struct owner. */
#define SET_OWNER(to, by)                                                                          \
	({                                                                                         \
		(to)->pid = (by)->process.pid;                                                     \
		(to)->uid = (by)->how ? (by)->process.uid : ~0U;                                   \
		(to)->cgroup = (by)->process.cgroup;                                               \
		(to)->owner = (by)->how;                                                           \
		__builtin_memcpy((to)->comm, (by)->process.comm, sizeof((to)->comm));              \
	})

/* Would the owner be shown? With a process filter an unknown owner is nobody's match. */
static inline bool pass_owner(const struct owner *owner)
{
#ifdef FILTER_PROCESS
	return owner->pass;
#else
	return true;
#endif
}

/* The TCP socket (with OWNERS_OF_ALL any IP socket) that this one is, or that carries it, or NULL. */
static inline struct sock *ip_sock(struct sock *sk)
{
	u16 family;

	if (sk)
		sk = carrier_of(sk);
	if (!sk)
		return NULL;
#ifndef OWNERS_OF_ALL
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return NULL;
#endif
	family = READ(sk, __sk_common.skc_family);
	return family == AF_INET || family == AF_INET6 ? sk : NULL;
}

/* The same behind an open file. */
static inline struct sock *sock_of_file(struct file *file)
{
	return ip_sock(socket_of_file(file));
}

/* A TCP socket in CLOSE may go without another change of state: nobody would forget its owner. */
static inline bool is_closed(struct sock *sk)
{
	return READ(sk, sk_protocol) == IPPROTO_TCP && READ(sk, __sk_common.skc_state) == TCP_CLOSE;
}

/* The descriptor that the current process has just reserved: see alloc_fd() in fs/file.c. */
static inline s32 newest_fd(void)
{
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct files_struct *files = READ(task, files);

	return READ(files, next_fd) - 1;
}

/* The current process has got a socket, as descriptor `fd` if that is known, else 0. */
static inline int own_new_sock(struct sock *sk, s32 fd)
{
	struct owner owner = {.fd = fd};

	if (!sk || is_closed(sk))
		return 0;
	own_current(&owner);
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}

/*
 * What a change of a TCP state proves: SYN_SENT comes from connect(), LISTEN from listen(), a FIN of
 * ours from close() or shutdown(). The caller forgets the owner at CLOSE, when it needs it no more.
 */
static inline void owner_on_state(struct sock *sk, int newstate)
{
	struct owner owner = {};

	if (newstate != TCP_SYN_SENT && newstate != TCP_FIN_WAIT1 && newstate != TCP_LAST_ACK &&
	    newstate != TCP_LISTEN)
		return;
	own_current(&owner);
	if (owner.how)
		set_owner(sk, &owner);
}

/*
 * For programs that do not follow the states themselves. A new child of a listener (LISTEN to
 * SYN_RECV) may stand where another socket was, and has no owner until it is accepted.
 */
static inline int on_owner_state(struct sock *sk, int oldstate, int newstate)
{
	if (READ(sk, sk_protocol) != IPPROTO_TCP)
		return 0;
	owner_on_state(sk, newstate);
	/* At ESTABLISHED the local port is known, which connect() chooses after SYN_SENT. */
	if (newstate == TCP_CLOSE || oldstate == TCP_LISTEN ||
	    (newstate == TCP_ESTABLISHED && !may_pass_socket(sk)))
		forget_owner(sk);
	return 0;
}

/* Who sends owns. */
static inline int on_owner_send(struct sock *sk)
{
	struct owner owner = {};

#ifdef FILTER_PID
	if (!FILTER_PID(current_pid()))
		return 0;
#endif
	sk = ip_sock(sk);
	if (!sk || (recorded_owner(sk, &owner) && owner.process.pid == current_pid()))
		return 0;
	return own_new_sock(sk, 0);
}

/* inet_csk_accept() returns the new socket. */
static inline int on_accept(struct sock *sk)
{
	return own_new_sock(sk, newest_fd());
}

/* accept() ties a new socket to its descriptor, whenever the call began. */
static inline int on_graft(struct sock *sk)
{
	return own_new_sock(ip_sock(sk), newest_fd());
}

/* The system call accept() returns. */
static inline int on_accept_exit(int fd)
{
	return own_new_sock(ip_sock(socket_of_fd(fd)), fd);
}

/* Each open socket, once per process that has it open. */
static inline int on_snapshot(struct task_file_context *ctx, struct task_struct *task,
			      struct sock *sk)
{
	struct owner owner = {};

	if (is_closed(sk) || find_owner(sk, &owner)) /* recorded, and still true */
		return 0;
#ifdef SNAPSHOT_STATES /* a program may care for some states only: bits 1 << TCP_* */
	if (!(SNAPSHOT_STATES >> READ(sk, __sk_common.skc_state) & 1))
		return 0;
#endif
	own(&owner, task, OWNER_SNAPSHOT);
	owner.fd = ctx->fd;
	if (owner.how)
		set_owner(sk, &owner);
	return 0;
}

#endif
