"""Servers from the distribution's packages, which a test runs in a network namespace of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator

from harness import wait_until
from topology import Host

NGINX = """
daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
  uwsgi_temp_path {dir}; scgi_temp_path {dir}; keepalive_requests 1000000;
  server {{ listen 127.0.0.1:8080; location / {{ return 200 "a short answer"; }} }}
}}
"""


@contextlib.contextmanager
def serving(host: Host, port: int, *words: object) -> Iterator[None]:
    """Run a server inside until the block ends; it is entered when the server listens."""
    server = subprocess.Popen(
        host.inside(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        listens = f" {'0100007F'}:{port:04X} 00000000:0000 0A "
        anywhere = f" 00000000:{port:04X} 00000000:0000 0A "
        dual = f" {'0' * 32}:{port:04X} "
        tables = ("/proc/self/net/tcp", "/proc/self/net/tcp6")

        def ready() -> bool:
            text = host.run("cat", *tables)
            return any(line in text for line in (listens, anywhere, dual))

        wait_until(ready, what=f"{words[0]} to listen")
        yield
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(10)
