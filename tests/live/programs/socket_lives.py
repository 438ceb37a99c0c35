"""Make UDP sockets that exchange different amounts, and report what each did, as a JSON line.

Arguments: the address family's address, the number of sockets, and the process's name. A line on
standard input ends them: "close" one by one, with a second report, "exit" with the process.
"""

import json
import os
import socket
import sys
import time

address, number, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with open("/proc/self/comm", "w") as comm:
    comm.write(name)
family = socket.AF_INET6 if ":" in address else socket.AF_INET
partner = socket.socket(family, socket.SOCK_DGRAM)
partner.bind((address, 0))
port = partner.getsockname()[1]

socks, ledger = [], []
for index in range(number):
    before = time.monotonic_ns()
    sock = socket.socket(family, socket.SOCK_DGRAM)
    after = time.monotonic_ns()
    if index % 2:
        sock.connect((address, port))
    sent = [bytes(17 + index + 100 * k) for k in range(1 + index % 5)]
    for message in sent:
        if index % 2:
            sock.send(message)
        else:
            sock.sendto(message, (address, port))
        partner.recv(65536)
    received = [bytes(3 + 7 * index + 10 * k) for k in range(index % 3)]
    for message in received:
        partner.sendto(message, (address, sock.getsockname()[1]))
        sock.recv(65536)
    socks.append(sock)
    ledger.append({
        "lport": sock.getsockname()[1], "laddr": sock.getsockname()[0], "rport": port,
        "tx_bytes": sum(map(len, sent)), "tx_msgs": len(sent),
        "rx_bytes": sum(map(len, received)), "rx_msgs": len(received),
        "peers": 0 if index % 2 else 1, "made": (before, after),
    })  # fmt: skip
print(json.dumps(ledger), flush=True)
if sys.stdin.readline() == "close\n":
    closed = []
    for sock in socks:
        before = time.monotonic_ns()
        sock.close()
        closed.append((before, time.monotonic_ns()))
    print(json.dumps(closed), flush=True)
    sys.stdin.readline()
print(time.monotonic_ns(), flush=True)
os._exit(0)
