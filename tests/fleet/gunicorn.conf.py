"""Gunicorn for the stub: as the workers', with a hang noticed after 6 s instead of 10."""

import os

bind = os.environ["KRONOS_BIND"]
workers = 1
worker_class = "uvicorn_worker.UvicornWorker"
timeout = 6
graceful_timeout = 32
keepalive = 75
control_socket_disable = True
