"""The one strict parser of each kind of value that people type or send.

The command line, the API and config files call the same functions, so the same wrong value gets
the same message. `option` is what the user wrote the value for (`--memory`, or a field's name).
What must not go in: defaults, looking into images, anything that changes the host.

Python is too friendly here: int() takes spaces, underscores and Unicode digits, float() takes
`inf`, `$` in a pattern matches before a newline. So every grammar is spelled out on ASCII.
"""

from __future__ import annotations

# ruff: noqa: SIM905
import os

from scow.cri.options import UserSpec
from scow.native.errors import InvalidArgument, Unsupported
from scow.native.fd import OwnedFd

MAX_INT64 = 2**63 - 1
MAX_ID = 2**31 - 1  # Docker's limit; 2**32-1 means "no change" to the kernel
MAX_STRING_BYTES = 128 * 1024  # execve(2): MAX_ARG_STRLEN, with the final NUL
MAX_ENV_FILE_BYTES = 1024 * 1024
MAX_LABEL_BYTES = 64 * 1024
RESERVED_LABEL_PREFIX = "scow."

DIGITS = frozenset("0123456789")
LETTERS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
ALNUM = LETTERS | DIGITS
NAME = ALNUM | frozenset("_.-")
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}

# signal(7), x86 and arm numbers. The signal module costs 2 ms at start and knows no RTMIN+n.
SIGNALS = {
    name: number
    for number, name in enumerate(
        "HUP INT QUIT ILL TRAP ABRT BUS FPE KILL USR1 SEGV USR2 PIPE ALRM TERM STKFLT CHLD CONT "
        "STOP TSTP TTIN TTOU URG XCPU XFSZ VTALRM PROF WINCH IO PWR SYS".split(),
        start=1,
    )
} | {"IOT": 6, "CLD": 17, "POLL": 29}
_RTMIN, _RTMAX = 34, 64


# capability.h up to CAP_CHECKPOINT_RESTORE (40), in the order of their numbers.
CAPABILITIES = frozenset(
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO "
    "SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME "
    "SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG "
    "WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE".split()
)


def quote(text: str) -> str:
    """Show a hostile value on one line: control characters escaped, cut at 256 bytes."""
    raw = text.encode("utf-8", "surrogateescape")
    shown = raw[:256].decode("utf-8", "backslashreplace")
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown)
    return f"'{shown}{'...' if len(raw) > 256 else ''}'"


def invalid(option: str, text: str, reason: str, *, hint: str | None = None) -> InvalidArgument:
    """The error for a value that cannot be right."""
    return InvalidArgument(f"invalid {option} {quote(text)}: {reason}", hint=hint)


def parse_int(option: str, text: str, *, low: int, high: int = MAX_INT64, note: str = "") -> int:
    """A plain decimal number between `low` and `high`."""
    digits = text[1:] if text[:1] == "-" else text
    span = f"{low} to {high}" if high != MAX_INT64 else f"{low} or more"
    if not digits or len(digits) > 20 or not DIGITS.issuperset(digits):
        raise invalid(option, text, f"not a whole number; {note or span}")
    value = int(text)
    if not low <= value <= high:
        raise invalid(option, text, f"out of range; {note or span}")
    return value


def decimal(text: str, places: int) -> int | None:
    """`1.5` as an integer scaled by 10**places; None when it is not such a number."""
    whole, dot, fraction = text.partition(".")
    if not whole or len(text) > 40 or not DIGITS.issuperset(whole + fraction):
        return None
    if (dot and not fraction) or len(fraction) > places:
        return None
    scale: int = 10**places
    return int(whole) * scale + int((fraction or "0").ljust(places, "0"))


def parse_size(option: str, text: str, *, minimum: int = 0) -> int:
    """Bytes from `512`, `64m`, `1.5g`, `2GiB`; units are powers of 1024, as in Docker."""
    lower = text.lower()
    number = lower.rstrip("bkmgti")
    unit = lower[len(number) :]
    for suffix in ("ib", "b", "i"):
        if len(unit) > len(suffix) and unit.endswith(suffix):
            unit = unit[: -len(suffix)]
            break
    scaled = decimal(number, 18) if text.isascii() else None
    if scaled is None or unit not in _UNITS:
        raise invalid(option, text, "not a size; write a number and b, k, m, g or t, such as 64m")
    value = scaled * _UNITS[unit] // 10**18
    if value > MAX_INT64:
        raise invalid(option, text, f"larger than the greatest size, {MAX_INT64} bytes")
    if value < minimum:
        raise invalid(option, text, f"{value} bytes is less than the minimum of {minimum} bytes")
    return value


def parse_user(option: str, text: str) -> UserSpec:
    """`USER`, `UID`, `USER:GROUP`, `UID:GID`; names are looked up in the image later."""
    user, colon, group = text.partition(":")
    return UserSpec(
        parse_user_or_group(option, user, text),
        parse_user_or_group(option, group, text) if colon else None,
    )


def parse_user_or_group(option: str, text: str, whole: str | None = None) -> int | str:
    """One name or one id. An id above 2147483647 or a half-number is never taken for a name."""
    whole = text if whole is None else whole
    if text and DIGITS.issuperset(text):
        if len(text) > 10 or int(text) > MAX_ID:
            raise invalid(option, whole, f"an id is at most {MAX_ID}")
        return int(text)
    good = text[:1] in LETTERS or text[:1] == "_"
    if not good or len(text) > 256 or not (NAME | {"$"}).issuperset(text):
        raise invalid(option, whole, "not of the form NAME|UID[:GROUP|GID]")
    return text


def parse_name(option: str, text: str) -> str:
    """A container's name."""
    if not text or len(text) > 128 or text[0] not in ALNUM or not NAME.issuperset(text):
        raise invalid(
            option, text, "a name is 1 to 128 of [a-zA-Z0-9_.-] and begins with a letter or a digit"
        )
    if len(text) == 64 and frozenset("0123456789abcdef").issuperset(text):
        raise invalid(option, text, "64 hexadecimal digits are reserved for ids")
    return text


def check_text(option: str, text: str, what: str = "value") -> str:
    """Refuse what no execve can carry: a NUL, or more than 128 KiB."""
    if "\0" in text:
        raise InvalidArgument(f"invalid {option}: the {what} holds a NUL byte")
    size = len(os.fsencode(text))
    if size >= MAX_STRING_BYTES:
        raise InvalidArgument(
            f"invalid {option}: {what} of {size} bytes, more than the kernel's {MAX_STRING_BYTES - 1}"
        )
    return text


def parse_env(option: str, text: str, *, host: dict[str, str] | None = None) -> str | None:
    """`KEY=VALUE`, or `KEY` for the caller's own value: None when the caller has none.

    Messages name the key only; values are often secrets.
    """
    key, equals, _ = text.partition("=")
    if not key:
        raise InvalidArgument(f"invalid {option}: a variable needs a name before the '='")
    check_text(option, text, f"variable {quote(key)}")
    if equals:
        return text
    value = (os.environ if host is None else host).get(key)
    return None if value is None else check_text(option, f"{key}={value}", f"variable {quote(key)}")


def read_env_file(option: str, path: str, *, host: dict[str, str] | None = None) -> list[str]:
    """The variables of a file: `KEY=VALUE` or `KEY` lines, `#` begins a comment line."""
    found: list[str] = []
    for number, line in enumerate(_read_lines(option, path), start=1):
        line = line.lstrip()
        if not line or line.startswith("#"):
            continue
        key = line.partition("=")[0]
        if not key or "\0" in line or any(c.isspace() for c in key):
            reason = "NUL byte" if "\0" in line else "no name" if not key else "blank in the name"
            raise InvalidArgument(f"invalid {option} {quote(path)}: line {number}: {reason}")
        variable = parse_env(f"{option} {quote(path)} line {number}", line, host=host)
        if variable is not None:
            found.append(variable)
    return found


def read_label_file(option: str, path: str) -> dict[str, str]:
    """The labels of a file, one `KEY=VALUE` a line."""
    labels: dict[str, str] = {}
    for line in _read_lines(option, path):
        if line.strip() and not line.lstrip().startswith("#"):
            key, value = parse_label(option, line.strip())
            labels[key] = value
    return labels


def _read_lines(option: str, path: str) -> list[str]:
    import stat

    try:
        # A fifo would block for ever and a device may never end: look before reading.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot read {option} {quote(path)}: {reason(error)}") from error
    with OwnedFd(fd):
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise InvalidArgument(f"cannot read {option} {quote(path)}: not a regular file")
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_ENV_FILE_BYTES + 1)
    if len(data) > MAX_ENV_FILE_BYTES:
        raise InvalidArgument(f"cannot read {option} {quote(path)}: larger than 1 MiB")
    data = data.removeprefix(b"\xef\xbb\xbf")
    return [os.fsdecode(line.removesuffix(b"\r")) for line in data.split(b"\n")]


def reason(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return (text or "unknown reason").lower()


def parse_label(option: str, text: str) -> tuple[str, str]:
    """`KEY=VALUE` or `KEY`; keys that begin with `scow.` are ours."""
    key, _, value = text.partition("=")
    if not key or any(c.isspace() or not c.isprintable() for c in key):
        raise invalid(option, key, "a label is KEY=VALUE, and the key has no blanks")
    if key.startswith(RESERVED_LABEL_PREFIX):
        raise invalid(option, key, f"keys that begin with '{RESERVED_LABEL_PREFIX}' are reserved")
    if len(text) > MAX_LABEL_BYTES or "\0" in value:
        raise invalid(option, key, f"holds a NUL byte or more than {MAX_LABEL_BYTES} bytes")
    return key, value


def parse_signal(option: str, text: str) -> int:
    """`TERM`, `SIGTERM`, `15`, `RTMIN+3`."""
    name = text.upper().removeprefix("SIG") if text.isascii() else ""
    if DIGITS.issuperset(text) and 0 < len(text) < 3 and 1 <= int(text) <= _RTMAX:
        return int(text)
    if name in SIGNALS:
        return SIGNALS[name]
    for base, value, sign in (("RTMIN", _RTMIN, "+"), ("RTMAX", _RTMAX, "-")):
        offset = name.removeprefix(base)
        if name == base:
            return value
        if name.startswith(base + sign) and DIGITS.issuperset(offset[1:]) and len(offset) in (2, 3):
            number = value + int(offset)
            if _RTMIN <= number <= _RTMAX:
                return number
    raise invalid(option, text, "a signal is a name (TERM, SIGKILL, RTMIN+3) or a number 1 to 64")


def parse_timeout(option: str, text: str) -> int:
    """Seconds; -1 waits for ever."""
    return parse_int(option, text, low=-1, high=2**31 - 1, note="seconds, or -1 to wait for ever")


def parse_working_dir(option: str, text: str) -> str:
    """An absolute path inside the container."""
    if not text.startswith("/"):
        raise invalid(option, text, "must be an absolute path, such as /srv")
    return check_path(option, text)


def check_path(option: str, text: str) -> str:
    """A path that the kernel could take."""
    if "\0" in text or len(os.fsencode(text)) >= 4096:
        raise invalid(option, text, "a path holds no NUL byte and is shorter than 4096 bytes")
    return text


def parse_capability(option: str, text: str) -> str:
    """`NET_ADMIN`, `cap_net_admin` or `ALL`, as `CAP_NET_ADMIN` or `ALL`."""
    name = text.upper().removeprefix("CAP_") if text.isascii() else ""
    if name == "ALL" and text.upper() == "ALL":
        return name
    if name not in CAPABILITIES:
        import difflib

        close = difflib.get_close_matches(name, CAPABILITIES, 1)
        raise invalid(
            option,
            text,
            "no such capability",
            hint=f"did you mean '{close[0]}'?" if close else None,
        )
    return "CAP_" + name


def parse_platform(option: str, text: str) -> str:
    """`OS/ARCHITECTURE[/VARIANT]`, lower case."""
    parts = text.split("/")
    word = frozenset("abcdefghijklmnopqrstuvwxyz0123456789_.-")
    if not 2 <= len(parts) <= 3 or not all(part and word.issuperset(part) for part in parts):
        raise invalid(option, text, "not of the form OS/ARCHITECTURE, such as linux/arm64")
    if parts[0] != "linux":
        raise Unsupported(f"invalid {option} {quote(text)}: scow runs linux images only")
    return text


def parse_bool(option: str, text: str) -> bool:
    """What Go's ParseBool takes, since Docker's flags take that."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise invalid(option, text, "true or false")
