"""A server whose connection is served by another process than the one that accepted it.

usage: fork_server.py ADDRESS HOW, with HOW
  fork   the parent forks a process that keeps the connection, closes its own copy, and stays
  inetd  the same, and the connection is the process's standard input, as from inetd
  older  as fork, and forks two more processes that have nothing
  exit   the parent ends after the fork
  pass   the parent sends the descriptor to a process that is no child of it (SCM_RIGHTS)

Prints its port, then the process ids of parent and server as JSON. The server answers each
byte with 100,000, and ends when standard input does or when the connection is reset.
"""

from __future__ import annotations

import array
import json
import os
import select
import socket
import sys

ANSWER = 100_000
ADDRESS, HOW = sys.argv[1:]


def serve(connection: socket.socket) -> None:
    """Answer until the end of standard input."""
    while True:
        ready, _, _ = select.select([connection, sys.stdin], [], [])
        if sys.stdin in ready:
            break
        try:
            if connection.recv(1):
                connection.sendall(b"x" * ANSWER)
        except ConnectionError:
            select.select([sys.stdin], [], [])
            break


def serve_as_inetd(connection: socket.socket) -> None:
    """Serve the connection as descriptor 0 and no other one."""
    sys.stdin = os.fdopen(os.dup(0))
    os.dup2(connection.fileno(), 0)
    connection.close()
    serve(socket.socket(fileno=0))


def idle() -> None:
    """Wait for the end of standard input."""
    select.select([sys.stdin], [], [])


def forked(work, *arguments) -> int:  # type: ignore[no-untyped-def]
    """Run `work` in a process of its own and return its id."""
    pid = os.fork()
    if pid == 0:
        work(*arguments)
        os._exit(0)
    return pid


def receive(pipe: socket.socket) -> None:
    """Have a process that loses its parent serve the connection that arrives through `pipe`."""
    if os.fork():
        return
    pipe.send(b"%d" % os.getpid())
    _, control, _, _ = pipe.recvmsg(1, socket.CMSG_SPACE(4))
    fds = array.array("i")
    fds.frombytes(control[0][2])
    pipe.send(b"x")
    serve(socket.socket(fileno=fds[0]))


def main() -> None:
    """Accept one connection, and give it away."""
    family = socket.AF_INET6 if ":" in ADDRESS else socket.AF_INET
    listener = socket.create_server((ADDRESS, 0), family=family)
    ours, theirs = socket.socketpair()
    if HOW == "pass":
        os.waitpid(forked(receive, theirs), 0)
        server = int(ours.recv(16))
    print(listener.getsockname()[1], flush=True)
    connection, _ = listener.accept()
    if HOW == "pass":
        message = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection.fileno()]))]
        ours.sendmsg([b"x"], message)
        ours.recv(1)
    else:
        server = forked(serve_as_inetd if HOW == "inetd" else serve, connection)
    connection.close()
    for _ in range(2 if HOW == "older" else 0):
        forked(idle)
    print(json.dumps({"parent": os.getpid(), "server": server}), flush=True)
    if HOW != "exit":
        idle()


main()
