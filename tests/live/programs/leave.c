/* Leave a name lookup that is never answered, in the way that argv names, and print when as JSON.
 *
 * Usage: leave WAY [MS]: leave it MS milliseconds (300) after its begin. Begins at a line on stdin.
 * Prints {"pid","tid","begin","left"}, CLOCK_MONOTONIC in ns. The ways are at the end of this file.
 */
#define _GNU_SOURCE
#include <netdb.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

static int after_ms = 300;
static sigjmp_buf out;
static char *own;

static long long now(void)
{
	struct timespec time;

	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static long long begin;

static void say(void)
{
	printf("{\"pid\":%d,\"tid\":%d,\"begin\":%lld,\"left\":%lld}\n", getpid(),
	       (int)syscall(SYS_gettid), begin, now());
	fflush(stdout);
}

static int ask(const char *name)
{
	struct addrinfo *found;

	begin = now();
	return getaddrinfo(name, NULL, NULL, &found);
}

static void *ask_in_thread(void *unused)
{
	ask("never.test");
	return unused;
}

static void handle(int number, void (*handler)(int), int flags)
{
	struct sigaction action = {.sa_handler = handler, .sa_flags = flags};

	sigaction(number, &action, NULL);
}

static void alarm_ms(int first, int again)
{
	struct itimerval timer = {{again / 1000, again % 1000 * 1000},
				  {first / 1000, first % 1000 * 1000}};

	setitimer(ITIMER_REAL, &timer, NULL);
}

static void jump(int number)
{
	say();
	siglongjmp(out, number);
}

static void become(int number)
{
	(void)number;
	say();
	execl(own, "other-name", "sleep", "400", (char *)NULL);
	_exit(1);
}

static void nothing(int number)
{
	(void)number;
}

static void look_up(int number)
{
	struct addrinfo *found;

	(void)number;
	getaddrinfo("127.0.0.7", NULL, NULL, &found);
}

static void fork_here(int number)
{
	(void)number;
	if (!fork())
		_exit(0);
}

static void jump_out(int sleep_ms)
{
	handle(SIGALRM, jump, 0);
	if (!sigsetjmp(out, 1)) {
		alarm_ms(after_ms, 0);
		ask("never.test");
	}
	usleep(sleep_ms * 1000);
}

/* What a program does that goes on: it uses the stack where the lookup was. */
static __attribute__((noinline)) void work(int sleep_ms)
{
	char used[1 << 16];

	memset(used, 0x55, sizeof(used));
	__asm__ volatile("" : : "r"(used) : "memory");
	usleep(sleep_ms * 1000);
}

static pthread_t start(void *(*function)(void *))
{
	pthread_t thread;

	pthread_create(&thread, NULL, function, NULL);
	return thread;
}

static void *become_in_thread(void *unused)
{
	usleep(after_ms * 1000);
	become(0);
	return unused;
}

static ucontext_t main_context, coroutine;

static void ask_in_coroutine(void)
{
	ask("127.0.0.8");
}

static void switch_back(int number)
{
	(void)number;
	if (!sigsetjmp(out, 1))
		swapcontext(&main_context, &coroutine);
}

static char *high; /* 1 MiB of the first thread's stack, above that of all others */

static void *ask_below_handler(void *unused)
{
	stack_t stack = {.ss_sp = high, .ss_size = 1 << 20};

	sigaltstack(&stack, NULL);
	handle(SIGALRM, look_up, SA_ONSTACK | SA_RESTART);
	alarm_ms(100, 0);
	ask("slow-400.test");
	say();
	return unused;
}

static void *ask_below_coroutine(void *unused)
{
	coroutine.uc_link = &main_context;
	getcontext(&coroutine);
	coroutine.uc_stack.ss_size = 1 << 20;
	coroutine.uc_stack.ss_sp = high;
	makecontext(&coroutine, ask_in_coroutine, 0);
	handle(SIGALRM, switch_back, SA_RESTART);
	alarm_ms(100, 0);
	ask("slow-400.test");
	say();
	return unused;
}

static void clean_up(int *unused)
{
	(void)unused;
	say();
}

/* As a destructor of C++: who unwinds the stack must find this function in it. */
static void *ask_with_cleanup(void *unused)
{
	__attribute__((cleanup(clean_up))) int it = 0;

	ask("never.test");
	return unused;
}

/* Run a thread that takes the alarms, with a higher stack at hand. */
static void run_below(void *(*function)(void *))
{
	char space[1 << 20];
	sigset_t alarms;
	pthread_t thread;

	high = space;
	thread = start(function);
	sigemptyset(&alarms);
	sigaddset(&alarms, SIGALRM);
	pthread_sigmask(SIG_BLOCK, &alarms, NULL);
	pthread_join(thread, NULL);
}

int main(int argc, char **argv)
{
	const char *way = argc > 1 ? argv[1] : "";
	char line[64];

	own = argv[0];
	if (argc > 2)
		after_ms = atoi(argv[2]);
	if (!strcmp(way, "sleep")) {
		usleep(after_ms * 1000);
		return 0;
	}
	puts("ready");
	fflush(stdout);
	if (!fgets(line, sizeof(line), stdin))
		return 1;
	if (!strcmp(way, "jump-and-ask")) { /* a jump, and another lookup at the same place */
		jump_out(0);
		ask("one.test");
	} else if (!strcmp(way, "jump-and-sleep")) { /* a jump, and no lookup for a long time */
		jump_out(0);
		work(2000);
	} else if (!strcmp(way, "jump-and-end")) {
		jump_out(200);
	} else if (!strcmp(way, "exec")) {
		handle(SIGALRM, become, 0);
		alarm_ms(after_ms, 0);
		ask("never.test");
	} else if (!strcmp(way, "exec-in-thread")) { /* while the first thread looks up */
		start(become_in_thread);
		ask("never.test");
	} else if (!strcmp(way, "exec-by-asker")) { /* the asking thread gets another number */
		handle(SIGALRM, become, 0);
		sigset_t alarms;

		pthread_t thread = start(ask_in_thread);

		sigemptyset(&alarms);
		sigaddset(&alarms, SIGALRM);
		pthread_sigmask(SIG_BLOCK, &alarms, NULL);
		alarm_ms(after_ms, 0);
		pthread_join(thread, NULL);
	} else if (!strcmp(way, "cancel")) {
		pthread_t thread = start(ask_in_thread);

		usleep(after_ms * 1000);
		pthread_cancel(thread);
		pthread_join(thread, NULL);
		say();
		usleep(300000);
	} else if (!strcmp(way, "cancel-cleanup")) {
		pthread_t thread = start(ask_with_cleanup);

		usleep(after_ms * 1000);
		pthread_cancel(thread);
		pthread_join(thread, NULL);
	} else if (!strcmp(way, "exit")) { /* of the process, while a thread looks up */
		start(ask_in_thread);
		usleep(after_ms * 1000);
		say();
		exit(0);
	} else if (!strcmp(way, "profiled")) { /* signals that do not leave it, and then a kill */
		handle(SIGALRM, nothing, SA_RESTART);
		alarm_ms(50, 50);
		begin = now();
		say();
		ask("never.test");
	} else if (!strcmp(way, "other-stack")) { /* a handler on a stack below looks up, too */
		stack_t stack = {.ss_size = 1 << 20};

		stack.ss_sp = mmap((void *)0x10000000, stack.ss_size, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		sigaltstack(&stack, NULL);
		handle(SIGALRM, look_up, SA_ONSTACK | SA_RESTART);
		alarm_ms(100, 0);
		ask("slow-400.test");
		say();
	} else if (!strcmp(way, "coroutine")) { /* the same, but the kernel knows no such stack */
		coroutine.uc_link = &main_context;
		getcontext(&coroutine);
		coroutine.uc_stack.ss_size = 1 << 20;
		coroutine.uc_stack.ss_sp = mmap((void *)0x10000000, 1 << 20, PROT_READ | PROT_WRITE,
						MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		makecontext(&coroutine, ask_in_coroutine, 0);
		handle(SIGALRM, switch_back, SA_RESTART);
		alarm_ms(100, 0);
		ask("slow-400.test");
		say();
	} else if (!strcmp(way, "higher-stack")) { /* a handler on a stack above looks up, too */
		run_below(ask_below_handler);
	} else if (!strcmp(way, "higher-coroutine")) {
		run_below(ask_below_coroutine);
	} else if (!strcmp(way, "fork")) { /* a child that begins and ends in the middle */
		handle(SIGALRM, fork_here, SA_RESTART);
		alarm_ms(100, 0);
		ask("slow-400.test");
		say();
	} else if (!strcmp(way, "vfork")) { /* a child with this memory that looks up nothing */
		if (!vfork())
			execl(own, own, "sleep", "1", (char *)NULL);
		ask("slow-400.test");
		say();
	}
	return 0;
}
