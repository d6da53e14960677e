"""Passing descriptors between processes: to who knows the token, within the time promised, none left open."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hyperflexis_worker.cuda import descriptor_socket
from hyperflexis_worker.cuda.descriptor_socket import TOKEN_BYTES, DescriptorServer, receive_descriptor
from hyperflexis_worker.kv.transport import LinkError

TOKEN = bytes(range(TOKEN_BYTES))
SERVE = """
import os, sys
from hyperflexis_worker.cuda.descriptor_socket import DescriptorServer
memory = os.memfd_create("pool")
os.write(memory, b"a pool of another process")
server = DescriptorServer(lambda: os.dup(memory), bytes.fromhex(sys.argv[1]))
print(server.address, flush=True)
sys.stdin.read()
"""


def made_of(content: bytes) -> int:
    descriptor = os.memfd_create("pool")
    os.write(descriptor, content)
    return descriptor


def read(descriptor: int) -> bytes:
    try:
        return os.pread(descriptor, 1_000, 0)
    finally:
        os.close(descriptor)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def short_path() -> Iterator[Path]:
    """Where a socket may lie: pytest's own directories have longer names than a socket may."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        yield Path(directory)


@pytest.fixture
def server() -> Iterator[DescriptorServer]:
    server = DescriptorServer(lambda: made_of(b"pool"), TOKEN)
    yield server
    server.close()


@pytest.fixture
def stranger() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another process that serves, and where."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE, TOKEN.hex()], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
        process.kill()


def test_memory_of_another_process_can_be_read(stranger: tuple[subprocess.Popen[str], str]) -> None:
    descriptor = receive_descriptor(stranger[1], TOKEN, 5)
    assert not os.get_inheritable(descriptor)
    stranger[0].kill()
    stranger[0].wait()
    assert read(descriptor) == b"a pool of another process"
    with pytest.raises(LinkError, match="cannot reach"):
        receive_descriptor(stranger[1], TOKEN, 5)


def test_a_stopped_process_is_given_up_in_time(stranger: tuple[subprocess.Popen[str], str]) -> None:
    stranger[0].send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, stranger[0].pid, os.WSTOPPED)
    began = time.monotonic()
    with pytest.raises(LinkError, match="stopped or hung"):
        receive_descriptor(stranger[1], TOKEN, 0.3)
    assert time.monotonic() - began < 2


def test_each_caller_gets_its_own_and_none_stays_open(server: DescriptorServer) -> None:
    before = open_descriptors()
    for _ in range(20):
        assert read(receive_descriptor(server.address, TOKEN, 5)) == b"pool"
    for _ in range(100):  # the thread closes its last one after we have ours
        if open_descriptors() == before:
            break
        time.sleep(0.01)
    assert open_descriptors() == before


@pytest.mark.parametrize("token", [TOKEN[::-1], TOKEN[:-1], TOKEN + b"x", TOKEN * 2, b"\0"])
def test_another_token_is_refused(server: DescriptorServer, token: bytes) -> None:
    before = open_descriptors()
    with pytest.raises(LinkError, match="does not know our token"):
        receive_descriptor(server.address, token, 5)
    assert open_descriptors() <= before + 1  # the thread may not have hung up yet
    assert read(receive_descriptor(server.address, TOKEN, 5)) == b"pool"


def test_callers_that_say_nothing_or_hang_up_hold_nobody_up(
    server: DescriptorServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descriptor_socket, "PATIENCE_S", 0.2)
    where = "\0" + server.address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as silent:
        silent.connect(where)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as gone:
            gone.connect(where)
        assert read(receive_descriptor(server.address, TOKEN, 5)) == b"pool"


def test_why_an_export_failed_is_told() -> None:
    def fail() -> int:
        raise RuntimeError("cuMemExportToShareableHandle: CUDA_ERROR_INVALID_VALUE " + 1_000 * "x")

    server = DescriptorServer(fail, TOKEN)
    with pytest.raises(LinkError, match="CUDA_ERROR_INVALID_VALUE"):
        receive_descriptor(server.address, TOKEN, 5)
    server.close()


def test_a_socket_in_a_directory_goes_with_its_server(short_path: Path) -> None:
    server = DescriptorServer(lambda: made_of(b"pool"), TOKEN, short_path)
    assert [str(path) for path in short_path.iterdir()] == [server.address]
    assert read(receive_descriptor(server.address, TOKEN, 5)) == b"pool"
    server.close()
    server.close()
    assert not list(short_path.iterdir())
    with pytest.raises(LinkError, match="cannot reach"):
        receive_descriptor(server.address, TOKEN, 5)


def test_a_directory_that_is_not_there_is_an_error(short_path: Path) -> None:
    before = open_descriptors()
    with pytest.raises(OSError):
        DescriptorServer(lambda: made_of(b"pool"), TOKEN, short_path / "absent")
    assert open_descriptors() == before


@pytest.mark.parametrize("address", ["", "@", "@nobody", "/nowhere/at.sock", "@" + 200 * "x", "a\0b"])
def test_addresses_without_a_server_are_link_errors(address: str) -> None:
    with pytest.raises(LinkError):
        receive_descriptor(address, TOKEN, 0.3)
