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
TCP_FASTOPEN_CONNECT = 30
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
    if family == "unix":
        return struct.pack("=H", 1) + addr.encode() + b"\0"
    if family == "ipv6":
        return struct.pack("=H2s4x16s4x", 10, struct.pack("!H", port), inet(family, addr))
    return struct.pack("=H2s4s8x", 2, struct.pack("!H", port), inet(family, addr))


def inet(family, addr):
    return socket.inet_pton(FAMILIES[family], addr)


def do_hello():
    return {"pid": os.getpid()}


def do_open(id, family, kind="stream", bind=None, wait=True, user_timeout=0, fastopen=False):
    sock = sockets[id] = socket.socket(FAMILIES[family], KINDS[kind])
    if bind:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(name_of(family, *bind))
    if user_timeout:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout)
    if fastopen:
        sock.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
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


def do_raw(id, family, addr, port, length, fd=None, interrupt=0.0, restart=True):
    """Call connect(2) itself, with an address length or descriptor of choice.

    With `interrupt`, a signal comes after so many seconds; its handler lets the call go on, or not.
    """
    if interrupt:
        alarm(interrupt, restart)
    begin = time.monotonic()
    result = LIBC.connect(
        sockets[id].fileno() if fd is None else fd, packed(family, addr, port), length
    )
    error = ctypes.get_errno() if result < 0 else 0
    return {"errno": word(error), "begin": begin, "end": time.monotonic()}


def do_dissolve(id, length=16):
    """Call connect(2) with AF_UNSPEC."""
    result = LIBC.connect(sockets[id].fileno(), bytes(16), length)
    return {"errno": word(ctypes.get_errno() if result < 0 else 0)}


def do_unreadable(id):
    """Call connect(2) with an address that is in no memory of ours."""
    result = LIBC.connect(sockets[id].fileno(), ctypes.c_void_p(8), 16)
    return {"errno": word(ctypes.get_errno() if result < 0 else 0)}


def do_send(id, number, addr=None, port=0, answer=True):
    """Send so many bytes, to an address with MSG_FASTOPEN, and wait for an answer."""
    sock = sockets[id]
    begin = time.monotonic()
    if addr:
        sock.sendto(b"q" * number, socket.MSG_FASTOPEN, (addr, port))
    else:
        sock.sendall(b"q" * number)
    sent = time.monotonic()
    if answer:
        sock.recv(1)
    local = sock.getsockname()[:2]
    return {"begin": begin, "sent": sent, "end": time.monotonic(), "local": local}


def do_reply(id):
    """Read what has come, and answer."""
    got = len(sockets[id].recv(1 << 16))
    sockets[id].sendall(b"a")
    return {"got": got}


def do_forbid(calls):
    """Have seccomp refuse system calls, by number, with EPERM; no way back."""
    steps = [(0x20, 0, 0, 0)]  # load the number
    for call in calls:
        steps += [(0x15, 0, 1, call), (0x06, 0, 0, 0x00050000 | errno.EPERM)]
    steps.append((0x06, 0, 0, 0x7FFF0000))
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    filters = struct.pack("HxxxxxxP", len(steps), ctypes.addressof(code))
    assert LIBC.prctl(38, 1, 0, 0, 0) == 0  # PR_SET_NO_NEW_PRIVS
    assert LIBC.prctl(22, 2, filters, 0, 0) == 0  # PR_SET_SECCOMP
    return {}


def do_waits(family, addr, threads):
    """Connect in so many threads that go on waiting; return when they have begun."""
    begun = []

    def work():
        sock = socket.socket(FAMILIES[family])
        begun.append(time.monotonic())
        sock.connect(name_of(family, addr, 0))

    for _ in range(threads):
        threading.Thread(target=work, daemon=True).start()
    while len(begun) < threads:
        time.sleep(0.01)
    return {"begun": begun}


def do_crowd(number, family, addr, port):
    """Begin so many attempts and keep their sockets."""
    for i in range(number):
        sock = sockets[f"crowd {i}"] = socket.socket(FAMILIES[family])
        sock.setblocking(False)
        sock.connect_ex((addr, port))
    return {}


def alarm(seconds, restart):
    """Have a signal interrupt what goes on after so many seconds."""
    signal.signal(signal.SIGALRM, lambda *_: None)
    signal.siginterrupt(signal.SIGALRM, not restart)
    signal.setitimer(signal.ITIMER_REAL, seconds)


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


def do_listen(id, family, addr, port=0, kind="stream", backlog=128, dual=True, fastopen=0):
    sock = sockets[id] = socket.socket(FAMILIES[family], KINDS[kind])
    if family == "ipv6":
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
    sock.bind(name_of(family, addr, port))
    if fastopen:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, fastopen)
    if backlog >= 0:
        sock.listen(backlog)
    return {"port": sock.getsockname()[1] if family != "unix" else 0}


def do_accept(
    id, listener, four=False, null=True, limit=False, wait=True, interrupt=0.0, restart=True
):
    """Call accept(2) or accept4(2), with no room for an address if `null`.

    With `limit`, this process may have no more descriptors than it has; `interrupt` as in do_raw.
    """
    if interrupt:
        alarm(interrupt, restart)
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


def do_accept_fd(fd):
    """Call accept(2) on any descriptor."""
    result = LIBC.accept(fd, None, None)
    return {"errno": word(ctypes.get_errno() if result < 0 else 0)}


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
