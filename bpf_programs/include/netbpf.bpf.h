/* SPDX-License-Identifier: GPL-2.0-only */
/* What every program needs: reading kernel memory, emitting events, counting losses. */
#ifndef NETBPF_BPF_H
#define NETBPF_BPF_H

/* As in the kernel: bcc loads programs without calls between functions. */
#define inline inline __attribute__((always_inline))

/*
 * What a program reads of the kernel. They expand to nothing here: netbpf/bpf/layout.py collects
 * them and generates the structs, with only these fields, in netbpf/kernel.h.
 */
#define KERNEL_FIELDS(...)
#define KERNEL_OPTIONAL(...)
#define KERNEL_ENUM(...)
#define KERNEL_OPTIONAL_ENUM(...)

#include <netbpf/kernel.h>

/*
 * Read a field of a kernel object. One macro for all, as bcc's rewriter follows only some pointers;
 * and it takes the field's type and place from a null pointer, as the rewriter changes every
 * dereference of a pointer that it does follow, also in typeof() and sizeof().
 */
#define FIELD_OF(from, field) (((typeof(from))0)->field)
#define FIELD_AT(from, field) ((const void *)(from) + (u64)&FIELD_OF(from, field))
#define READ(from, field)                                                                          \
	({                                                                                         \
		typeof(FIELD_OF(from, field)) value_;                                              \
		bpf_probe_read_kernel(&value_, sizeof(value_), FIELD_AT(from, field));             \
		value_;                                                                            \
	})
#define READ_INTO(to, from, field)                                                                 \
	bpf_probe_read_kernel(to, sizeof(FIELD_OF(from, field)), FIELD_AT(from, field))

/*
 * A load-time constant by its index, two hexadecimal digits. The compiler does not see the value:
 * netbpf/bpf/constants.py recognises the load by its upper half ("nbpf") and patches it.
 */
#define LOAD_CONSTANT(index)                                                                       \
	({                                                                                         \
		u64 number_;                                                                       \
		asm("%0 = 0x6e627066000000" #index " ll" : "=r"(number_));                         \
		number_;                                                                           \
	})

/* An argument of a raw tracepoint, by name, at the place that it has on this kernel. */
#define RAWTP_ARG(probe, name) ((ctx)->args[ARG_##probe##_##name])

#define UNKNOWN (~0ULL) /* a time or a number of bytes: U64_MAX in netbpf/declare/columns.py */

/* Everything that can be lost, counted per CPU: netbpf/declare/losses.py lists the causes. */
#define DUPLICATE_MISSES LOSS_CAUSES /* no loss: runs that had nothing to add, see inflight.bpf.h */
BPF_PERCPU_ARRAY(losses, u64, LOSS_CAUSES + 1);

static inline void count_loss(int cause)
{
	u64 *count = losses.lookup(&cause);

	if (count)
		*count += 1;
}

/*
 * Entries of an LRU map that must keep the `needed` newest. The kernel hands each CPU 128 free ones at
 * a time and takes them for new entries, the newest included, as long as others lie idle on another
 * CPU (bpf_lru_pop_free): what all CPUs may hold back comes on top. Only for entries that lose their
 * meaning without a sign; whatever has an end is in a plain hash, where what finds no room counts.
 */
#define LRU_ENTRIES(needed) ((needed) + 256 * CPUS)

#ifdef RING_PAGES
BPF_RINGBUF_OUTPUT(events, RING_PAGES);

/* Send an event to the reader; count it as lost, and return false, if the ring is full. */
static inline bool emit(void *event, u64 size)
{
	if (!events.ringbuf_output(event, size, 0))
		return true;
	count_loss(LOSS_RING_FULL);
	return false;
}
#endif

#ifdef TOTALS
/* Sums for the summary: the columns of the record Totals of the tool. */
BPF_PERCPU_ARRAY(totals, u64, TOTALS);

static inline void add_total(int which, u64 more)
{
	u64 *total = totals.lookup(&which);

	if (total)
		*total += more;
}
#endif

/*
 * Many ways lead here, and the verifier would follow each of them to the end: with them it forgets
 * what it found out of an object on the stack, which stays as it is.
 */
static inline void merge_ways(void *object, u32 size)
{
	bpf_probe_read_kernel(object, size, object);
}

static inline u32 current_pid(void)
{
	return bpf_get_current_pid_tgid() >> 32;
}

static inline u16 swap16(u16 value)
{
	return value << 8 | value >> 8;
}

#endif
