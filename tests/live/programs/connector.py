"""A client and a server that do what they are told: see tests/live/ends.py.

usage: connector.py COMM TIMEOUT

Each line on stdin is a JSON object {"do": COMMAND, ...}, each is answered by one line of JSON on
stdout, with "error" in it if the command itself failed. Times are CLOCK_MONOTONIC seconds. No
socket is touched but those that a command tells. It ends when stdin does.
"""

import ctypes
import errno
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
import time

PR_SET_NAME = 15
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6, "unix": socket.AF_UNIX}
KINDS = {
    "stream": socket.SOCK_STREAM,
    "dgram": socket.SOCK_DGRAM,
    "seqpacket": socket.SOCK_SEQPACKET,
}
LIBC = ctypes.CDLL(None, use_errno=True)
sockets = {}


def name_of(family, addr, port):
    """Return a name as Python takes it; @ stands for the NUL of an abstract unix name."""
    if family == "unix":
        return "\0" + addr[1:] if addr.startswith("@") else addr
    return (addr, port)


def packed(family, addr, port):
    """Return a struct sockaddr."""
    if family == "ipv6":
        return struct.pack("=H2s4x16s4x", 10, struct.pack("!H", port), inet(family, addr))
    return struct.pack("=H2s4s8x", 2, struct.pack("!H", port), inet(family, addr))


def inet(family, addr):
    return socket.inet_pton(FAMILIES[family], addr)


def do_hello():
    return {"pid": os.getpid()}


def do_open(id, family, kind="stream", bind=None, wait=True, user_timeout=0):
    sock = sockets[id] = socket.socket(FAMILIES[family], KINDS[kind])
    if bind:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name_of(family, *bind))
    if user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout)
    sock.setblocking(wait)
    return {}


def do_connect(id, family, addr, port=0):
    sock = sockets[id]
    begin = time.monotonic()
    error = sock.connect_ex(name_of(family, addr, port))
    end = time.monotonic()
    local = sock.getsockname()
    local = local[:2] if family != "unix" else [None, None]
    return {"errno": word(error), "begin": begin, "end": end, "local": local}


def do_finish(id):
    """Wait until a non-blocking connect is over."""
    sock = sockets[id]
    poller = select.poll()
    poller.register(sock, select.POLLOUT)
    if not poller.poll(TIMEOUT * 1000):
        raise TimeoutError("the connection did not come to an end")
    end = time.monotonic()
    error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    return {"errno": word(error), "end": end, "local": sock.getsockname()[:2]}


def do_raw(id, family, addr, port, length, fd=None, interrupt=0.0):
    """Call connect(2) itself, with an address length or descriptor of choice.

    With `interrupt`, a signal comes after so many seconds whose handler lets the call go on.
    """
    if interrupt:
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.siginterrupt(signal.SIGALRM, False)
        signal.setitimer(signal.ITIMER_REAL, interrupt)
    begin = time.monotonic()
    result = LIBC.connect(
        sockets[id].fileno() if fd is None else fd, packed(family, addr, port), length
    )
    error = ctypes.get_errno() if result < 0 else 0
    return {"errno": word(error), "begin": begin, "end": time.monotonic()}


def do_burst(family, addr, port, number, threads):
    """Connect so many times in each of so many threads, every other time without waiting."""
    found, barrier = [], threading.Barrier(threads)

    def work():
        barrier.wait()
        for i in range(number):
            sock = socket.socket(FAMILIES[family])
            sock.setblocking(i % 2 == 0)
            error = sock.connect_ex((addr, port))
            if error == errno.EINPROGRESS:
                poller = select.poll()
                poller.register(sock, select.POLLOUT)
                poller.poll(TIMEOUT * 1000)
                error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            found.append([sock.getsockname()[1], word(error), i % 2 == 1])
            # A reset, so that no port stays in use.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            sock.close()

    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"found": found}


def do_listen(id, family, addr, port=0, kind="stream", backlog=128, dual=True):
    sock = sockets[id] = socket.socket(FAMILIES[family], KINDS[kind])
    if family == "ipv6":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind(name_of(family, addr, port))
    if backlog >= 0:
        sock.listen(backlog)
    return {"port": sock.getsockname()[1] if family != "unix" else 0}


def do_accept(id, listener, four=False, null=True, limit=False, wait=True):
    """Call accept(2) or accept4(2), with no room for an address if `null`.

    With `limit`, this process may have no more descriptors than it has.
    """
    sock = sockets[listener]
    sock.setblocking(wait)
    room, size = ctypes.create_string_buffer(128), ctypes.c_int(128)
    where = (None, None) if null else (room, ctypes.byref(size))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit:
        highest = max(map(int, os.listdir("/proc/self/fd")))
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest, limits[1]))
    begin = time.monotonic()
    fd = LIBC.accept4(sock.fileno(), *where, 0) if four else LIBC.accept(sock.fileno(), *where)
    error = ctypes.get_errno() if fd < 0 else 0
    end = time.monotonic()
    resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    if fd < 0:
        return {"errno": word(error), "begin": begin, "end": end}
    accepted = sockets[id] = socket.socket(fileno=fd)
    ends = {}
    if accepted.family != socket.AF_UNIX:
        ends = {"local": accepted.getsockname()[:2], "remote": accepted.getpeername()[:2]}
    return {"errno": "", "fd": fd, "begin": begin, "end": end, **ends}


def do_accept_many(listener, number, threads=1):
    """Accept so many connections in each thread and close each; return descriptors and ports."""
    found = []

    def work():
        for _ in range(number):
            sock, remote = sockets[listener].accept()
            found.append([sock.fileno(), remote[1]])
            sock.close()

    workers = [threading.Thread(target=work, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return {"found": found}


def do_close(id):
    sockets.pop(id).close()
    return {}


def word(error):
    return errno.errorcode.get(error, str(error)) if error else ""


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then ends it
    LIBC.prctl(PR_SET_NAME, sys.argv[1].encode())
    for line in sys.stdin:
        order = json.loads(line)
        command = globals()["do_" + order.pop("do")]
        try:
            answer = command(**order)
        except Exception as error:
            answer = {"error": f"{command.__name__}: {type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


TIMEOUT = float(sys.argv[2])
main()
