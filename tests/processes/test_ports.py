"""The port at which the processes of a stage meet."""

import random
import socket
from pathlib import Path

import pytest

from selfsup.processes.launch import free_port


def test_a_port_is_free_and_no_outgoing_connection_can_take_it():
    port = free_port()
    ports = Path("/proc/sys/net/ipv4/ip_local_port_range")
    if ports.exists():
        assert port < int(ports.read_text().split()[0])
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_port_that_is_listened_on_is_passed_over(monkeypatch):
    port = free_port()
    monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [port, port + 1])
    with socket.create_server(("127.0.0.1", port)):
        try:
            found = free_port()
        except OSError as error:  # the next one is taken, too
            found = str(error)
    assert found in (port + 1, "no free port found between 20000 and 32000")


def test_without_any_free_port_it_says_so(monkeypatch):
    monkeypatch.setattr(random.SystemRandom, "sample", lambda *_: [])
    with pytest.raises(OSError, match="no free port found between 20000 and 32000"):
        free_port()
