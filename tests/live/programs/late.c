/* Preloaded: libc is asked for names only after a while, as on a machine that is very busy. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <unistd.h>

#define WHILE_US 60000

int getaddrinfo(const char *host, const char *service, const struct addrinfo *hints,
		struct addrinfo **found)
{
	int (*next)(const char *, const char *, const struct addrinfo *, struct addrinfo **);

	next = dlsym(RTLD_NEXT, "getaddrinfo");
	usleep(WHILE_US);
	return next(host, service, hints, found);
}

int getnameinfo(const struct sockaddr *addr, socklen_t size, char *host, socklen_t host_size,
		char *service, socklen_t service_size, int flags)
{
	int (*next)(const struct sockaddr *, socklen_t, char *, socklen_t, char *, socklen_t, int);

	next = dlsym(RTLD_NEXT, "getnameinfo");
	usleep(WHILE_US);
	return next(addr, size, host, host_size, service, service_size, flags);
}
