"""Where user names and passwords for registries are kept.

What belongs here: docker's config.json, podman's auth.json and docker's credential helpers. What
must not: using what is found. A helper that fails is an error, never "no credentials"
(CVE-2021-41092); what a helper or file holds is in no message.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES, decode_document
from scow.native.errors import InvalidArgument, PermissionDenied, ScowError

if TYPE_CHECKING:
    from collections.abc import Callable

HELPER_TIMEOUT_S = 30.0
MAX_HELPER_BYTES = 1 << 20
DOCKER_HUB_KEY = "https://index.docker.io/v1/"
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_META_HEADER = re.compile(r"(?i:x-meta-)[A-Za-z0-9-]{1,128}")
_META_VALUE = re.compile(r"[\x21-\x7e]([\x20-\x7e]{0,1022}[\x21-\x7e])?")
_NOT_FOUND_TEXT = "credentials not found in native keychain"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What to prove ourselves with; repr shows none of it."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __repr__(self) -> str:
        return "Credentials(...)"


class _AuthEntry(msgspec.Struct, rename="lower"):
    auth: str | None = None
    username: str | None = None
    password: str | None = None
    identitytoken: str | None = None
    registrytoken: str | None = None


class _ConfigFile(msgspec.Struct, rename="camel"):
    auths: dict[str, _AuthEntry] | None = None
    cred_helpers: dict[str, str] | None = None
    creds_store: str | None = None
    http_headers: dict[str, str] | None = msgspec.field(default=None, name="HttpHeaders")


class _HelperAnswer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def find_credentials(
    host: str, path: str, warn: Callable[[str], None] = lambda message: None
) -> Credentials | None:
    """Credentials for the repository `path` on `host`, or None where nothing is kept for it.

    The first file that knows the host decides. Raises PermissionDenied or InvalidArgument about a
    broken file or helper: going on without would look like a wrong password.
    """
    for file_path in config_paths():
        config = _read_config(file_path, warn)
        if config is None:
            continue
        found = _look_up(config, host, path, file_path)
        if found is not None:
            return found
    return None


def find_headers() -> dict[str, str]:
    """`HttpHeaders` of docker's config.json, as far as they are for registries.

    The docker client sends them to its daemon, which passes on to registries what begins with
    `X-Meta-`, and nothing else.
    """
    config = _read_config(os.path.join(_docker_directory(), "config.json"), lambda message: None)
    if config is None or not config.http_headers:
        return {}
    return {
        name: value
        for name, value in config.http_headers.items()
        if _META_HEADER.fullmatch(name) and _META_VALUE.fullmatch(value)
    }


def config_paths() -> list[str]:
    """The files to look at, in order."""
    home = os.path.expanduser("~")
    paths = [
        os.environ.get("REGISTRY_AUTH_FILE", ""),
        os.path.join(_docker_directory(), "config.json"),
    ]
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if runtime:
        paths.append(os.path.join(runtime, "containers", "auth.json"))
    elif os.geteuid() == 0:
        paths.append("/run/containers/0/auth.json")
    paths.append(os.path.join(home, ".config", "containers", "auth.json"))
    return [path for path in paths if path]


def _docker_directory() -> str:
    return os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")


def _read_config(path: str, warn: Callable[[str], None]) -> _ConfigFile | None:
    try:
        with open(path, "rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as e:
        raise PermissionDenied(
            f"cannot read credentials '{path}': {(e.strerror or '').lower()}"
        ) from e
    if not data.strip():
        return None
    config = decode_document(data, _ConfigFile, f"credentials file '{path}'")
    if mode & 0o077 and any(e.auth or e.identitytoken for e in (config.auths or {}).values()):
        warn(f"credentials file '{path}' can be read by other users (mode {mode & 0o777:04o})")
    return config


def _look_up(config: _ConfigFile, host: str, path: str, file_path: str) -> Credentials | None:
    """Helpers of the host beat the general helper, which beats what is in the file."""
    is_hub = host == "docker.io"
    keys = [DOCKER_HUB_KEY, "docker.io", "index.docker.io"] if is_hub else [host]
    for key in keys:
        helper = (config.cred_helpers or {}).get(key)
        if helper:
            return _ask_helper(helper, key)
    if config.creds_store:
        found = _ask_helper(config.creds_store, keys[0])
        if found is not None:
            return found
    # podman keeps entries per path, the longest wins; docker writes URLs in old files.
    parts = path.split("/")
    longer = [f"{host}/{'/'.join(parts[:n])}" for n in range(len(parts), 0, -1)]
    urls = (
        []
        if is_hub
        else [f"https://{host}", f"https://{host}/", f"https://{host}/v1/", f"https://{host}/v2/"]
    )
    for key in [*longer, *keys, *urls]:
        entry = (config.auths or {}).get(key)
        if entry is not None:
            found = _from_entry(entry, file_path)
            if found is not None:
                return found
    return None


def _from_entry(entry: _AuthEntry, file_path: str) -> Credentials | None:
    username, password = entry.username or "", entry.password or ""
    if entry.auth:
        try:
            pair = base64.b64decode(entry.auth, validate=True).decode("utf-8")
        except (binascii.Error, UnicodeDecodeError) as e:
            raise InvalidArgument(
                f"invalid credentials file '{file_path}': an 'auth' value is not base64"
            ) from e
        username, colon, password = pair.partition(":")
        if not colon:
            raise InvalidArgument(
                f"invalid credentials file '{file_path}': an 'auth' value is not USER:PASSWORD"
            )
        password = password.rstrip("\0")
    identity, registry = entry.identitytoken or "", entry.registrytoken or ""
    if not (username or identity or registry):
        return None
    return Credentials(username, password, identity, registry)


def _ask_helper(name: str, server: str) -> Credentials | None:
    """Run `docker-credential-NAME get` (docker-credential-helpers protocol)."""
    if not HELPER_NAME.fullmatch(name):
        raise InvalidArgument(f"credential helper {quote(name)} is not a valid name")
    program = f"docker-credential-{name}"
    status, output = run_helper(program, "get", server.encode())
    if status != 0:
        if _NOT_FOUND_TEXT in output.decode("utf-8", "replace"):
            return None
        raise PermissionDenied(f"credential helper '{program}' failed with status {status}")
    try:
        answer = decode_document(output, _HelperAnswer, f"answer of '{program}'")
    except InvalidArgument:
        # Not chained: the decoder's message may quote a secret.
        raise PermissionDenied(f"credential helper '{program}' gave an invalid answer") from None
    if answer.username == "<token>":
        return Credentials(identity_token=answer.secret)
    return Credentials(answer.username, answer.secret) if answer.username else None


def run_helper(program: str, action: str, data: bytes) -> tuple[int, bytes]:
    """Exit status and output; a helper that hangs or talks without end is killed with its group."""
    import signal
    import subprocess
    import threading

    try:
        process = subprocess.Popen(
            [program, action],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as e:
        raise PermissionDenied(
            f"cannot run credential helper '{program}': {(e.strerror or '').lower()}",
            hint="install it, or remove it from the credentials file",
        ) from e
    assert process.stdin is not None
    assert process.stdout is not None
    timed_out = threading.Event()

    def kill() -> None:
        if process.returncode is None:  # set by wait(): until then the group's number is ours
            timed_out.set()
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(HELPER_TIMEOUT_S, kill)
    timer.start()
    try:
        try:
            process.stdin.write(data)
            process.stdin.close()
        except BrokenPipeError:
            pass  # its exit status tells more
        output = process.stdout.read(MAX_HELPER_BYTES + 1)
        if len(output) > MAX_HELPER_BYTES:
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        process.stdout.close()
    if timed_out.is_set():
        raise ScowError(f"credential helper '{program}' did not answer in {HELPER_TIMEOUT_S:.0f} s")
    if len(output) > MAX_HELPER_BYTES:
        raise PermissionDenied(
            f"credential helper '{program}' gave more than {MAX_HELPER_BYTES} bytes"
        )
    return status, output
