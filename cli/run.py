"""run and create."""

from __future__ import annotations

import os
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

from scow.cli.container_flags import CREATE_OPTIONS, DETACH_KEYS, SIG_PROXY
from scow.cli.registry_options import REMOTE_OPTIONS, connection
from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, many

if TYPE_CHECKING:
    from scow.cri.options import ContainerOptions
    from scow.image.registry import Connection
    from scow.image.store import Image

_IMAGE = Argument(
    "IMAGE", "Name of the image, such as busybox or host:5000/app:v2", complete="images"
)
_COMMAND = Argument(
    "COMMAND", "Program and its arguments; the image's own when left out", count="*"
)
_STREAMS = {"stdin": 0, "stdout": 1, "stderr": 2}
_ROOT = "it makes namespaces, mounts and cgroups"


def _prepare(values: Values, *, detach: bool) -> tuple[Image, ContainerOptions]:
    """Check all options, then make sure that the image is there."""
    from scow.cli.container_options import container_options

    image_name = values.word("IMAGE")
    options = container_options(values, image_name, values.words("COMMAND"), detach=detach)
    policy = values.text("pull") or "missing"
    if policy not in ("always", "missing", "never"):
        raise UsageError(f"invalid --pull '{policy}': always, missing or never")
    platform = values.text("platform")
    if platform is not None:
        from scow.cri.parse import parse_platform

        platform = parse_platform("--platform", platform)
    image = _image(values, image_name, policy, platform)
    if values.flag("publish-all"):
        options = _publish_exposed(image, options)
    return image, options


def _image(values: Values, name: str, policy: str, platform: str | None) -> Image:
    from scow.cli.progress import PullOnDemand

    is_told = any(values.given(option.key) for option in REMOTE_OPTIONS)
    how: Connection = connection("--pull", values) if is_told else {}
    with PullOnDemand(name) as sink:
        return service().ensure_image(name, policy, platform, sink, **how)


def _make(values: Values, image: Image, options: ContainerOptions) -> str:
    pod = values.text("pod")
    if pod is None:
        return service().create(image, options)
    from scow.cri.pods import Pods

    pods = Pods(service())
    return pods.create_container(pods.find(pod), image, options)


def _publish_exposed(image: Image, options: ContainerOptions) -> ContainerOptions:
    from msgspec.structs import replace

    from scow.netns.ports import parse_port

    given = {(port.container_port, port.protocol) for port in options.network.ports}
    ports = list(options.network.ports)
    for exposed in image.config.exposed_ports:
        ports += [p for p in parse_port(exposed) if (p.container_port, p.protocol) not in given]
    return replace(options, network=replace(options.network, ports=tuple(ports)))


class _IdFile:
    """--cidfile: made before the container, so that it cannot fail after; removed on failure."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._done = False

    def __enter__(self) -> _IdFile:
        if self._path is not None:
            try:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = os.open(self._path, flags, 0o644)
            except OSError as error:
                raise UsageError(
                    f"cannot create --cidfile '{self._path}': {(error.strerror or '').lower()}",
                    hint="remove the file first, it is of an earlier container"
                    if isinstance(error, FileExistsError)
                    else None,
                ) from error
        return self

    def write(self, container_id: str) -> None:
        """Note the id."""
        if self._path is not None:
            os.write(self._fd, container_id.encode())
        self._done = True

    def __exit__(self, *_: object) -> None:
        if self._path is not None:
            os.close(self._fd)
            if not self._done:
                os.unlink(self._path)


def _create(values: Values) -> int:
    with _IdFile(values.text("cidfile")) as id_file:
        image, options = _prepare(values, detach=False)
        container_id = _make(values, image, options)
        id_file.write(container_id)
    print(container_id)
    return 0


CREATE = Command(
    "create",
    "Make a container without starting it",
    _create,
    description="Prints its id; 'scow start' runs it. The options are those of 'scow run'.",
    arguments=(_IMAGE, _COMMAND),
    options=CREATE_OPTIONS,
    examples=(("scow create --name web -p 8080:80 nginx", "make it"), ("scow start web", "run it")),
    interspersed=False,
    needs_root=_ROOT,
)


def _run(values: Values) -> int:
    from scow.cli.attachment import follow, require_terminal
    from scow.cli.terminal import parse_detach_keys

    detach, terminal = values.flag("detach"), values.flag("tty")
    stdin = values.flag("interactive") and not detach
    streams = _attached(values, detach=detach)
    keys = parse_detach_keys("--detach-keys", values.text("detach-keys") or "")
    explain, dry_run = values.flag("explain"), values.flag("dry-run")
    if dry_run and not explain:
        raise UsageError("run: --dry-run needs --explain: it stops after the explanation")
    if not dry_run:
        require_terminal("run", stdin=stdin, terminal=terminal)
    with _IdFile(None if dry_run else values.text("cidfile")) as id_file, ExitStack() as undo:
        image, options = _prepare(values, detach=detach)
        container_id = _make(values, image, options)
        undo.callback(_discard, container_id)
        if explain and _explain(container_id, dry_run=dry_run):
            return 0
        connection = service().start(container_id, attach=not detach)
        id_file.write(container_id)
        undo.pop_all()
    if connection is None:
        print(container_id)
        return 0
    return follow(
        container_id,
        options.name or container_id[:12],
        connection,
        terminal=terminal,
        stdin=stdin and 0 in streams,
        detach_keys=keys,
        forward_signals=values.flag("sig-proxy"),
        streams=streams,
        finish=True,
    )


def _attached(values: Values, *, detach: bool) -> frozenset[int]:
    names = values.many("attach")
    if not names:
        return frozenset((0, 1, 2))
    if detach:
        raise UsageError("run: --attach and --detach exclude each other")
    for name in names:
        if name.lower() not in _STREAMS:
            raise UsageError(f"invalid --attach '{name}': stdin, stdout or stderr")
    return frozenset(_STREAMS[name.lower()] for name in names)


def _explain(container_id: str, *, dry_run: bool) -> bool:
    """Tell what a start will ask of the kernel; True when that was all that was wanted."""
    from scow.cli.explain import explain_plan

    out = sys.stdout if dry_run else sys.stderr
    before, plan = service().explain(container_id)
    print(explain_plan(plan, before), file=out, flush=True)
    return dry_run


def _discard(container_id: str) -> None:
    from scow.native.errors import ScowError

    try:
        service().remove(container_id, force=True, volumes=True)
    except ScowError:
        pass  # the error that brought us here is the one to tell


RUN = Command(
    "run",
    "Make a container from an image and run a program in it",
    _run,
    description="Fetches the image when it is not here yet. Without -d the program's output "
    "is shown and Ctrl-C reaches it; the exit code is the program's own, 125 when scow failed, "
    "126 when the program cannot be executed, 127 when it is not in the image.",
    arguments=(_IMAGE, _COMMAND),
    options=(
        flag(
            "-d",
            "--detach",
            help="Run in the background and print the container's id",
            section="What runs",
        ),
        *CREATE_OPTIONS,
        many("-a", "--attach", metavar="STREAM", help="Show only stdin, stdout or stderr"),
        DETACH_KEYS,
        SIG_PROXY,
        flag("--explain", help="Tell step by step what is asked of the kernel, and why"),
        flag("--dry-run", help="With --explain: stop there"),
    ),
    examples=(
        ("scow run --rm scow/hello", "see what isolates a container"),
        ("scow run --rm -it busybox sh", "a shell inside; 'exit' ends it"),
        ("scow run -d --name web -p 8080:80 nginx", "a server in the background"),
        ("scow run --rm -m 64m --cpus 0.5 app", "with limits"),
        ("scow run --explain --dry-run busybox true", "learn what would happen"),
    ),
    interspersed=False,
    needs_root=_ROOT,
)
