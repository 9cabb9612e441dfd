"""CNI: networks that plugins make, by the specification's version 1.1 (configuration and execution).

A list of plugins is read from a directory, the first in the order of file names. ADD runs them one after
the other, each with what the one before it gave; DEL runs them backwards. The caller keeps the result:
DEL and CHECK want it back. What must not be here: where it is kept, and what a pod is.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

import msgspec

from scow.native.errors import InvalidArgument, NotFound, ScowError

DEFAULT_CONFIG_DIR = "/etc/cni/net.d"
DEFAULT_PLUGIN_DIRS = ("/opt/cni/bin", "/usr/lib/cni")
INTERFACE = "eth0"
PLUGIN_TIMEOUT_S = 60.0
MAX_CONFIG_BYTES = 1 << 20
MAX_RESULT_BYTES = 1 << 20
# What we speak; a list may ask for an older version, and plugins then answer in that.
VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
# Plugins of an older version know no CHECK, and no prevResult in DEL.
_CHECK_SINCE = (0, 4, 0)

Document = dict[str, object]


class NetworkList(msgspec.Struct, frozen=True):
    """One network: its plugins in order, as their configurations."""

    name: str
    version: str
    plugins: tuple[Document, ...]
    checks: bool = True
    path: str = ""


class Endpoint(msgspec.Struct, frozen=True):
    """What is connected: `netns` is a path, "" when it is gone. `offers` are the capability arguments
    (portMappings, ...) for the plugins that say they take them."""

    container_id: str
    netns: str
    arguments: tuple[tuple[str, str], ...] = ()
    offers: Document = {}


class Connection(msgspec.Struct, frozen=True):
    """What must be kept of an ADD: the configuration that was used, and what came of it."""

    network: NetworkList
    result: Document = {}


def decode_connection(data: bytes) -> Connection:
    """Read a connection that `msgspec.json.encode` wrote."""
    return msgspec.json.decode(data, type=Connection)


def load_network(directory: str, passed_over: str = "") -> NetworkList | None:
    """The first list in a directory; None where there is none. InvalidArgument for a broken one.

    A list of the name `passed_over` does not count.
    """
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return None
    for name in names:
        if name.endswith((".conflist", ".conf", ".json")):
            found = read_network(f"{directory}/{name}")
            if found.name != passed_over:
                return found
    return None


def read_network(path: str) -> NetworkList:
    """Read one list, or the one plugin of a .conf as a list of one."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_CONFIG_BYTES + 1)
        if len(data) > MAX_CONFIG_BYTES:
            raise _bad(path, f"it is longer than {MAX_CONFIG_BYTES} bytes")
        return parse_network(data, path)
    except OSError as error:
        raise _bad(path, (error.strerror or "cannot be read").lower()) from error


def parse_network(data: bytes, path: str) -> NetworkList:
    """Read the text of a list; `path` is for errors."""
    try:
        document = msgspec.json.decode(data, type=Document)
    except msgspec.MsgspecError as error:
        raise _bad(path, str(error)) from error
    name, version = document.get("name"), document.get("cniVersion", "0.1.0")
    if not isinstance(name, str) or not name or not _is_plain(name):
        raise _bad(path, "it has no name, or one that is not plain")
    if version not in VERSIONS:
        raise _bad(path, f"it is of version {version!r}, known are {', '.join(VERSIONS)}")
    plugins = document.get("plugins") if path.endswith(".conflist") else [document]
    if not isinstance(plugins, list) or not plugins:
        raise _bad(path, "it names no plugins")
    for plugin in plugins:
        kind = plugin.get("type") if isinstance(plugin, dict) else None
        # The name becomes a path (CVE-2021-20206).
        if not isinstance(kind, str) or not _is_plain(kind):
            raise _bad(path, f"plugin type {kind!r} is not a program's name")
    checks = document.get("disableCheck") not in (True, "true")
    return NetworkList(name, str(version), tuple(plugins), checks, path)


def _is_plain(text: str) -> bool:
    rest = text.replace("_", "").replace(".", "").replace("-", "")
    return rest.isalnum() and text.isascii() and text[0] not in ".-"


def _bad(path: str, why: str) -> InvalidArgument:
    return InvalidArgument(f"cannot use CNI configuration '{path}': {why}")


class Plugins:
    """The programs, and how they are called."""

    def __init__(self, directories: Sequence[str] = DEFAULT_PLUGIN_DIRS) -> None:
        self.directories = tuple(directories)

    def missing(self, network: NetworkList) -> list[str]:
        """The plugins of a network that are not installed."""
        kinds = [str(plugin["type"]) for plugin in network.plugins]
        return [kind for kind in kinds if self._find(kind) is None]

    def add(self, network: NetworkList, endpoint: Endpoint) -> Document:
        """Connect; the result is to be kept. After an error nothing is connected."""
        result: Document = {}
        try:
            for plugin in network.plugins:
                answer = self._call("ADD", network, plugin, endpoint, result)
                result = answer or result
        except BaseException:
            # The first error is the one to tell; a plugin that did nothing does nothing again.
            self._delete_quietly(network, endpoint, result)
            raise
        return result

    def _delete_quietly(self, network: NetworkList, endpoint: Endpoint, result: Document) -> None:
        for plugin in reversed(network.plugins):
            try:
                self._call("DEL", network, plugin, endpoint, result)
            except (ScowError, OSError):
                continue

    def delete(self, network: NetworkList, endpoint: Endpoint, result: Document) -> None:
        """Disconnect; goes on past errors and raises the first. Again is fine (specification, DEL)."""
        first: ScowError | None = None
        for plugin in reversed(network.plugins):
            try:
                self._call("DEL", network, plugin, endpoint, result)
            except ScowError as error:
                first = first or error
        if first is not None:
            raise first

    def check(self, network: NetworkList, endpoint: Endpoint, result: Document) -> None:
        """Ask each plugin whether all is still there; ScowError says what is not."""
        if not network.checks or _number(network.version) < _CHECK_SINCE:
            return
        for plugin in network.plugins:
            self._call("CHECK", network, plugin, endpoint, result)

    def _find(self, kind: str) -> str | None:
        for directory in self.directories:
            if os.access(f"{directory}/{kind}", os.X_OK):
                return f"{directory}/{kind}"
        return None

    def _call(
        self,
        command: str,
        network: NetworkList,
        plugin: Document,
        endpoint: Endpoint,
        previous: Document,
    ) -> Document:
        import subprocess

        kind = str(plugin["type"])
        program = self._find(kind)
        if program is None:
            raise NotFound(
                f"cannot {command} network '{network.name}': no CNI plugin '{kind}' in "
                f"{' or '.join(self.directories)}",
                hint="Debian has them in containernetworking-plugins",
            )
        document = self._document(command, network, plugin, endpoint, previous)
        try:
            done = subprocess.run(
                [program],
                input=msgspec.json.encode(document),
                env=self._environment(command, endpoint),
                capture_output=True,
                timeout=PLUGIN_TIMEOUT_S,
                check=False,
                cwd="/",
            )
        except subprocess.TimeoutExpired:
            raise ScowError(
                f"cannot {command} network '{network.name}': CNI plugin '{kind}' did not end "
                f"in {PLUGIN_TIMEOUT_S:g} s"
            ) from None
        if done.returncode != 0:
            raise ScowError(
                f"cannot {command} network '{network.name}': CNI plugin '{kind}': "
                f"{_words(done.stdout, done.stderr, done.returncode)}"
            )
        return _result(command, network, kind, done.stdout)

    def _document(
        self,
        command: str,
        network: NetworkList,
        plugin: Document,
        endpoint: Endpoint,
        previous: Document,
    ) -> Document:
        document = {**plugin, "name": network.name, "cniVersion": network.version}
        capabilities = document.pop("capabilities", None)
        taken = capabilities if isinstance(capabilities, Mapping) else {}
        wanted = {key: value for key, value in endpoint.offers.items() if taken.get(key)}
        if wanted:
            document["runtimeConfig"] = wanted
        if previous and (command == "ADD" or _number(network.version) >= _CHECK_SINCE):
            document["prevResult"] = previous
        return document

    def _environment(self, command: str, endpoint: Endpoint) -> dict[str, str]:
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": command,
            "CNI_CONTAINERID": endpoint.container_id,
            "CNI_NETNS": endpoint.netns,
            "CNI_IFNAME": INTERFACE,
            "CNI_ARGS": ";".join(f"{key}={value}" for key, value in endpoint.arguments),
            "CNI_PATH": ":".join(self.directories),
        }


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _words(out: bytes, err: bytes, code: int) -> str:
    """What a plugin said of its failure: the specification's error document, or its last line."""
    try:
        document = msgspec.json.decode(out, type=Document)
        text = f"{document.get('msg', '')} {document.get('details', '')}"
    except msgspec.MsgspecError:
        text = (err or out).decode(errors="replace").strip().rpartition("\n")[2]
    plain = "".join(c if c.isprintable() else " " for c in text).strip()
    return plain[:1024] or f"exit status {code}"


def _result(command: str, network: NetworkList, kind: str, out: bytes) -> Document:
    if command != "ADD" or not out.strip():
        return {}
    try:
        if len(out) > MAX_RESULT_BYTES:
            raise msgspec.DecodeError(f"{len(out)} bytes are too many")
        return msgspec.json.decode(out, type=Document)
    except msgspec.MsgspecError as error:
        raise ScowError(
            f"cannot ADD network '{network.name}': CNI plugin '{kind}' gave no result: {error}"
        ) from error


def addresses(result: Document) -> list[str]:
    """The addresses of a result, without prefix lengths, in its order."""
    found: list[str] = []
    listed = result.get("ips")
    for entry in listed if isinstance(listed, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("address"), str):
            found.append(entry["address"])
    for key in ("ip4", "ip6"):  # version 0.2.0 and before
        entry = result.get(key)
        if isinstance(entry, dict) and isinstance(entry.get("ip"), str):
            found.append(entry["ip"])
    return [text.partition("/")[0] for text in found]
