"""call: one method of the service's API, from the shell."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scow.cli.session import session
from scow.cli.table import Argument, Command, UsageError, Values, text

if TYPE_CHECKING:
    from scow.cri.api.received import Received

REQUEST_MAX = 4 * 1024 * 1024


def _call(values: Values) -> int:
    from scow.cri.api import codec
    from scow.cri.client import method_named

    method = method_named(values.word("METHOD"))
    words = values.words("JSON")
    request = codec.decode(method.request, _body(words[0] if words else "{}")).to_dict()
    timeout_s = _seconds(values.text("timeout"))
    with session.client() as client:
        if method.streams:
            for item in client.stream(method.name, request, timeout_s=timeout_s):
                _show(item)
        else:
            _show(client.call(method.name, request, timeout_s=timeout_s))
    return 0


def _body(word: str) -> bytes:
    if word != "-":
        return word.encode("utf-8", "surrogateescape")
    body = sys.stdin.buffer.read(REQUEST_MAX + 1)
    if len(body) > REQUEST_MAX:
        raise UsageError(f"call: a request may have {REQUEST_MAX} bytes")
    return body


def _seconds(value: str | None) -> float | None:
    if value is None:
        return None
    if not (value.isascii() and value.isdigit() and 0 < int(value[:8]) < 10_000_000):
        raise UsageError(f"call: --timeout is a number of seconds, not '{value}'")
    return float(value)


def _show(message: Received) -> None:
    from scow.cri.api import codec

    print(codec.encode(message.type_name, message.to_dict()).decode(), flush=True)


CALL = Command(
    "call",
    "Call a method of the API and show its answer",
    _call,
    description="Any method of CRI's RuntimeService and ImageService, by its name. A method that "
    "streams shows one message on each line. 'scow --host ADDRESS call ...' calls another service.",
    arguments=(
        Argument("METHOD", "Its CRI name, for example ListContainers"),
        Argument("JSON", "The request; '-' reads it from stdin, the default is {}", count="?"),
    ),
    options=(text("--timeout", metavar="SECONDS", help="Give up after so long"),),
    examples=(
        ("scow call Version", "is the service there?"),
        ('scow call ListContainers \'{"filter": {"state": {"state": 1}}}\'', "what runs"),
        ("scow call GetContainerEvents", "what happens, as it happens"),
    ),
    needs_root="",
    uses_service=True,
)
