"""Makes known socket calls and tells which: see tests/live/calls.py.

usage: socket_calls.py COMM TIMEOUT [UID]

Each line on stdin is "SCENE TIMES [WORD ...]"; each is answered by one line of JSON on stdout:
{"rows": [[op, proto, error, calls, bytes], ...], "sizes": [[op, proto, size, messages], ...]}, or
{"error": ...}; the size of a message that the scene only peeked at is null. Only scenes use
sockets: stdin and stdout are pipes. The program ends at the end of stdin.
"""

import contextlib
import ctypes
import errno
import functools
import json
import mmap
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from socket import (
    AF_INET,
    AF_INET6,
    AF_NETLINK,
    AF_PACKET,
    AF_UNIX,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSG_PEEK,
    MSG_WAITALL,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_RAW,
    SOCK_SEQPACKET,
    SOCK_STREAM,
)

PR_SET_NAME = 15
SIZES = (1, 7, 512, 1448, 4099, 0)
LIBC = ctypes.CDLL(None, use_errno=True)


class Book:
    """What was called, and what came of it."""

    def __init__(self):
        self.calls = Counter()
        self.bytes = Counter()
        self.sizes = Counter()

    def did(self, op, proto, function, *args, peek=False):
        """Make a call and write it down; an error is the answer None."""
        try:
            result, error = function(*args), ""
        except OSError as caught:
            result, error = None, errno.errorcode[caught.errno]
        moved = length(result) if op in ("send", "recv") and not peek else 0
        self.note(op, proto, error, moved, peek=peek)
        return result

    def note(self, op, proto, error="", moved=0, calls=1, peek=False):
        """Write down what was done: `calls` calls, which moved `moved` bytes each."""
        self.calls[op, proto, error] += calls
        self.bytes[op, proto, error] += calls * moved
        if op in ("send", "recv") and not error:
            self.sizes[op, proto, None if peek else moved] += calls

    def rows(self):
        """Return [op, proto, error, calls, bytes] of everything."""
        return [[*what, calls, self.bytes[what]] for what, calls in self.calls.items()]

    def answer(self):
        """Return all of it, for calls.py."""
        sizes = [[*what, messages] for what, messages in self.sizes.items()]
        return {"rows": self.rows(), "sizes": sizes}


def length(result):
    """Return how many bytes the result of a call to send or receive stands for."""
    if result is None or isinstance(result, int):
        return result or 0
    return len(result[0] if isinstance(result, tuple) else result)


# --- TCP -----------------------------------------------------------------------------------------


def listener(book, family, addr, proto, kind=SOCK_STREAM):
    sock = book.did("socket", proto, socket.socket, family, kind)
    book.did("bind", proto, sock.bind, addr)
    book.did("listen", proto, sock.listen, 5)
    return sock


def tcp(book, family, host, proto, before=None):
    """A session; `before` is the protocol as long as there is no address."""
    before = before or proto
    server = listener(book, family, ("::" if before != proto else host, 0), before)
    client = book.did("socket", before, socket.socket, family, SOCK_STREAM)
    book.did("connect", proto, client.connect, (host, server.getsockname()[1]))
    conn, _ = book.did("accept", proto, server.accept)
    talk(book, proto, client, conn)
    book.did("close", proto, client.close)
    book.did("recv", proto, conn.recv, 100)  # the end of file
    book.did("close", proto, conn.close)
    book.did("close", before, server.close)


def talk(book, proto, one, other):
    """Every way to send a message and to receive one."""
    send = (
        one.send,
        lambda data: os.write(one.fileno(), data),
        lambda data: os.writev(one.fileno(), [data[:1], data[1:]]),
        lambda data: one.sendmsg([data[:2], data[2:]]),
    )
    recv = (
        lambda size: other.recv(size, MSG_WAITALL),
        lambda size: os.read(other.fileno(), size),
        lambda size: os.readv(other.fileno(), [bytearray(size)]),
        lambda size: other.recvmsg(size),
        lambda size: other.recvfrom(size, MSG_WAITALL),
        lambda size: other.recv_into(bytearray(size), size, MSG_WAITALL),
    )
    for i, size in enumerate(size for size in SIZES if size):
        book.did("send", proto, send[i % len(send)], bytes(size))
        book.did("recv", proto, other.recv, size, MSG_PEEK, peek=True)
        book.did("recv", proto, recv[i % len(recv)], size)
    book.did("send", proto, send[0], b"again")
    book.did("recv", proto, recv[5], 5)
    book.did("recv", proto, other.recv, 100, MSG_DONTWAIT)  # would have to wait


def tcp4(book):
    tcp(book, AF_INET, "127.0.0.1", "tcp4")


def tcp6(book):
    tcp(book, AF_INET6, "::1", "tcp6")


def mapped(book):
    tcp(book, AF_INET6, "::ffff:127.0.0.1", "tcp4", before="tcp6")


# --- datagrams -----------------------------------------------------------------------------------


class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("len", ctypes.c_size_t))


class Header(ctypes.Structure):
    """struct msghdr."""

    _fields_ = (
        ("name", ctypes.c_void_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.POINTER(Iovec)),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Message(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = (("header", Header), ("len", ctypes.c_uint32))


def messages(sizes):
    """Return mmsghdrs with buffers of these sizes."""
    vector = (Message * len(sizes))()
    for message, size in zip(vector, sizes):
        buffer = ctypes.create_string_buffer(max(size, 1))
        iov = Iovec(ctypes.cast(buffer, ctypes.c_void_p), size)
        iov.keep = buffer
        message.header.iov, message.header.iovlen = ctypes.pointer(iov), 1
    return vector


def datagrams(book, family, host, proto):
    one = book.did("socket", proto, socket.socket, family, SOCK_DGRAM)
    two = book.did("socket", proto, socket.socket, family, SOCK_DGRAM)
    book.did("bind", proto, two.bind, (host, 0))
    addr = two.getsockname()
    for size in SIZES:
        book.did("send", proto, one.sendto, bytes(size), addr)
        book.did("recv", proto, two.recvfrom, 8192, MSG_PEEK, peek=True)
        book.did("recv", proto, two.recvfrom, 8192)
    book.did("connect", proto, one.connect, addr)
    talk(book, proto, one, two)
    many(book, proto, one, two)
    book.did("close", proto, two.close)
    refused(book, family, proto, one)
    book.did("close", proto, one.close)


def refused(book, family, proto, one):
    """What comes back from a port where nobody listens any more is no message that came."""
    level, option = (socket.IPPROTO_IPV6, 25) if family == AF_INET6 else (socket.IPPROTO_IP, 11)
    one.setsockopt(level, option, 1)  # IPV6_RECVERR, IP_RECVERR: linux/in6.h, linux/in.h
    book.did("send", proto, one.send, b"lost")
    book.did("recv", proto, one.recv, 100, socket.MSG_ERRQUEUE, peek=True)


def many(book, proto, one, two):
    """sendmmsg and recvmmsg, the latter with more room than there are messages."""
    sizes = [*SIZES, 99]
    sent = LIBC.sendmmsg(one.fileno(), messages(sizes), len(sizes), 0)
    for size in sizes[:sent]:
        book.note("send", proto, moved=size)
    vector = messages([8192] * (len(sizes) + 3))
    taken = LIBC.recvmmsg(two.fileno(), vector, len(vector), MSG_DONTWAIT, None)
    assert taken == sent == len(sizes), (taken, sent)
    for message in vector[:taken]:
        book.note("recv", proto, moved=message.len)
    book.note("recv", proto, "EAGAIN")  # the attempt after the last message


def udp4(book):
    datagrams(book, AF_INET, "127.0.0.1", "udp4")


def udp6(book):
    datagrams(book, AF_INET6, "::1", "udp6")


# --- unix, netlink, others -----------------------------------------------------------------------


def unix(book):
    for kind in (SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET):
        one, two = book.did("socketpair", "unix", socket.socketpair, AF_UNIX, kind)
        talk(book, "unix", one, two)
        book.did("close", "unix", one.close)
        book.did("close", "unix", two.close)
    addr = f"\0netbpf-{os.getpid()}"
    server = listener(book, AF_UNIX, addr, "unix")
    client = book.did("socket", "unix", socket.socket, AF_UNIX, SOCK_STREAM)
    book.did("connect", "unix", client.connect, addr)
    conn, _ = book.did("accept", "unix", server.accept)
    talk(book, "unix", conn, client)
    for sock in (server, client, conn):
        book.did("close", "unix", sock.close)


def netlink(book):
    sock = book.did("socket", "netlink", socket.socket, AF_NETLINK, SOCK_RAW, 0)
    book.did("bind", "netlink", sock.bind, (0, 0))
    # NLMSG_NOOP with NLM_F_REQUEST and NLM_F_ACK: the answer is an acknowledgement.
    book.did("send", "netlink", sock.send, struct.pack("=IHHII", 16, 1, 5, 1, 0))
    book.did("recv", "netlink", sock.recv, 4096)
    book.did("recv", "netlink", sock.recv, 4096, MSG_DONTWAIT)
    book.did("close", "netlink", sock.close)


def other(book):
    # Not TCP: a raw socket that sees its segments.
    for args in ((AF_PACKET, SOCK_DGRAM, 0), (AF_INET, SOCK_RAW, socket.IPPROTO_TCP)):
        sock = book.did("socket", "other", socket.socket, *args)
        book.did("recv", "other", sock.recv, 100, MSG_DONTWAIT)
        book.did("close", "other", sock.close)


# --- errors --------------------------------------------------------------------------------------


def errors(book):
    """Calls that fail, each in its own way."""
    connecting(book)
    sending(book)
    asking(book)


def connecting(book):
    server = listener(book, AF_INET, ("127.0.0.1", 0), "tcp4")
    port = server.getsockname()[1]
    sock = book.did("socket", "tcp4", socket.socket, AF_INET, SOCK_STREAM)
    book.did("bind", "tcp4", sock.bind, ("127.0.0.1", port))  # EADDRINUSE
    book.did("bind", "tcp4", sock.bind, ("127.0.0.1", 0))
    book.did("connect", "tcp4", sock.connect, sock.getsockname()[:1] + (9,))  # ECONNREFUSED
    book.did("close", "tcp4", sock.close)
    server.setblocking(False)
    book.did("accept", "tcp4", server.accept)  # EAGAIN
    async_client = book.did("socket", "tcp4", socket.socket, AF_INET, SOCK_STREAM | SOCK_NONBLOCK)
    book.did("connect", "tcp4", async_client.connect, ("127.0.0.1", port))  # EINPROGRESS
    server.setblocking(True)
    conn, _ = book.did("accept", "tcp4", server.accept)
    book.did("close", "tcp4", conn.close)
    book.did("close", "tcp4", async_client.close)
    book.did("close", "tcp4", server.close)
    sock = book.did("socket", "unix", socket.socket, AF_UNIX, SOCK_STREAM)
    book.did("connect", "unix", sock.connect, "\0netbpf-nobody")  # ECONNREFUSED
    book.did("connect", "unix", sock.connect, "/nowhere/netbpf")  # ENOENT
    book.did("close", "unix", sock.close)


def sending(book):
    sock = book.did("socket", "tcp6", socket.socket, AF_INET6, SOCK_STREAM)
    book.did("recv", "tcp6", sock.recv, 100)  # ENOTCONN
    book.did("send", "tcp6", sock.send, b"abc", MSG_NOSIGNAL)  # EPIPE
    book.did("close", "tcp6", sock.close)
    sock = book.did("socket", "udp4", socket.socket, AF_INET, SOCK_DGRAM)
    book.did("send", "udp4", sock.send, b"abc")  # EDESTADDRREQ
    book.did("send", "udp4", sock.sendto, bytes(65508), ("127.0.0.1", 9))  # EMSGSIZE
    book.did("listen", "udp4", sock.listen)  # EOPNOTSUPP
    book.did("close", "udp4", sock.close)
    one, two = book.did("socketpair", "unix", socket.socketpair)
    book.did("close", "unix", two.close)
    book.did("send", "unix", one.send, b"abc", MSG_NOSIGNAL)  # EPIPE
    book.did("close", "unix", one.close)


def asking(book):
    reader, writer = os.pipe()
    for fd in (reader, 1 << 20):  # ENOTSOCK, EBADF
        for op, call in (("bind", LIBC.bind), ("connect", LIBC.connect)):
            book.did(op, "other", check, call, fd, None, 0)
        book.did("listen", "other", check, LIBC.listen, fd, 1)
        book.did("accept", "other", check, LIBC.accept, fd, None, None)
        book.did("accept", "other", check, LIBC.accept4, fd, None, None, 0)
    os.close(reader)  # no socket: no close
    os.close(writer)
    book.did("socket", "other", socket.socket, 99, SOCK_STREAM)  # EAFNOSUPPORT
    book.did("socket", "other", socket.socket, AF_INET, SOCK_STREAM, socket.IPPROTO_UDP)
    pair = (ctypes.c_int * 2)()
    book.did("socketpair", "tcp4", check, LIBC.socketpair, AF_INET, SOCK_STREAM, 0, pair)


def failures(book):
    """Each way in which sessions fail once they are there, and what is in use already."""
    for family, host, proto in ((AF_INET, "127.0.0.1", "tcp4"), (AF_INET6, "::1", "tcp6")):
        server, port = reset(book, family, host, proto)
        stream_errors(book, family, host, proto, port)
        book.did("close", proto, server.close)
    for family, host, proto in ((AF_INET, "127.0.0.1", "udp4"), (AF_INET6, "::1", "udp6")):
        sock = book.did("socket", proto, socket.socket, family, SOCK_DGRAM)
        book.did("bind", proto, sock.bind, (host, 0))
        book.did("connect", proto, sock.connect, sock.getsockname()[:1] + (9,))
        book.did("recv", proto, sock.recv, 9, MSG_DONTWAIT)  # EAGAIN
        book.did("send", proto, sock.send, b"x")
        book.did("recv", proto, sock.recv, 9, MSG_DONTWAIT)  # ECONNREFUSED
        book.did("close", proto, sock.close)
    local_errors(book)


def reset(book, family, host, proto):
    """A session that its peer resets: ECONNRESET, then EPIPE."""
    server = listener(book, family, (host, 0), proto)
    port = server.getsockname()[1]
    client = book.did("socket", proto, socket.socket, family, SOCK_STREAM)
    book.did("connect", proto, client.connect, (host, port))
    conn, _ = book.did("accept", proto, server.accept)
    conn.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    book.did("close", proto, conn.close)
    book.did("recv", proto, client.recv, 9)  # ECONNRESET
    book.did("send", proto, client.send, b"x", MSG_NOSIGNAL)  # EPIPE
    book.did("close", proto, client.close)
    return server, port


def stream_errors(book, family, host, proto, port):
    client = book.did("socket", proto, socket.socket, family, SOCK_STREAM)
    book.did("accept", proto, client.accept)  # EINVAL
    book.did("bind", proto, client.bind, (host, port))  # EADDRINUSE
    nowhere = "192.0.2.99" if family == AF_INET else "2001:db8::99"
    book.did("bind", proto, client.bind, (nowhere, 0))  # EADDRNOTAVAIL
    book.did("connect", proto, client.connect, (host, port))
    book.did("connect", proto, client.connect, (host, port))  # EISCONN
    book.did("recv", proto, client.recv, 9, MSG_DONTWAIT)  # EAGAIN
    while book.did("send", proto, client.send, bytes(1 << 16), MSG_DONTWAIT):
        pass  # until EAGAIN
    book.did("close", proto, client.close)


def local_errors(book):
    one, two = book.did("socketpair", "unix", socket.socketpair)
    book.did("send", "unix", one.send, b"x")
    book.did("close", "unix", two.close)  # with data that was not read
    book.did("recv", "unix", one.recv, 9)  # ECONNRESET
    book.did("close", "unix", one.close)
    one, two = book.did("socketpair", "unix", socket.socketpair, AF_UNIX, SOCK_DGRAM)
    while book.did("send", "unix", one.send, b"x", MSG_DONTWAIT):
        pass  # until EAGAIN
    book.did("close", "unix", one.close)
    book.did("close", "unix", two.close)
    sock = book.did("socket", "netlink", socket.socket, AF_NETLINK, SOCK_RAW, 0)
    book.did("recv", "netlink", sock.recv, 9, MSG_DONTWAIT)  # EAGAIN
    book.did("close", "netlink", sock.close)


def check(function, *args):
    """Call a function of the C library; raise OSError if it fails."""
    result = function(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")
    return result


# --- io_uring ------------------------------------------------------------------------------------


class Ring:
    """Just enough of io_uring(7) to have one request at a time done."""

    SETUP, ENTER, REGISTER = 425, 426, 427
    REGISTER_FILES, REGISTER_PROBE = 2, 8
    MULTISHOT = 1
    OPS = {"accept": 13, "cancel": 14, "connect": 16, "close": 19, "send": 26, "recv": 27,
           "socket": 45, "bind": 56, "listen": 57}  # fmt: skip

    def __init__(self):
        params = bytearray(120)
        self.fd = check(LIBC.syscall, self.SETUP, 8, (ctypes.c_char * 120).from_buffer(params))
        sq = struct.unpack_from("=10I", params, 40)
        cq = struct.unpack_from("=10I", params, 80)
        self.sq_tail, self.sq_mask, self.sq_array = sq[1], sq[2], sq[6]
        self.cq_head, self.cq_mask, self.cqes = cq[0], cq[2], cq[5]
        size = max(sq[6] + 8 * 4, cq[5] + 16 * 16)
        self.rings = mmap.mmap(self.fd, size, mmap.MAP_SHARED)
        self.sqes = mmap.mmap(self.fd, 8 * 64, mmap.MAP_SHARED, offset=0x10000000)
        self.known = self._known()

    def _known(self):
        """Return the names of those of OPS that this kernel has."""
        probe = bytearray(16 + 64 * 8)
        buffer = (ctypes.c_char * len(probe)).from_buffer(probe)
        check(LIBC.syscall, self.REGISTER, self.fd, self.REGISTER_PROBE, buffer, 64)
        # struct io_uring_probe_op: op, -, flags (bit 0: supported), -
        ops = {op for op, _, flags, _ in struct.iter_unpack("=BBHI", probe[16:]) if flags & 1}
        return {name for name, op in self.OPS.items() if op in ops}

    def or_call(self, op, function, *args):
        """Return what submits this request, or makes a system call where io_uring cannot."""
        return self if op in self.known else lambda *_: check(function, *args)

    def __call__(self, op, fd, off=0, addr=0, length=0, flags=0, slot=0):
        """Submit one request, wait for its result and return it; raise OSError if it failed."""
        self.submit(op, fd, off, addr, length, flags, slot)
        return self.result()

    def submit(self, op, fd, off=0, addr=0, length=0, flags=0, slot=0, more=0):
        """Submit one request; `slot` is where a direct descriptor goes, counted from 1."""
        tail = self._get(self.sq_tail)
        index = tail & self._get(self.sq_mask)
        request = (self.OPS[op], 0, more, fd, off, addr, length, flags, self.OPS[op], slot << 32)
        self.sqes[index * 64 : index * 64 + 64] = struct.pack("=BBHiQQIIQQ16x", *request)
        self._set(self.sq_array + 4 * index, index)
        self._set(self.sq_tail, tail + 1)
        check(LIBC.syscall, self.ENTER, self.fd, 1, 0, 0, None, 0)

    def result(self):
        """Wait for a result and return it; raise OSError if it is an error."""
        check(LIBC.syscall, self.ENTER, self.fd, 0, 1, 1, None, 0)
        head = self._get(self.cq_head)
        at = self.cqes + 16 * (head & self._get(self.cq_mask))
        (result,) = struct.unpack_from("=i", self.rings, at + 8)
        self._set(self.cq_head, head + 1)
        if result < 0:
            raise OSError(-result, "")
        return result

    def close(self):
        self.rings.close()
        self.sqes.close()
        os.close(self.fd)

    def _get(self, offset):
        return struct.unpack_from("=I", self.rings, offset)[0]

    def _set(self, offset, value):
        struct.pack_into("=I", self.rings, offset, value & 0xFFFFFFFF)


def new_ring():
    try:
        return Ring()
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS):
            raise RuntimeError("io_uring is not allowed here") from None
        raise


def ring(book):
    """A TCP session, all of it through io_uring, as far as this kernel's goes."""
    call = new_ring()
    here = ctypes.create_string_buffer(struct.pack("=HH4s8x", AF_INET, 0, bytes((127, 0, 0, 1))))
    at = ctypes.addressof
    make = call.or_call("socket", LIBC.socket, AF_INET, SOCK_STREAM, 0)  # since 5.19
    server = book.did("socket", "tcp4", make, "socket", AF_INET, SOCK_STREAM)
    bind = call.or_call("bind", LIBC.bind, server, here, 16)  # since 6.11
    book.did("bind", "tcp4", bind, "bind", server, 16, at(here))
    listen = call.or_call("listen", LIBC.listen, server, 5)
    book.did("listen", "tcp4", listen, "listen", server, 0, 0, 5)
    size = ctypes.c_int(16)
    check(LIBC.getsockname, server, here, ctypes.byref(size))
    client = book.did("socket", "tcp4", make, "socket", AF_INET, SOCK_STREAM)
    book.did("connect", "tcp4", call, "connect", client, 16, at(here))
    conn = book.did("accept", "tcp4", call, "accept", server)
    data = ctypes.create_string_buffer(8192)
    for size in filter(None, SIZES):
        book.did("send", "tcp4", call, "send", client, 0, at(data), size)
        book.did("recv", "tcp4", call, "recv", conn, 0, at(data), size, MSG_PEEK, peek=True)
        book.did("recv", "tcp4", call, "recv", conn, 0, at(data), size)
    for fd in (client, conn, server):
        book.did("close", "tcp4", call, "close", fd)
    make = call.or_call("socket", LIBC.socket, 99, SOCK_STREAM, 0)
    book.did("socket", "other", make, "socket", 99, SOCK_STREAM)  # EAFNOSUPPORT
    call.close()


def ring_accepts(book, family, addr):
    """Accept through io_uring in all its ways; say how, with which descriptor, from which port."""
    call, family = new_ring(), int(family)
    server = socket.socket(family, SOCK_STREAM)
    server.bind((addr, 0) if family == AF_INET else f"\0{addr}")
    server.listen(7)
    clients, accepted = [], []

    def client():
        clients.append(socket.socket(family, SOCK_STREAM))
        clients[-1].connect(server.getsockname())

    def note(how, fd):
        accepted.append([how, fd, clients[-1].getsockname()[1] if family == AF_INET else None])

    client()
    note("once", call("accept", server.fileno()))
    call.submit("accept", server.fileno())  # it has to wait
    client()
    note("later", call.result())
    try:
        call("accept", clients[0].fileno())
    except OSError as error:
        note(errno.errorcode[error.errno], None)
    table = (ctypes.c_int * 2)(-1, -1)
    check(LIBC.syscall, Ring.REGISTER, call.fd, Ring.REGISTER_FILES, table, 2)
    client()
    call("accept", server.fileno(), slot=2)
    note("direct", None)
    call.submit("accept", server.fileno(), more=Ring.MULTISHOT)
    for _ in range(3):
        client()
        note("multishot", call.result())
    call.submit("cancel", -1, addr=call.OPS["accept"])
    for _ in range(2):  # of the accept, which was canceled, and of that
        with contextlib.suppress(OSError):
            call.result()
    for fd in (fd for how, fd, _ in accepted if fd is not None):
        os.close(fd)
    for sock in (*clients, server):
        sock.close()
    call.close()
    print(json.dumps({"accepted": accepted}), flush=True)


# --- special -------------------------------------------------------------------------------------


def sendfile(book):
    """A file to a socket: how many messages that takes is the kernel's choice."""
    with open(os.memfd_create("data"), "wb+") as file:
        file.write(bytes(100003))
        file.flush()
        one, two = socket.socketpair()
        sent = os.sendfile(one.fileno(), file.fileno(), 0, 100003)
        book.note("send", "unix", "", sent)
        one.close()
        two.close()


def sized(book, *sizes):
    """Datagrams of these sizes, then the end of file."""
    one, two = socket.socketpair(AF_UNIX, SOCK_SEQPACKET)
    for size in map(int, sizes):
        book.did("send", "unix", one.send, bytes(size))
        book.did("recv", "unix", two.recv, size + 1)
    one.close()
    book.did("recv", "unix", two.recv, 1)
    two.close()


def session(book, host, port):
    """A TCP session with known ports, for filters: the client's end only is in the book."""
    family = AF_INET6 if ":" in host else AF_INET
    proto = "tcp6" if family == AF_INET6 else "tcp4"
    server = socket.create_server((host, 0), family=family)
    client = socket.socket(family, SOCK_STREAM)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    client.bind((host, int(port)))
    book.did("connect", proto, client.connect, server.getsockname())
    conn, _ = server.accept()
    book.did("send", proto, client.send, bytes(1234))
    conn.recv(4096)
    conn.close()  # first: the client's port is free again at once
    client.recv(1)
    book.note("recv", proto)
    book.did("close", proto, client.close)
    server.close()


def overflow(book):
    """Datagrams that nobody reads: most find no room."""
    two = socket.socket(AF_INET, SOCK_DGRAM)
    two.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    two.bind(("127.0.0.1", 0))
    one = socket.socket(AF_INET, SOCK_DGRAM)
    for _ in range(50):
        book.did("send", "udp4", one.sendto, bytes(1000), two.getsockname())
    one.close()
    two.close()


def blocked(book):
    """Threads that all hang in accept(2) until somebody else connects to the ports told."""
    servers = [listener(book, AF_INET, ("127.0.0.1", 0), "tcp4") for _ in range(3)]
    threads = [threading.Thread(target=server.accept) for server in servers]
    for thread, server in zip(threads, servers):
        thread.start()
        while not hangs(thread, server.fileno()):
            time.sleep(0.001)
    print(json.dumps({"ports": [server.getsockname()[1] for server in servers]}), flush=True)
    for thread in threads:
        thread.join()
    book.note("accept", "tcp4", calls=3)


def interrupted(book, op, kind, times):
    """A call that waits is interrupted by signals with a handler, and then let go.

    Handlers set with SA_RESTART ("restart") let the call go on, without ("fail") it fails each
    time with EINTR and is made again by the program. With "both" the two take turns.
    """
    main = threading.main_thread()
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, lambda *_: None)
        signal.siginterrupt(number, number == signal.SIGUSR2)
    sent = {"restart": (signal.SIGUSR1,), "fail": (signal.SIGUSR2,),
            "both": (signal.SIGUSR1, signal.SIGUSR2)}[kind]  # fmt: skip
    fd, call, let_go, close = WAITING[op](book)

    def disturb():
        for count in range(int(times)):
            while not hangs(main, fd):
                time.sleep(0.001)
            before = switches(main)
            signal.pthread_kill(main.ident, sent[count % len(sent)])
            while switches(main) == before:
                time.sleep(0.001)
        while not hangs(main, fd):
            time.sleep(0.001)
        let_go()

    thread = threading.Thread(target=disturb)
    thread.start()
    while call() is None:
        pass
    thread.join()
    close()


def waiting_recv(book, limit=0):
    one, two = book.did("socketpair", "unix", socket.socketpair)
    one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", limit, 0))
    data = ctypes.create_string_buffer(10)
    call = functools.partial(book.did, "recv", "unix", check, LIBC.recv, one.fileno(), data, 10, 0)
    let_go = functools.partial(book.did, "send", "unix", two.send, b"hello")
    return one.fileno(), call, let_go, functools.partial(close_all, book, "unix", one, two)


def waiting_timed(book):
    """A call with a time limit fails with EINTR whatever the handler's flags: signal(7)."""
    return waiting_recv(book, limit=600)


def waiting_accept(book):
    server = listener(book, AF_INET, ("127.0.0.1", 0), "tcp4")
    client = book.did("socket", "tcp4", socket.socket, AF_INET, SOCK_STREAM)
    accepted = []

    def call():
        fd = book.did("accept", "tcp4", check, LIBC.accept, server.fileno(), None, None)
        accepted.extend([] if fd is None else [socket.socket(fileno=fd)])
        return fd

    let_go = functools.partial(book.did, "connect", "tcp4", client.connect, server.getsockname())
    return server.fileno(), call, let_go, lambda: close_all(book, "tcp4", server, client, *accepted)


def waiting_connect(book):
    """A second connection to a queue that has room for one."""
    name = f"\0netbpf-full-{os.getpid()}"
    server, first, second = (
        book.did("socket", "unix", socket.socket, AF_UNIX, SOCK_STREAM) for _ in range(3)
    )
    book.did("bind", "unix", server.bind, name)
    book.did("listen", "unix", server.listen, 0)
    book.did("connect", "unix", first.connect, name)
    where = struct.pack("=H", AF_UNIX) + name.encode()
    call = functools.partial(
        book.did, "connect", "unix", check, LIBC.connect, second.fileno(), where, len(where)
    )
    accepted = []
    return (
        second.fileno(),
        call,
        lambda: accepted.append(book.did("accept", "unix", server.accept)[0]),
        lambda: close_all(book, "unix", server, first, second, *accepted),
    )


WAITING = {"recv": waiting_recv, "accept": waiting_accept, "connect": waiting_connect,
           "timed": waiting_timed}  # fmt: skip


def close_all(book, proto, *sockets):
    for sock in sockets:
        book.did("close", proto, sock.close)


def blocked_recv(book):
    """Wait for data that never comes, on a socket that is no more than told."""
    one, _two = socket.socketpair()
    print(json.dumps({"fd": one.fileno()}), flush=True)
    check(LIBC.recv, one.fileno(), ctypes.create_string_buffer(1), 1, 0)


def blocked_recvs(book):
    """Three threads that wait for data which never comes."""
    pairs = [socket.socketpair() for _ in range(3)]
    data = ctypes.create_string_buffer(1)
    for one, _ in pairs:
        work = functools.partial(LIBC.recv, one.fileno(), data, 1, 0)
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while not hangs(thread, one.fileno()):
            time.sleep(0.001)
    print(json.dumps({"threads": len(pairs)}), flush=True)
    signal.pause()


def fails_at_the_end(book):
    """Wait in recv, be stopped, and get SIGUSR2 with a handler that lets it fail."""
    one, two = socket.socketpair()
    signal.signal(signal.SIGUSR2, lambda *_: None)
    signal.siginterrupt(signal.SIGUSR2, True)
    print(json.dumps({"fd": one.fileno()}), flush=True)
    data = ctypes.create_string_buffer(1)
    book.did("recv", "unix", check, LIBC.recv, one.fileno(), data, 1, 0)
    two.detach()
    one.detach()


def children_send(book, number):
    """Processes that send once each."""
    one, two = book.did("socketpair", "unix", socket.socketpair, AF_UNIX, SOCK_DGRAM)
    for _ in range(int(number)):
        child = os.fork()
        if not child:
            one.send(b"x")
            os._exit(0)
        os.waitpid(child, 0)
        book.note("send", "unix", moved=1)
        book.did("recv", "unix", two.recv, 1)
    close_all(book, "unix", one, two)


def switches(thread):
    """How often has the thread given up its CPU to wait?"""
    with open(f"/proc/self/task/{thread.native_id}/status") as file:
        return [line for line in file if line.startswith("voluntary_ctxt")][0]


def hangs(thread, fd):
    """Does the thread wait in a system call whose first argument is `fd`?"""
    with open(f"/proc/self/task/{thread.native_id}/syscall") as file:
        return file.read().split()[1:2] == [hex(fd)]


PLAIN = (tcp4, tcp6, mapped, udp4, udp6, unix, netlink, other, errors)
SCENES = {scene.__name__: scene for scene in
          (*PLAIN, ring, ring_accepts, sendfile, sized, session, overflow, blocked, blocked_recv,
           interrupted, failures, blocked_recvs, fails_at_the_end, children_send)}  # fmt: skip


def everything(book):
    for scene in PLAIN:
        scene(book)


def nothing(book):
    """Only tell that the process is there."""


SCENES.update(everything=everything, nothing=nothing)


def main():
    comm, timeout, uid = sys.argv[1], float(sys.argv[2]), [*sys.argv, "0"][3]
    LIBC.prctl(PR_SET_NAME, comm.encode(), 0, 0, 0)
    if uid != "0":
        os.setgroups([])
        os.setuid(int(uid))
    for line in sys.stdin:
        signal.setitimer(signal.ITIMER_REAL, timeout)  # whatever goes wrong, it ends
        scene, times, *words = line.split()
        book = Book()
        try:
            for _ in range(int(times)):
                SCENES[scene](book, *words)
            answer = book.answer()
        except Exception as error:
            answer = {"error": f"{scene}: {type(error).__name__} {error}"}
        print(json.dumps(answer), flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


main()
