"""A relay of TCP connections that counts what passes: payload bytes of the sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from tests.deployment.traffic import Traffic


class Relay:
    """Listens on a free port of the loopback and connects to another one.

    Attributes
    ----------
    port : int
        To connect to.
    """

    def __init__(self, target: int) -> None:
        self._up = 0
        self._down = 0
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._sockets: set[socket.socket] = set()
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Relay:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closed = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        for end in list(self._sockets):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._listener.close()

    def traffic(self) -> Traffic:
        """Give what has passed so far, without the heads of TCP and IP."""
        with self._lock:
            return Traffic(self._up, self._down, time.monotonic())

    def _start(self, work: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self) -> None:
        while not self._closed:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, near)

    def _serve(self, near: socket.socket) -> None:
        """Pass on one connection, in both directions, until both have ended."""
        with near, suppress(OSError):
            far = socket.create_connection(("127.0.0.1", self._target))
            with far:
                self._sockets |= {near, far}
                back = self._start(self._pump, far, near, self._came_down)
                self._pump(near, far, self._went_up)
                back.join()
                self._sockets -= {near, far}

    def _pump(
        self, source: socket.socket, sink: socket.socket, count: Callable[[int], None]
    ) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with self._lock:
                    count(len(data))
                sink.sendall(data)
        with suppress(OSError):
            sink.shutdown(socket.SHUT_WR)

    def _went_up(self, size: int) -> None:
        self._up += size

    def _came_down(self, size: int) -> None:
        self._down += size
