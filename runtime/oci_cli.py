"""scow-oci: an OCI runtime with runc's command line, for engines that start containers by one.

What belongs here: global flags, the choice of the command, how an error is told. Commands import
what they need themselves: the interpreter's start is most of what a short one costs.
"""

from __future__ import annotations

import os
import sys
import time

from scow.native.errors import InvalidArgument, ScowError
from scow.runtime.oci_args import COMMANDS, GLOBAL, Flags, read_flags, switch, text

VERSION = "0.1.0"
_LONGEST = 8192  # of a message: names in it may be as long as a configuration
_USAGE = """usage: scow-oci [--root DIR] [--log FILE] [--log-format text|json] [--debug] COMMAND ...

commands: """

# Where a command is; the others are in oci_control.
_MODULES = {
    "start": "oci_start",
    "create": "oci_process",
    "run": "oci_process",
    "exec": "oci_process",
    "update": "oci_extra",
    "events": "oci_extra",
    "features": "oci_extra",
    "spec": "oci_extra",
    "checkpoint": "oci_extra",
    "restore": "oci_extra",
    "warm": "oci_warm",
}
_WITHOUT_CODEC = ("oci_start", "oci_control", "oci_warm")


class Log:
    """Where errors and warnings go: standard error, and --log for the engine."""

    def __init__(self, flags: Flags) -> None:
        self._path = text(flags, "log")
        self._format = text(flags, "log-format", "text")
        self._debug = switch(flags, "debug")
        if self._format not in ("text", "json"):
            raise InvalidArgument(f'invalid log-format "{self._format}"')

    def tell(self, level: str, message: str) -> None:
        """One line, in the form that conmon and containerd's shim read."""
        if level == "debug" and not self._debug:
            return
        if len(message) > _LONGEST:
            message = f"{message[:_LONGEST]}..."
        line = self._line(level, message)
        path = self._path.removeprefix("file:")
        if path:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            try:
                fd = os.open(path, flags, 0o644)
            except OSError:
                pass  # the error itself still reaches standard error
            else:
                os.write(fd, line)
                os.close(fd)
        if not path or level == "error":
            try:
                os.write(2, line if not path else _one_line(message))
            except OSError:
                pass  # nobody listens

    def _line(self, level: str, message: str) -> bytes:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        if self._format == "json":
            from scow.runtime import smalljson

            return f"{smalljson.encode({'level': level, 'msg': message, 'time': now})}\n".encode()
        quoted = message.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'time="{now}" level={level} msg="{quoted}"\n'.encode(errors="replace")


def _one_line(message: str) -> bytes:
    quoted = message.replace("\\", "\\\\").replace("\n", "\\n")
    return f"{quoted}\n".encode(errors="replace")


def main() -> None:
    """The entry point without a front: `python -m scow.runtime.oci_cli`."""
    sys.exit(run(sys.argv[1:]))


def start_cold(reason: str, arguments: list[str]) -> None:
    """The entry point of an interpreter that the front had to start (native/front.c)."""
    code = run(arguments, cold=reason)
    sys.stdout.flush()
    os._exit(code)  # taking the interpreter apart costs 3 ms and tells nobody anything


def run(arguments: list[str], cold: str = "") -> int:
    """Carry out one command line; gives the exit status."""
    try:
        flags, operands = read_flags(arguments, GLOBAL, strict_order=True)
        log = Log(flags)
    except ScowError as error:
        os.write(2, f"{error}\n".encode(errors="replace"))
        return 1
    if switch(flags, "version"):
        from scow.runtime.oci_state import OCI_VERSION

        print(f"scow-oci version {VERSION}\nspec: {OCI_VERSION}")
        return 0
    if switch(flags, "help") or not operands or operands[0] in ("help", "h"):
        print(_USAGE + " ".join(COMMANDS))
        return 0
    command = operands[0]
    if cold:
        log.tell("debug", f"no warm process does this: {cold}")
    try:
        return _dispatch(command, operands[1:], flags, log)
    except (ScowError, OSError) as error:
        log.tell("error", _words(command, error))
        return 255 if command == "exec" else 1


def _words(command: str, error: ScowError | OSError) -> str:
    message = str(error)
    if isinstance(error, OSError):
        name = f" '{os.fsdecode(error.filename)}'" if error.filename else ""
        message = f"{(error.strerror or str(error)).lower()}{name}"
    elif error.hint:
        message += f" ({error.hint})"
    if command in ("create", "run", "start"):
        return f"scow-oci {command} failed: unable to start container process: {message}"
    if command == "exec":
        return f"exec failed: unable to start container process: {message}"
    return message


def _dispatch(command: str, arguments: list[str], flags: Flags, log: Log) -> int:
    table = COMMANDS.get(command)
    if table is None:
        raise InvalidArgument(f"No help topic for '{command}'")
    own, operands = read_flags(arguments, table, strict_order=command in ("exec", "ps"))
    root = text(flags, "root") or "/run/scow-oci"
    if switch(flags, "systemd-cgroup") or text(flags, "cgroup-manager") == "systemd":
        own["systemd-cgroup"] = True
    if text(flags, "criu"):
        own["criu"] = text(flags, "criu")
    name = _MODULES.get(command, "oci_control")
    if name not in _WITHOUT_CODEC:
        from scow.native.codec import import_codec

        import_codec()
    # `fromlist` makes it give the module itself, not the package
    commands = __import__(f"scow.runtime.{name}", fromlist=["COMMANDS"])
    return int(commands.COMMANDS[command](root, own, operands, log.tell))


if __name__ == "__main__":
    main()
