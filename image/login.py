"""Remembering who we are at a registry, in the files that Docker and Podman share.

What belongs here: checking, writing and forgetting a login. What must not: reading one for use
(credentials.py). What else a file holds is kept; a file is replaced whole, and its owner's alone. No
message holds a password or what a helper said.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from scow.image.credentials import (
    DOCKER_HUB_KEY,
    HELPER_NAME,
    Credentials,
    config_paths,
    run_helper,
)
from scow.image.digest import quote
from scow.image.document import MAX_DOCUMENT_BYTES, check_document
from scow.image.reference import DEFAULT_HOST, Reference, parse_reference
from scow.image.registry_list import RegistryLists
from scow.image.transport import Patience
from scow.native.errors import InvalidArgument, PermissionDenied

_HUB_NAMES = ("docker.io", "index.docker.io", "registry-1.docker.io", "index.docker.io/v1")


@dataclass(frozen=True, slots=True)
class Server:
    """A registry, or (Podman's way) a part of one: `path` is "" or what its repositories begin with."""

    host: str
    path: str = ""

    def __str__(self) -> str:
        return f"{self.host}/{self.path}" if self.path else self.host

    @property
    def key(self) -> str:
        """What the files call it."""
        return DOCKER_HUB_KEY if self == Server(DEFAULT_HOST) else str(self)

    @property
    def keys(self) -> list[str]:
        """All that files have called it."""
        if self == Server(DEFAULT_HOST):
            return [DOCKER_HUB_KEY, *_HUB_NAMES]
        ends = ("", "/", "/v1/", "/v2/")
        return [
            str(self),
            *(f"{scheme}://{self}{end}" for scheme in ("https", "http") for end in ends),
        ]


def parse_server(text: str) -> Server:
    """`HOST[:PORT][/PATH]` as people type it: with a scheme, or nothing at all for Docker Hub."""
    name = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    if not name or name in _HUB_NAMES:
        return Server(DEFAULT_HOST)
    host, _, path = name.partition("/")
    path = "" if path in ("v1", "v2") else path
    reference = parse_reference(f"{host}/{path or 'x'}")
    if reference.host == DEFAULT_HOST and host not in _HUB_NAMES:
        raise InvalidArgument(
            f"{quote(text)} is not a registry: its name has neither a '.' nor a ':'",
            hint=f"give its port, such as {host}:5000",
        )
    return Server(reference.host, path)


def check_login(
    server: Server,
    credentials: Credentials,
    *,
    plain_http: bool = False,
    tls_verify: bool = True,
    patience: Patience | None = None,
) -> Credentials:
    """Raise PermissionDenied or RegistryError unless the registry takes the credentials.

    Returns what to keep: a token that can be taken back, where the registry gives one for a password.
    """
    registry = RegistryLists(
        Reference(server.host, "", None, None),
        plain_http=plain_http,
        tls_verify=tls_verify,
        patience=patience,
        credentials=credentials,
    )
    with registry:
        registry.origin.auth.wants_identity = True
        registry.ping()
        token = registry.origin.auth.identity_token
    return Credentials(credentials.username, identity_token=token) if token else credentials


def login_path() -> str:
    """The file that a login is written to."""
    home = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    return os.environ.get("REGISTRY_AUTH_FILE") or os.path.join(home, "config.json")


def store_login(server: Server, credentials: Credentials, path: str) -> str:
    """Remember a login; returns in words where it is now: the file, or the file's helper."""
    with _changed(path) as config:
        helper = _helper_for(config, server)
        auths = _table(config, "auths", path)
        for key in server.keys:
            auths.pop(key, None)
        if helper is not None:
            token = credentials.identity_token  # helpers' word for it is a user of this name
            secret = {
                "ServerURL": server.key,
                "Username": "<token>" if token else credentials.username,
                "Secret": token or credentials.password,
            }
            _run(helper, "store", json.dumps(secret))
            auths[server.key] = {}  # as Docker does: so that one sees where there are logins
            return f"credential helper '{helper}'"
        pair = f"{credentials.username}:{credentials.password}".encode()
        entry = {"auth": base64.b64encode(pair).decode("ascii")}
        if credentials.identity_token:
            entry["identitytoken"] = credentials.identity_token
        auths[server.key] = entry
    return f"'{path}'"


def erase_login(server: Server, path: str) -> bool:
    """Forget a login that `path` or its helper has; False where it has none."""
    if not os.path.exists(path):
        return False
    with _changed(path) as config:
        auths = _table(config, "auths", path)
        found = [key for key in server.keys if key in auths]
        helper = _helper_for(config, server)
        if helper is not None:
            is_kept = run_helper(helper, "get", server.key.encode())[0] == 0
            if is_kept:
                _run(helper, "erase", server.key)
                found.append(helper)
        for key in found:
            auths.pop(key, None)
    return bool(found)


def servers(path: str) -> list[Server]:
    """Every registry that the file has a login for."""
    found: dict[Server, None] = {}
    for key in _table(_read(path), "auths", path):
        try:
            found[parse_server(key)] = None
        except InvalidArgument:
            continue  # not a name that scow would ever look for
    return list(found)


def login_files() -> list[str]:
    """The files that logins are looked for in, as far as they are there."""
    return [path for path in dict.fromkeys(config_paths()) if os.path.exists(path)]


def _helper_for(config: dict[str, object], server: Server) -> str | None:
    """The program that keeps logins for a registry, if one does."""
    helpers = config.get("credHelpers")
    name = None
    if isinstance(helpers, dict):
        name = next((helpers[key] for key in server.keys if key in helpers), None)
    name = name or config.get("credsStore")
    if not name:
        return None
    if not isinstance(name, str) or not HELPER_NAME.fullmatch(name):
        raise InvalidArgument(f"credential helper {quote(str(name))} is not a valid name")
    return f"docker-credential-{name}"


def _run(program: str, action: str, text: str) -> None:
    status = run_helper(program, action, text.encode())[0]
    if status != 0:
        raise PermissionDenied(
            f"credential helper '{program}' cannot {action} a login (status {status})",
            hint="its keychain may be locked",
        )


def _table(config: dict[str, object], key: str, path: str) -> dict[str, object]:
    table = config.setdefault(key, {})
    if table is None:
        table = config[key] = {}
    if not isinstance(table, dict):
        raise InvalidArgument(f"invalid credentials file '{path}': '{key}' is not an object")
    return table


def _read(path: str) -> dict[str, object]:
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_DOCUMENT_BYTES + 1)
    except FileNotFoundError:
        return {}
    if not data.strip():
        return {}
    what = f"credentials file '{path}'"
    check_document(data, what)
    config = json.loads(data)
    if not isinstance(config, dict):
        raise InvalidArgument(f"invalid {what}: it is not an object")
    return config


@contextmanager
def _changed(path: str) -> Iterator[dict[str, object]]:
    """The content of a file, written back when the block ends well, and only if it is another."""
    path = os.path.realpath(path)  # dot files are often links to where they are kept
    directory = os.path.dirname(path)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        lock = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            config = _read(path)
            before = json.dumps(config)
            yield config
            if json.dumps(config) != before:
                _replace(path, json.dumps(config, indent="\t", ensure_ascii=False).encode())
                os.fsync(lock)
        finally:
            os.close(lock)
    except OSError as e:
        raise PermissionDenied(
            f"cannot write credentials '{path}': {(e.strerror or '').lower()}"
        ) from e


def _replace(path: str, data: bytes) -> None:
    import tempfile

    fd, temporary = tempfile.mkstemp(prefix=".scow-login-", dir=os.path.dirname(path))  # mode 0600
    try:
        with open(fd, "wb") as file:
            file.write(data)
            file.flush()
            if os.path.exists(path) and os.geteuid() == 0:
                owner = os.stat(path)  # root may log in for another user (sudo keeps HOME)
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
