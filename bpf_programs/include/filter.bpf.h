/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Filters of processes and network namespaces. netbpf/run/filters.py turns options into the FILTER_*
 * expressions (validated numbers only); without its option an expression is absent and costs nothing.
 */
#ifndef NETBPF_FILTER_BPF_H
#define NETBPF_FILTER_BPF_H

#include "netbpf.bpf.h"

KERNEL_FIELDS(task_struct, flags, tgid, comm, cred, group_leader, cgroups)
KERNEL_FIELDS(cred, uid.val)
KERNEL_FIELDS(css_set, dfl_cgrp)
KERNEL_FIELDS(cgroup, kn, level)
/* Ids until 7f203bc89eb6 ("cgroup: Replace cgroup->ancestor_ids[] with ->ancestors[]", 6.1). */
KERNEL_OPTIONAL(cgroup, ancestor_ids, ancestors)
KERNEL_FIELDS(kernfs_node, id)

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */
#define CGROUP_DEPTH 32 /* levels that are searched for a cgroup whose level is not known */

/* A process, not one of its threads: its name is that of the thread group's leader. */
struct process {
	u64 cgroup; /* id in the version 2 hierarchy: the inode number of its directory */
	u32 pid;
	u32 uid;
	char comm[TASK_COMM_LEN];
};

/* Read what the process filters compare. */
static inline void read_identity(struct process *process, struct task_struct *task)
{
	struct task_struct *leader = READ(task, group_leader);
	struct cred *cred = READ(task, cred);

	process->pid = READ(task, tgid);
	process->uid = READ(cred, uid.val);
	READ_INTO(process->comm, leader, comm);
}

static inline void read_cgroup(struct process *process, struct task_struct *task)
{
	struct css_set *set = READ(task, cgroups);
	struct cgroup *cgroup = READ(set, dfl_cgrp);
	struct kernfs_node *node = READ(cgroup, kn);

	process->cgroup = READ(node, id);
}

static inline void read_process(struct process *process, struct task_struct *task)
{
	read_identity(process, task);
	read_cgroup(process, task);
}

/* The id of the ancestor at a level; the cgroup itself is at its own level. */
static inline u64 cgroup_at(struct cgroup *cgroup, u64 level)
{
	u64 found = 0;
#ifdef HAVE_cgroup_ancestors
	bpf_probe_read_kernel(&found, sizeof(found), FIELD_AT(cgroup, ancestors) + level * 8);
	struct cgroup *ancestor = (void *)found;
	struct kernfs_node *node = READ(ancestor, kn);

	return READ(node, id);
#else
	bpf_probe_read_kernel(&found, sizeof(found), FIELD_AT(cgroup, ancestor_ids) + level * 8);
	return found;
#endif
}

/* Is the task in the cgroup `id` or below it? */
static inline bool in_cgroup(struct task_struct *task, u64 id)
{
	struct css_set *set = READ(task, cgroups);
	struct cgroup *cgroup = READ(set, dfl_cgrp);
	u64 level = READ(cgroup, level);

#ifdef FILTER_CGROUP_AT
	/* One comparison per cgroup of the filter, at the level of that cgroup. */
#define IS_ANCESTOR(at, one) (level >= (at) && cgroup_at(cgroup, at) == (one))
	return FILTER_CGROUP_AT(IS_ANCESTOR);
#else
	for (u64 i = 0; i < CGROUP_DEPTH && i <= level; i++) {
		u64 ancestor = cgroup_at(cgroup, i);

#ifdef FILTER_CGROUPS
		if (FILTER_CGROUPS(ancestor))
			return true;
#endif
		if (ancestor == id)
			return true;
	}
	return false;
#endif
}

#ifdef FILTER_COMM_LENGTH
/* Bit k of `of[c]`: the k-th token of the pattern matches the character c. Filled by the reader. */
struct comm_tokens {
	u32 of[256];
};
BPF_ARRAY(comm_tokens, struct comm_tokens, 1);

/* Bit k of `matched` says that the first k tokens of the pattern match up to here. */
static inline bool pass_comm(const char *comm)
{
	int zero = 0;
	struct comm_tokens *tokens = comm_tokens.lookup(&zero);
	u32 matched = 1, stars = FILTER_COMM_STARS;

	if (!tokens)
		return false;
	for (int i = 0; i < TASK_COMM_LEN; i++) {
		u8 c = comm[i];

		if (!c)
			break;
		matched = (matched & tokens->of[c]) << 1 | (matched & stars);
	}
	return matched >> FILTER_COMM_LENGTH & 1;
}
#endif

/* Does the process pass the filters? */
static inline bool pass_process(const struct process *process, struct task_struct *task)
{
#ifdef FILTER_PID
	if (!FILTER_PID(process->pid))
		return false;
#endif
#ifdef FILTER_UID
	if (!FILTER_UID(process->uid))
		return false;
#endif
#ifdef FILTER_COMM_LENGTH
	if (!pass_comm(process->comm))
		return false;
#endif
#ifdef FILTER_CGROUP
	if (!in_cgroup(task, FILTER_CGROUP))
		return false;
#endif
	return true;
}

#if defined(FILTER_PID) || defined(FILTER_UID) || defined(FILTER_COMM_LENGTH) ||                   \
	defined(FILTER_CGROUP)
#define FILTER_PROCESS 1
#endif

static inline bool pass_current(void)
{
#ifdef FILTER_PROCESS
	struct task_struct *task = (struct task_struct *)bpf_get_current_task();
	struct process process = {};

	read_identity(&process, task);
	return pass_process(&process, task);
#else
	return true;
#endif
}

static inline bool pass_netns(u32 netns)
{
#ifdef FILTER_NETNS
	return netns == FILTER_NETNS;
#else
	return true;
#endif
}

#endif
