"""One end of TCP sessions, told what to do message by message: see tests/live/traffic.py.

usage: tcp_peer.py CONTROL_FD COMM TIMEOUT [UID]

Each message on the control socket (SOCK_SEQPACKET) is a JSON object {"do": COMMAND, ...}; each is
answered by one object, with "error" in it if the command failed. It ends when the socket does, so
nothing is left behind even if the test is killed. Imports little: it is started often.
"""

import ctypes
import errno
import fcntl
import json
import os
import select
import signal
import socket
import struct
import sys
import termios
import time

PR_SET_NAME = 15
SIOCOUTQ, SIOCINQ = termios.TIOCOUTQ, termios.FIONREAD
# Offsets in struct tcp_info: tcpi_unacked; tcpi_bytes_acked, tcpi_bytes_received.
TCP_INFO_UNACKED, TCP_INFO_BYTES_ACKED = 24, 120
FAMILIES = {"ipv4": socket.AF_INET, "ipv6": socket.AF_INET6}
BLOCK = bytes(range(256)) * 256


class Peer:
    """The sockets of this process, by the ids that the test gave them."""

    def __init__(self, control, comm, timeout):
        self.control = control
        self.timeout = timeout
        self.sockets = {}
        set_comm(comm)

    def do_hello(self):
        return {"pid": os.getpid()}

    def do_comm(self, comm):
        set_comm(comm)
        return {}

    def do_listen(self, id, family, addr, port=0, dual=False, backlog=128):
        sock = socket.socket(FAMILIES[family], socket.SOCK_STREAM)
        if family == "ipv6":
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not dual)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((addr, port))
        sock.listen(backlog)
        # A limit of the socket's own: with one of Python's, accept() would never wait inside.
        limit = struct.pack("ll", int(self.timeout), 0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
        self.sockets[id] = sock
        return {"port": sock.getsockname()[1]}

    def do_connect(self, id, family, addr, port, source=0, user_timeout=0, wait=True):
        sock = socket.socket(FAMILIES[family], socket.SOCK_STREAM)
        self.sockets[id] = sock
        if source:
            sock.bind(("", source))
        if user_timeout:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, user_timeout)
        sock.setblocking(wait)
        begin = time.monotonic()
        error = sock.connect_ex((addr, port))
        end = time.monotonic()
        sock.setblocking(False)
        return {"local": name(sock), "begin": begin, "end": end, "errno": word(error)}

    def do_connected(self, id):
        """Wait until a connect without `wait` has come to its end, whatever that is."""
        sock = self.sockets[id]
        self.poll(sock, select.POLLOUT)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return {"local": name(sock), "end": time.monotonic(), "errno": word(error)}

    def do_accept(self, id, listener):
        sock, peer = self.sockets[listener].accept()
        at = time.monotonic()
        sock.setblocking(False)
        self.sockets[id] = sock
        return {"local": name(sock), "remote": peer[:2], "at": at}

    def do_transfer(self, id, send=0, receive=0, leave=0, settle=True):
        """Send and receive that many bytes at once, `leave` of them left unread in the kernel.

        Ends when everything sent is acknowledged, so that no byte's fate is open afterwards;
        without `settle` as soon as the kernel has taken everything.
        """
        sock = self.sockets[id]
        to_send, to_read = send, receive - leave
        while to_send or to_read:
            wanted = (select.POLLOUT if to_send else 0) | (select.POLLIN if to_read else 0)
            ready = self.poll(sock, wanted)
            if ready & select.POLLIN:
                to_read -= receive_some(sock, to_read)
            if to_send and ready & select.POLLOUT:
                to_send -= sock.send(BLOCK[: min(to_send, len(BLOCK))])
            if ready & (select.POLLERR | select.POLLHUP):
                raise ConnectionError("the connection broke while data was on the way")
        if not settle:
            return {}
        self.until(lambda: queued(sock, SIOCINQ) == leave)
        # The last segment's acknowledgement may be delayed by 40 ms: send it now.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        self.until(lambda: queued(sock, SIOCOUTQ) == 0)
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        acked, received = struct.unpack_from("QQ", info, TCP_INFO_BYTES_ACKED)
        return {"acked": acked, "received": received}

    def do_write(self, id, send):
        """Write without a care for who reads; return how much the kernel took."""
        sock, taken = self.sockets[id], 0
        try:
            while taken < send:
                taken += sock.send(BLOCK[: min(send - taken, len(BLOCK))])
        except BlockingIOError:
            pass
        return {"sent": taken}

    def do_queued(self, id):
        """Return how many bytes nobody has read, and how many segments are on the way."""
        sock = self.sockets[id]
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        (flying,) = struct.unpack_from("I", info, TCP_INFO_UNACKED)
        return {"unread": queued(sock, SIOCINQ), "flying": flying}

    def do_give_up(self, id, send):
        """Write what will not be acknowledged, and wait until the kernel gives up."""
        sock = self.sockets.pop(id)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 500)
        sent = sock.send(BLOCK[:send])
        self.poll(sock, 0)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        sock.close()
        return {"sent": sent, "how": word(error)}

    def do_shutdown(self, id):
        self.sockets[id].shutdown(socket.SHUT_WR)
        return {"at": time.monotonic()}

    def do_close(self, id, reset=False):
        sock = self.sockets.pop(id)
        if reset:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        at = time.monotonic()
        sock.close()
        return {"at": at, "end": time.monotonic()}

    def do_ended(self, id, close=True):
        """Wait until the other end has closed or reset the session, then close this one."""
        sock = self.sockets[id]
        self.poll(sock, select.POLLIN)
        try:
            data = sock.recv(1)
            how = "data" if data else "fin"
        except OSError as error:
            how = word(error.errno)
        at = time.monotonic()
        if close:
            self.sockets.pop(id).close()
        return {"how": how, "at": at, "end": time.monotonic()}

    def do_fork(self, comm, control):
        """Make a child that has all sockets too and obeys the control socket sent along."""
        pid = os.fork()
        if pid == 0:
            self.control.close()
            self.control = control
            set_comm(comm)
        return {} if pid else None

    def poll(self, sock, wanted):
        poller = select.poll()
        poller.register(sock, wanted)
        ready = poller.poll(self.timeout * 1000)
        if not ready:
            raise TimeoutError("nothing happened on the socket")
        return ready[0][1]

    def until(self, condition):
        end = time.monotonic() + self.timeout
        while not condition():
            if time.monotonic() > end:
                raise TimeoutError("the queues of the socket did not settle")
            time.sleep(0.0002)

    def serve(self):
        """Obey until the other end of the control socket is gone."""
        while True:
            data, fds, _, _ = socket.recv_fds(self.control, 65536, 1)
            if not data:
                return
            order = json.loads(data)
            command = getattr(self, "do_" + order.pop("do"))
            if fds:
                order["control"] = socket.socket(fileno=fds[0])
            try:
                answer = command(**order)
            except Exception as error:
                answer = {"error": f"{command.__name__}: {type(error).__name__}: {error}"}
            if fds and answer is not None:
                order["control"].close()
            if answer is not None:
                self.control.send(json.dumps(answer).encode())


def set_comm(comm):
    # Not through /proc/self/comm, which a process that changed its user may not write.
    # As bytes: names that are not text must be possible, they are what strangers choose.
    ctypes.CDLL(None).prctl(PR_SET_NAME, comm.encode("utf-8", "surrogateescape"))


def receive_some(sock, most):
    got = len(sock.recv(min(most, 1 << 18)))
    if not got:
        raise ConnectionError("the other end closed before everything was received")
    return got


def queued(sock, request):
    return struct.unpack("i", fcntl.ioctl(sock, request, b"\0\0\0\0"))[0]


def name(sock):
    return sock.getsockname()[:2]


def word(error):
    return errno.errorcode.get(error, str(error)) if error else ""


def main():
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children that it forked need no burial
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test, which then ends it
    control = socket.socket(fileno=int(sys.argv[1]))
    peer = Peer(control, sys.argv[2], float(sys.argv[3]))
    if len(sys.argv) > 4:
        os.setgroups([])
        os.setresgid(*[int(sys.argv[4])] * 3)
        os.setresuid(*[int(sys.argv[4])] * 3)
    peer.serve()


main()
