"""The process `scow serve`: opens the listeners, runs the loop, ends on SIGTERM.

What belongs here: what concerns the whole process (signals, limits, systemd). What must not: the
command line (cli/serve.py) and the protocol (server.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scow.cri.api.listeners import Listener, TlsFiles, activated, open_listener, open_loopback
from scow.cri.api.openapi import document
from scow.cri.api.server import Server
from scow.cri.api.tokens import Tokens
from scow.cri.launch import bury_monitors
from scow.native.errors import InvalidArgument

log = logging.getLogger("scow.api")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where to listen. Sockets that systemd passes come on top of `addresses`.

    `stream_port` is that of a loopback listener for stream URLs alone, which cannot be guessed and
    are good once (as CRI's runtimes have it): 0 is any free port, None no such listener; URLs then
    have no host, and are served by every other listener anyway. `stream_url` is what the URLs
    begin with where a proxy stands before us.
    """

    addresses: tuple[str, ...]
    version: str
    tls: TlsFiles | None = None
    stream_port: int | None = 0
    stream_url: str | None = None
    debug: bool = False


ServiceMaker = Callable[[Tokens, contextlib.ExitStack], Mapping[str, object]]


def serve(options: ServeOptions, make_services: ServiceMaker) -> None:
    """Serve until a signal ends it (SIGTERM, SIGINT, SIGHUP).

    `make_services` gives the two services by their CRI names; what is to be closed after them goes
    on the stack.
    """
    # Ignored by who started us it would be so for all that we start, and nothing could be waited for.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _start_log(debug=options.debug)
    _raise_descriptor_limit()
    busy = asyncio.run(_serve(options, make_services))
    if busy:
        # The interpreter would wait for their threads, perhaps for ever. Whatever they are at, it
        # must be fit to be killed at any instruction.
        log.warning("%d calls did not end in time, leaving them", busy)
        logging.shutdown()
        os._exit(0)


async def _serve(options: ServeOptions, make_services: ServiceMaker) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    # Else the monitors of the last calls stay zombies until somebody asks for something.
    loop.add_signal_handler(signal.SIGCHLD, bury_monitors)
    with contextlib.ExitStack() as stack:
        # Made before we listen: who can connect is answered. Systemd's socket lets them wait.
        listeners: list[Listener] = []
        tokens = Tokens(lambda: _stream_base(options, listeners))
        services = make_services(tokens, stack)
        listeners += open_listeners(options, stack)
        server = Server(services, tokens, document(options.version))
        for listener in listeners:
            what = " (stream URLs only)" if listener.streams_only else ""
            log.info("listening on %s%s", listener.url(), what)
            if not listener.is_unix and listener.tls is None and not listener.streams_only:
                log.warning(
                    "%s: every user and every container with the host's network is root through it",
                    listener.url(),
                )
        notify("READY=1")
        await server.run(listeners, stop)
        notify("STOPPING=1")
        log.info("stopped; containers run on")
        return server.busy_calls


def open_listeners(options: ServeOptions, stack: contextlib.ExitStack) -> list[Listener]:
    """Open all of them; `stack` closes them."""
    listeners = activated(options.tls)
    for listener in listeners:
        stack.callback(listener.close)
    # The unix socket is ours to make only where systemd does not hold it.
    held = {listener.sock.getsockname() for listener in listeners if listener.is_unix}
    for address in options.addresses:
        if address.removeprefix("unix://") not in held:
            listeners.append(open_listener(address, options.tls))
            stack.callback(listeners[-1].close)
    if not listeners:
        raise InvalidArgument("there is nothing to listen on")
    if options.stream_port is not None:
        listeners.append(open_loopback("127.0.0.1", options.stream_port, streams_only=True))
        stack.callback(listeners[-1].close)
    return listeners


def _stream_base(options: ServeOptions, listeners: list[Listener]) -> str:
    if options.stream_url is not None:
        return options.stream_url.rstrip("/")
    return next((listener.url() for listener in listeners if listener.streams_only), "")


def notify(state: str) -> None:
    """Tell systemd (sd_notify(3)); without it nobody asks."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    address = f"\0{path[1:]}" if path.startswith("@") else path
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), address)


def _start_log(*, debug: bool) -> None:
    # journald adds time and name by itself; a terminal needs the time.
    form = "%(levelname)s %(message)s"
    if "JOURNAL_STREAM" not in os.environ:
        form = f"%(asctime)s {form}"
    logging.basicConfig(stream=sys.stderr, format=form, level=logging.INFO)
    logging.getLogger("scow").setLevel(logging.DEBUG if debug else logging.INFO)


def _raise_descriptor_limit() -> None:
    # 1024, the usual soft limit, is no more than the connections alone may take.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
