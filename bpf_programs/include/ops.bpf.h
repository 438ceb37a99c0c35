/* SPDX-License-Identifier: GPL-2.0-only */
/* What programs do with sockets. */
#ifndef NETBPF_OPS_BPF_H
#define NETBPF_OPS_BPF_H

/* Numbers of a column `op`: see netbpf/declare/calls.py. */
enum op { SOCKET, SOCKETPAIR, BIND, LISTEN, CONNECT, ACCEPT, SEND, RECV, CLOSE };

#endif
