"""login and logout: who we are at a registry, for scow and for every tool that shares the files."""

from __future__ import annotations

import os
import sys

from scow.cli.registry_options import AUTHFILE, PLAIN_HTTP, TLS_VERIFY, ask_password, warn, wire
from scow.cli.table import Argument, Command, UsageError, Values, flag, text

MAX_PASSWORD_BYTES = 64 << 10
REGISTRY = Argument("REGISTRY", "Host, such as registry.example.com:5000 (docker.io)", count="?")


def _login(values: Values) -> int:
    from scow.image.credentials import Credentials, find_credentials
    from scow.image.login import check_login, login_path, parse_server, store_login
    from scow.native.errors import NotFound

    words = values.words("REGISTRY")
    server = parse_server(words[0] if words else "")
    how = wire("login", values)
    if values.flag("get-login"):
        found = find_credentials(server.host, server.path, warn)
        if found is None:
            raise NotFound(f"not logged in to {server}")
        print(found.username or "<token>")
        return 0
    user, password = values.text("username"), _given_password(values)
    if user is None:
        user = _ask_user(str(server))
    if password is None:
        password = ask_password()
    if not user or not password:
        raise UsageError("login: user name and password must not be empty")
    kept = check_login(server, Credentials(user, password), **how)
    place = store_login(server, kept, login_path())
    if place.startswith("'") and not kept.identity_token:
        warn(f"the password is kept in {place}, readable for its owner (base64 is no encryption)")
    print("Login Succeeded")
    return 0


def _given_password(values: Values) -> str | None:
    password = values.text("password")
    if not values.flag("password-stdin"):
        if password is not None:
            warn("others can see a password on the command line; use --password-stdin")
        return password
    if password is not None:
        raise UsageError("login: --password and --password-stdin exclude each other")
    if values.text("username") is None:
        raise UsageError("login: --password-stdin needs --username")
    data = sys.stdin.buffer.read(MAX_PASSWORD_BYTES + 1)
    if len(data) > MAX_PASSWORD_BYTES:
        raise UsageError("login: there is too much on the input for a password")
    return data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")


def _ask_user(server: str) -> str:
    if not sys.stdin.isatty():
        raise UsageError(
            "login: cannot ask for a user name: the input is not a terminal",
            hint="scow login --username USER --password-stdin < FILE",
        )
    print(f"Username for {server}: ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


LOGIN = Command(
    "login",
    "Log in to a registry",
    _login,
    description="The login is tried, then kept where Docker, Podman and skopeo find it, too: in "
    "$REGISTRY_AUTH_FILE, or in config.json below $DOCKER_CONFIG or ~/.docker, or in the credential "
    "helper that this file names. Where the registry gives a token for the password, that is kept.",
    arguments=(REGISTRY,),
    options=(
        text("-u", "--username", metavar="USER", help="The user name"),
        text("-p", "--password", metavar="TEXT", help="The password; others can see it here"),
        flag("--password-stdin", help="Read the password from the input"),
        flag("--get-login", help="Only print who is logged in"),
        AUTHFILE,
        PLAIN_HTTP,
        TLS_VERIFY,
    ),
    examples=(
        ("scow login registry.example.com", "asks for user and password"),
        ("scow login -u ci --password-stdin registry.example.com < token", "in a script"),
    ),
    needs_root="",
)


def _logout(values: Values) -> int:
    from scow.image.login import erase_login, login_files, parse_server, servers

    only, everything = values.text("authfile"), values.flag("all")
    files = [only] if only is not None else login_files()
    words = values.words("REGISTRY")
    if everything and words:
        raise UsageError("logout: --all takes no registry")
    wanted = parse_server(words[0] if words else "")
    targets = [(s, path) for path in files for s in (servers(path) if everything else [wanted])]
    done = [(server, path) for server, path in targets if erase_login(server, path)]
    for server, path in done:
        print(f"Removing login credentials for {server} from {os.path.abspath(path)}")
    if not done:
        print("Not logged in" if everything else f"Not logged in to {wanted}")
    return 0


LOGOUT = Command(
    "logout",
    "Forget the login to a registry",
    _logout,
    description="Removes it from every file that scow looks in, also if Docker or Podman wrote it.",
    arguments=(REGISTRY,),
    options=(flag("-a", "--all", help="Forget every login"), AUTHFILE),
    examples=(("scow logout registry.example.com", "forget one"),),
    needs_root="",
)
