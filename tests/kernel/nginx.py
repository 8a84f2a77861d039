"""nginx in a network namespace, with a log of every request that the tests compare with."""

import subprocess
import time
from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple


def configuration(log_format, server):
    """All of nginx's files are in {home}, and access.log has a line of `log_format` for each request."""
    return f"""
worker_processes 2; daemon off; pid {{home}}/pid; error_log {{home}}/error.log; user root;
events {{{{ worker_connections 1024; }}}}
http {{{{
  log_format exact '{log_format}';
  access_log {{home}}/access.log exact;
  client_body_temp_path {{home}}/body; proxy_temp_path {{home}}/proxy; fastcgi_temp_path {{home}}/fastcgi;
  uwsgi_temp_path {{home}}/uwsgi; scgi_temp_path {{home}}/scgi;
  keepalive_requests 100000;
  server {{{{
{server}
  }}}}
}}}}
"""


CONFIG = configuration("$request_method $uri $status $request_time $upstream_response_time", r"""
    listen {port}; listen [::]:{port};
    location / {{ return 200 "hello\n"; }}
    location /made {{ return 201 "made\n"; }}
    location /gone {{ return 404; }}
    location /moved {{ return 301 /; }}
    location /empty {{ return 204; }}
    location /files/ {{ alias {home}/files/; sendfile on; }}
    location /slow {{ proxy_pass http://127.0.0.1:{upstream}; }}""")


class Request(NamedTuple):
    method: str
    path: str
    status: int
    time_s: float
    upstream_s: float


class Nginx:
    def __init__(self, home):
        self._home = home

    def requests(self, number):
        """All it has logged, once there are so many; it logs when a response is sent."""
        deadline = time.monotonic() + 60
        while True:
            lines = (self._home / "access.log").read_text().splitlines()
            if len(lines) >= number or time.monotonic() > deadline:
                return [Request(method, path, int(status), float(took), float(upstream) if upstream != "-" else 0.0)
                        for method, path, status, took, upstream in map(str.split, lines)]
            time.sleep(0.05)

    def counts(self, number):
        return Counter((r.method, r.path, r.status) for r in self.requests(number))


@contextmanager
def nginx(end, home, port, upstream):
    (home / "files").mkdir()
    (home / "files" / "big").write_bytes(b"GET / HTTP/1.1\r\n" * (1 << 17))
    (home / "nginx.conf").write_text(CONFIG.format(home=home, port=port, upstream=upstream))
    command = end.command("nginx", "-c", home / "nginx.conf", "-e", home / "error.log")
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 30
            while not (home / "pid").exists() or not (home / "pid").read_text().strip():
                assert process.poll() is None and time.monotonic() < deadline, (home / "error.log").read_text()
                time.sleep(0.02)
            yield Nginx(home)
        finally:
            process.terminate()
            process.wait(30)
