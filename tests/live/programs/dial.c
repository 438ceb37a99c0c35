/*
 * Connect to 127.0.0.1 by known functions: dial PORT TIMES HOW [DEPTH | late]
 *   one:  main, outer, dial
 *   two:  TIMES calls by outer, and twice as many by other
 *   deep: as one, below DEPTH calls of dig, each with 256 bytes of its own
 *   jit:  as one, through code that this program makes and lists in /tmp/perf-PID.map
 * With `late`, wait for a byte of the standard input before. Then wait for its end.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define APART __attribute__((noinline, noclone, optimize("no-optimize-sibling-calls")))

static int port, sum;

APART int dial(void)
{
	struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
	int fd = socket(AF_INET, SOCK_STREAM, 0);

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	sum += connect(fd, (struct sockaddr *)&to, sizeof(to));
	return close(fd);
}

APART int outer(void)
{
	return dial() + 1;
}

APART int other(void)
{
	return dial() + 2;
}

APART int dig(int depth)
{
	volatile char own[256];

	memset((char *)own, depth, sizeof(own));
	return (depth ? dig(depth - 1) : outer()) + own[depth % 256];
}

/* push rbp; mov rbp, rsp; call rdi; pop rbp; ret */
static const unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0xff, 0xd7, 0x5d, 0xc3};

APART int compiled(void)
{
	void *made = mmap(0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1, 0);
	char path[64];
	FILE *list;

	memcpy(made, code, sizeof(code));
	snprintf(path, sizeof(path), "/tmp/perf-%d.map", getpid());
	list = fopen(path, "w");
	if (list) { /* else it is somebody else's */
		fprintf(list, "%lx %zx js:made_by_test\n", (unsigned long)made, sizeof(code));
		fclose(list);
	}
	return ((int (*)(int (*)(void)))made)(outer) + 1;
}

int main(int argc, char **argv)
{
	int times = atoi(argv[2]);

	port = atoi(argv[1]);
	if (argc > 4 && !strcmp(argv[4], "late"))
		sum += read(0, argv[0], 1);
	for (int i = 0; i < times; i++) {
		if (!strcmp(argv[3], "deep"))
			sum += dig(atoi(argv[4]));
		else if (!strcmp(argv[3], "jit"))
			sum += compiled();
		else
			sum += outer();
		if (!strcmp(argv[3], "two"))
			sum += other() + other();
	}
	while (read(0, argv[0], 1) > 0)
		;
	return sum == 12345;
}
