/* Look up one name with the libc function that argv names, and say as JSON what came of it.
 *
 * Usage: resolve [--wait] [--count N] FUNCTION HOST [SERVICE]
 * HOST "-" is NULL. --wait: print "ready", then wait for a line on stdin.
 * Prints: {"function","host","code","h_errno","errno","latency_ns","delay_ns","pid"}; code is what is
 * returned by getaddrinfo and the _r functions, and for the others 0 on success, -1 on failure.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static char buffer[8192];
static int herr;

static int by_getaddrinfo(const char *host, const char *service)
{
	struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};
	struct addrinfo *found = NULL;
	int code = getaddrinfo(host, service, &hints, &found);

	if (!code)
		freeaddrinfo(found);
	return code;
}

static int by_gethostbyaddr(const char *host, int reentrant)
{
	struct hostent entry, *found = NULL;
	unsigned char address[16];
	int family = strchr(host, ':') ? AF_INET6 : AF_INET;
	socklen_t size = family == AF_INET ? 4 : 16;

	if (inet_pton(family, host, address) != 1)
		return -2;
	if (reentrant)
		return gethostbyaddr_r(address, size, family, &entry, buffer, sizeof(buffer),
				       &found, &herr);
	found = gethostbyaddr(address, size, family);
	herr = h_errno;
	return found ? 0 : -1;
}

static int by_name(const char *function, const char *host)
{
	struct hostent entry, *found = NULL;

	if (!strcmp(function, "gethostbyname_r"))
		return gethostbyname_r(host, &entry, buffer, sizeof(buffer), &found, &herr);
	if (!strcmp(function, "gethostbyname2_r"))
		return gethostbyname2_r(host, AF_INET, &entry, buffer, sizeof(buffer), &found,
					&herr);
	if (!strcmp(function, "gethostbyname"))
		found = gethostbyname(host);
	else if (!strcmp(function, "gethostbyname2"))
		found = gethostbyname2(host, AF_INET);
	else
		exit(2);
	herr = h_errno;
	return found ? 0 : -1;
}

static int look_up(const char *function, const char *host, const char *service)
{
	if (!strcmp(function, "getaddrinfo"))
		return by_getaddrinfo(host, service);
	if (!strcmp(function, "gethostbyaddr"))
		return by_gethostbyaddr(host, 0);
	if (!strcmp(function, "gethostbyaddr_r"))
		return by_gethostbyaddr(host, 1);
	return by_name(function, host);
}

/* How long this thread has waited for a CPU while it could have run (ns): no part of a call. */
static long long run_delay(void)
{
	long long ran, waited = 0;
	FILE *file = fopen("/proc/thread-self/schedstat", "r");

	if (file && fscanf(file, "%lld %lld", &ran, &waited) != 2)
		waited = 0;
	if (file)
		fclose(file);
	return waited;
}

static void once(const char *function, const char *host, const char *service)
{
	struct timespec start, end;
	long long delay;
	int code, error;

	herr = 0;
	delay = run_delay();
	clock_gettime(CLOCK_MONOTONIC, &start);
	code = look_up(function, host, service);
	error = errno;
	clock_gettime(CLOCK_MONOTONIC, &end);
	delay = run_delay() - delay;
	printf("{\"function\":\"%s\",\"host\":\"%s\",\"code\":%d,\"h_errno\":%d,\"errno\":%d,"
	       "\"latency_ns\":%lld,\"delay_ns\":%lld,\"pid\":%d}\n",
	       function, host ? host : "", code, herr, code ? error : 0,
	       (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec,
	       delay, (int)getpid());
	fflush(stdout);
}

int main(int argc, char **argv)
{
	int count = 1;
	char line[64];

	for (; argc > 1 && !strncmp(argv[1], "--", 2); argc--, argv++) {
		if (!strcmp(argv[1], "--wait")) {
			puts("ready");
			fflush(stdout);
			if (!fgets(line, sizeof(line), stdin))
				return 1;
		} else if (!strcmp(argv[1], "--count") && argc > 2) {
			count = atoi(argv[2]);
			argc--, argv++;
		}
	}
	if (argc < 3) {
		fputs("usage: resolve [--wait] [--count N] FUNCTION HOST [SERVICE]\n", stderr);
		return 2;
	}
	while (count-- > 0)
		once(argv[1], strcmp(argv[2], "-") ? argv[2] : NULL, argc > 3 ? argv[3] : NULL);
	return 0;
}
