"""Nchan, a module of nginx: WebSocket and server-sent events for subscribers, WebSocket and POST for publishers."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.systems import PLAIN, Kind, Place, System, idle, needs, post_load, program, publisher, said, subscriber

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")
CONFIGURATION = """\
load_module {module};
{user}worker_processes 1;
worker_rlimit_nofile 20000;
daemon off;
pid {folder}/pid;
error_log {folder}/errors warn;
events {{ worker_connections 16000; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  nchan_shared_memory_size 512M;
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /health {{ return 200 "ok"; }}
    location ~ ^/pub/(\\w+)$ {{
      nchan_publisher;
      nchan_channel_id $1;
      nchan_message_buffer_length 1000;
      nchan_message_timeout 60s;
    }}
    location ~ ^/ws/(\\w+)$ {{
      nchan_subscriber websocket;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
    location ~ ^/sse/(\\w+)$ {{
      nchan_subscriber eventsource;
      nchan_channel_id $1;
      nchan_subscriber_first_message newest;
    }}
  }}
}}
"""


def command(place: Place) -> list[str]:
    """nginx in the foreground: one worker, everything it writes in the folder."""
    user = "user root;\n" if os.geteuid() == 0 else ""
    file = place.folder / "nginx.conf"
    file.write_text(CONFIGURATION.format(module=MODULE, user=user, folder=place.folder, port=place.port))
    return [program("nginx"), "-c", str(file), "-p", str(place.folder)]


def systems() -> list[System]:
    """It forwards what it gets, unread, and buffers the last 1,000 messages of a channel in memory."""
    publish = [*publisher("/pub/bench{g}"), "--message", PLAIN]
    load: dict[Kind, list[str]] = {
        "deliver": [*subscriber("/ws/bench{g}"), *publish],
        "post": post_load("/pub/bench{g}"),
        "sse": [*subscriber("/sse/bench{g}", speaks="sse"), *publish],
        "idle": idle(probe="/health"),
        "idle-sse": idle("/sse/idle{i}", speaks="sse", probe="/health"),
    }
    there = program("nginx") and MODULE.exists()
    missing = "" if there else needs("nginx with Nchan", debian="nginx-light libnginx-mod-nchan")
    version = said("dpkg-query", "-W", "-f", "Nchan ${Version}", "libnginx-mod-nchan") if there else ""
    return [System("nchan", "nothing", command, load, f"{said(program('nginx'), '-v')}, {version}", missing)]
