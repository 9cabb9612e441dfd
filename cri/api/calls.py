"""What many calls need: checks of a request, and lists as streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import msgspec

from scow.cri.api import answers
from scow.cri.api.answers import Answer
from scow.cri.api.codec import Kept
from scow.cri.objects import ID_LENGTH
from scow.native.errors import InvalidArgument, InvalidState, NotFound
from scow.runtime.state import State

if TYPE_CHECKING:
    from scow.cri.api.message import Message
    from scow.cri.records import Record
    from scow.cri.status import Status

RUNNING = (State.RUNNING, State.PAUSED)
# A stream of a list: that many items in a message.
_CHUNK = 100


class _Keyed(Protocol):
    @property
    def id(self) -> str: ...


R = TypeVar("R", bound=_Keyed)
S = TypeVar("S")


class Shown(Generic[R, S]):
    """The items of a list as they were shown last; made and encoded anew where something changed.

    An observer gives the very objects that it gave before as long as nothing has.
    """

    def __init__(self, make: Callable[[R, S], Answer]) -> None:
        self._make = make
        self._last: dict[str, tuple[R, S, Kept]] = {}

    def of(self, seen: Iterable[tuple[R, S]]) -> list[tuple[R, S, Kept]]:
        """The items of all that is there now, with what they were made of."""
        now: dict[str, tuple[R, S, Kept]] = {}
        for record, state in seen:
            item = self._last.get(record.id)
            if item is None or item[0] is not record or item[1] is not state:
                item = record, state, Kept(self._make(record, state))
            now[record.id] = item
        self._last = now  # at once: several threads may list
        return list(now.values())


def is_wanted(record: Record, status: Status, wanted: Message | None) -> bool:
    """Whether a ContainerFilter lets a container through."""
    if wanted is None:
        return True
    member = answers.member_of(record)
    return (
        record.id.startswith(wanted.id)
        and member.pod_id.startswith(wanted.pod_sandbox_id)
        and (wanted.state is None or wanted.state.state == answers.state_name(status))
        and answers.matches(wanted.label_selector, member.labels)
    )


def chunks(name: str, items: Sequence[Answer]) -> Iterator[Answer]:
    """A list as a stream: one message at least, so that an empty list is one, too."""
    for start in range(0, max(1, len(items)), _CHUNK):
        yield {name: list(items[start : start + _CHUNK])}


def need_id(text: str, name: str) -> None:
    """Refuse a request without an id."""
    if not text:
        raise InvalidArgument(f"the request has no {name}")
    if len(text) > ID_LENGTH:
        raise NotFound(f"no such {name}: '{text[:ID_LENGTH]}...'")


def need_command(request: Message) -> None:
    """Refuse to execute nothing."""
    if not request.cmd or not request.cmd[0]:
        raise InvalidArgument("the request has no cmd")
    if any("\0" in word for word in request.cmd):
        raise InvalidArgument("a word of cmd holds a NUL byte")


def check_streams(request: Message) -> None:
    """Refuse what Exec and Attach cannot mean."""
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidArgument("one of stdin, stdout and stderr must be true")
    if request.tty and request.stderr:
        raise InvalidArgument("tty and stderr exclude each other: a terminal has one output")


def need_running(record: Record, status: Status, verb: str) -> None:
    """Refuse a container that does not run."""
    if status.state not in RUNNING:
        raise InvalidState(f"cannot {verb} container '{record.name}': it is {status.state.value}")


def as_json(value: object) -> str:
    """What the verbose forms tell: any value, as JSON text."""
    return msgspec.json.encode(value).decode()


def own_version() -> str:
    """The version of this package."""
    from importlib.metadata import version

    return version("scow")
