"""No network while a check looks on."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def no_network() -> Iterator[list[str]]:
    """While it lasts, asking for a name or an address raises ``ConnectionError``; the list gets a line for each
    attempt, so that one whose error is swallowed is known too. What a library in C opens without Python is not seen."""
    asked: list[str] = []
    kept = {name: getattr(socket.socket, name) for name in ("connect", "connect_ex", "sendto")}
    lookup = socket.getaddrinfo

    def refuse(what: str) -> None:
        asked.append(what)
        raise ConnectionError(f"the network is asked for {what}, and this has to work without one")

    def refusing(method: str) -> Any:
        def call(self: socket.socket, *arguments: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                refuse(str(arguments[-1]))
            return kept[method](self, *arguments)

        return call

    try:
        for name in kept:
            setattr(socket.socket, name, refusing(name))
        socket.getaddrinfo = lambda host, *more, **others: refuse(str(host))  # type: ignore[assignment]
        yield asked
    finally:
        for name in kept:
            delattr(socket.socket, name)  # the methods it inherits come back
        socket.getaddrinfo = lookup
