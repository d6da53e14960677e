"""Passing a file descriptor to another process of this host, over a Unix socket, to whoever knows a token.

One packet each way: the token, then an answer and the descriptor with it (SCM_RIGHTS). The kernel duplicates it on
the way, so the sender closes its own at once.
"""

from __future__ import annotations

import array
import hmac
import os
import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from hyperflexis_worker.kv.transport import LinkError

TOKEN_BYTES = 32
ANSWER_BYTES = 512
PATIENCE_S = 1.0
"""What a caller may take to say its token, and to take the answer: others wait meanwhile."""
WAITING = 128
GRANTED, REFUSED, FAILED = b"+", b"-", b"!"


class DescriptorServer:
    """A thread that answers one caller at a time with a descriptor made for it."""

    def __init__(self, export: Callable[[], int], token: bytes, directory: Path | None = None) -> None:
        """`export` is called on the thread; its descriptor is closed here. The socket lies in `directory`, which
        processes of other containers may share, or in the abstract name space. Raises OSError."""
        self._export = export
        self._token = token
        self._closed = threading.Event()
        name = f"kv-{os.getpid()}-{secrets.token_hex(4)}"  # short: a socket's path has 107 bytes
        self.address = f"@{name}" if directory is None else str(directory / f"{name}.sock")
        """For `receive_descriptor`; @ stands for the abstract name space."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._listener.bind(_name(self.address))
            self._listener.listen(WAITING)
        except OSError:
            self._listener.close()
            raise
        self._thread = threading.Thread(target=self._serve, name="kv-descriptors", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """No descriptor leaves afterwards. The second time nothing happens."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join(4 * PATIENCE_S)
        self._listener.close()
        if not self.address.startswith("@"):
            Path(self.address).unlink(missing_ok=True)

    def _serve(self) -> None:
        while not self._closed.is_set():
            try:
                caller, _ = self._listener.accept()
            except OSError:  # closed; or out of descriptors, which passes
                self._closed.wait(0.05)
                continue
            with caller:
                try:
                    self._answer(caller)
                except OSError:
                    continue  # it went away, or took too long

    def _answer(self, caller: socket.socket) -> None:
        caller.settimeout(PATIENCE_S)
        if not hmac.compare_digest(caller.recv(2 * TOKEN_BYTES), self._token):
            caller.send(REFUSED)
            return
        try:
            descriptor = self._export()
        except Exception as error:  # the caller is told, and this thread serves the next
            caller.send(FAILED + str(error).encode()[: ANSWER_BYTES - 1])
            return
        try:
            socket.send_fds(caller, [GRANTED], [descriptor])
        finally:
            os.close(descriptor)


def receive_descriptor(address: str, token: bytes, timeout_s: float) -> int:
    """A descriptor from the server at `address`, for the caller to close. Raises LinkError, within about
    `timeout_s`."""
    give_up = time.monotonic() + timeout_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        try:
            server.settimeout(timeout_s)
            server.connect(_name(address))
            server.send(token)
            server.settimeout(max(give_up - time.monotonic(), 0.001))
            answer, descriptors = _receive(server)
        except TimeoutError as error:
            raise LinkError(f"no answer from {address} in {timeout_s:g} s: its process is stopped or hung") from error
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise LinkError(f"cannot reach {address}: {error}") from error
    if answer == GRANTED and descriptors:
        return descriptors[0]
    for descriptor in descriptors:
        os.close(descriptor)
    if answer == REFUSED:
        raise LinkError(f"{address} does not know our token")
    said = answer[1:].decode(errors="replace") if answer[:1] == FAILED else "nothing that we understand"
    raise LinkError(f"{address} answered: {said}")


def _receive(server: socket.socket) -> tuple[bytes, list[int]]:
    # socket.recv_fds takes flags and leaves them out: a child started in between would inherit the descriptor.
    one = array.array("i", [0])
    answer, ancillary, _, _ = server.recvmsg(ANSWER_BYTES, socket.CMSG_LEN(one.itemsize), socket.MSG_CMSG_CLOEXEC)
    descriptors = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            descriptors.frombytes(data[: len(data) - len(data) % one.itemsize])
    return answer, list(descriptors)


def _name(address: str) -> str:
    return "\0" + address[1:] if address.startswith("@") else address
