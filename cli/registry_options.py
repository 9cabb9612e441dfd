"""What the verbs that speak to a registry have in common: how it is reached, and as whom."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from scow.cli.table import Option, UsageError, Values, flag, text

if TYPE_CHECKING:
    from scow.image.credentials import Credentials
    from scow.image.registry import Connection, Wire


def remote_options(section: str = "Options") -> tuple[Option, ...]:
    """The options that `connection` reads, below this heading of the help."""
    return (
        text("--authfile", metavar="FILE", help="Look for logins in this file first", complete="files", section=section),
        text("--creds", metavar="USER[:PASSWORD]", help="Log in as this user, for this call only", section=section),
        flag("--plain-http", help="Speak HTTP, without encryption (loopback does by itself)", section=section),
        flag("--tls-verify", default=True, help="Check the registry's certificate", section=section),
    )  # fmt: skip


REMOTE_OPTIONS = remote_options()
AUTHFILE, CREDS, PLAIN_HTTP, TLS_VERIFY = REMOTE_OPTIONS


def wire(command: str, values: Values) -> Wire:
    """What all options but --creds say. From here on passwords pass through this process."""
    from scow.native.prctl import forbid_dumps

    forbid_dumps()
    plain_http, tls_verify = values.flag("plain-http"), values.flag("tls-verify")
    if plain_http and values.given("tls-verify") and tls_verify:
        raise UsageError(f"{command}: --plain-http and --tls-verify exclude each other")
    path = values.text("authfile")
    if path is not None:  # everything that looks for logins looks there first
        os.environ["REGISTRY_AUTH_FILE"] = path
    return {"plain_http": plain_http, "tls_verify": tls_verify}


def connection(command: str, values: Values) -> Connection:
    """What the options of `REMOTE_OPTIONS` say."""
    return {**wire(command, values), "credentials": _credentials(values.text("creds"))}


def _credentials(creds: str | None) -> Credentials | None:
    from scow.image.credentials import Credentials

    if creds is None:
        return None
    user, colon, password = creds.partition(":")
    if not user:
        raise UsageError("--creds needs a user: USER[:PASSWORD]")
    return Credentials(user, password if colon else ask_password())


def ask_password() -> str:
    """From the terminal, without showing it."""
    if not sys.stdin.isatty():
        raise UsageError(
            "cannot ask for a password: the input is not a terminal",
            hint="send it to 'scow login --password-stdin' once",
        )
    from getpass import getpass

    return getpass("Password: ", sys.stderr)


def warn(message: str) -> None:
    """A line that is neither an error nor a result."""
    print(f"scow: {message}", file=sys.stderr, flush=True)
