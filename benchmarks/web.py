"""nginx as Debian has it but for its places, and what wrk says of it: what loads of HTTP have in common."""

from __future__ import annotations

import re
from pathlib import Path

from kcompat.errors import KcompatError

_PAGE = Path("/usr/share/nginx/html/index.html")  # of Debian's nginx-common
# {home} is filled in by whoever puts them into a configuration.
HTTP = """sendfile on; tcp_nopush on; types_hash_max_size 2048; include /etc/nginx/mime.types; gzip on;
  client_body_temp_path {home}/body; proxy_temp_path {home}/proxy; fastcgi_temp_path {home}/fastcgi;
  uwsgi_temp_path {home}/uwsgi; scgi_temp_path {home}/scgi;"""
SITE = f"""root {_PAGE.parent}; index {_PAGE.name}; access_log {{home}}/access.log;
    location / {{{{ try_files $uri $uri/ =404; }}}}"""


def requests_of(said: str) -> int:
    """How many wrk made. Raises KcompatError where not all were answered as they should be."""
    count = re.search(r"(\d+) requests in", said)
    if not count or "Non-2xx" in said:
        raise KcompatError(f"wrk did not get what it asked for: {said}")
    return int(count[1])
