"""The errors of scow, one tree; every floor above raises these.

What belongs here: classes, the codes they carry, going on past them. What must not: messages for a particular
command, tables that map codes to anything. The HTTP layer and the command line read `code`,
`http_status` and `exit_code` off the class (Connect protocol names and statuses).
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing it from typing would cost every start
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class ScowError(Exception):
    """Anything scow says no to: what was tried, on what, why.

    `hint` is one optional line that tells the user what to do next.
    """

    code = "internal"
    http_status = 500
    exit_code = 125

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class InvalidArgument(ScowError):
    """A value that cannot be right, whoever asks."""

    code = "invalid_argument"
    http_status = 400


class NotFound(ScowError):
    """The named object does not exist."""

    code = "not_found"
    http_status = 404


class AlreadyExists(ScowError):
    """The name, port or address is taken; the message says by whom."""

    code = "already_exists"
    http_status = 409


class InvalidState(ScowError):
    """The object exists but is not in a state that allows this."""

    code = "failed_precondition"
    http_status = 400


class PermissionDenied(ScowError):
    """The caller, or the remote side, may not."""

    code = "permission_denied"
    http_status = 403


class Unsupported(ScowError):
    """This host, kernel or build cannot do it."""

    code = "unimplemented"
    http_status = 501


class ResourceExhausted(ScowError):
    """A limit of the host, or a named limit of ours, is reached."""

    code = "resource_exhausted"
    http_status = 429


class DeadlineExceeded(ScowError):
    """It took longer than it may."""

    code = "deadline_exceeded"
    http_status = 504


class IntegrityError(ScowError):
    """Bytes that are not what their digest, size or format says."""

    code = "data_loss"


class RegistryError(ScowError):
    """A registry that cannot be reached, or that answers wrongly."""

    code = "unavailable"
    http_status = 503


class SetupError(ScowError):
    """A step of a container's set-up failed in the kernel.

    Carries the child's record: the `step` (name of the operation), `errno` and `index` of the
    operation in the plan (-1 where there is none), and the `path` it was about, when there is one.
    """

    def __init__(
        self,
        message: str,
        *,
        step: str,
        errno: int,
        index: int = -1,
        path: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.step = step
        self.errno = errno
        self.index = index
        self.path = path


class CommandNotExecutable(SetupError):
    """The command exists in the image but the kernel will not execute it."""

    code = "failed_precondition"
    http_status = 400
    exit_code = 126


class CommandNotFound(SetupError):
    """The command is not in the image."""

    code = "not_found"
    http_status = 404
    exit_code = 127


def try_all(steps: Iterable[Callable[[], object]]) -> None:
    """Take every step, past OSError and ScowError; the first of these is raised at the end."""
    first: OSError | ScowError | None = None
    for step in steps:
        try:
            step()
        except (OSError, ScowError) as error:
            first = first or error
    if first is not None:
        raise first
