"""inspect: everything about containers and images, as JSON in Docker's shape."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text
from scow.cli.targets import tell
from scow.native.errors import InvalidArgument, NotFound, ScowError

if TYPE_CHECKING:
    from scow.image.store import Image


def _inspect(values: Values) -> int:
    kind = values.text("type")
    if kind not in (None, "", "container", "image"):
        raise UsageError(f"invalid --type '{kind}': container or image")
    if values.flag("plan"):
        return _plans(values.words("NAME"))
    form = values.text("format")
    template = None
    if form and form != "json":
        from scow.cli.template import Template

        template = Template(form)
    found: list[dict[str, object]] = []
    status = 0
    for name in values.words("NAME"):
        try:
            found.append(describe(name, kind or ""))
        except ScowError as error:
            tell(error)
            status = 1
    if template is None:
        print(_json(found, compact=form == "json"))
    else:
        for thing in found:
            sys.stdout.write(template.render(thing) + "\n")
    return status


def _json(found: list[dict[str, object]], *, compact: bool) -> str:
    import json

    if compact:
        return json.dumps(found, ensure_ascii=False, separators=(",", ":"))
    return json.dumps(found, ensure_ascii=False, indent=4)


def describe(name: str, kind: str) -> dict[str, object]:
    """A container by that name, else an image."""
    if kind != "image":
        try:
            return service().inspect(service().find(name))
        except (NotFound, InvalidArgument):
            if kind == "container":
                raise
    try:
        return describe_image(service().images.get(name))
    except NotFound as error:
        if kind == "image":
            raise
        raise NotFound(f"no such container or image: '{name[:256]}'") from error


def describe_image(image: Image) -> dict[str, object]:
    """An image in Docker's shape."""
    config = image.config
    return {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.digests),
        "Created": image.created,
        "Config": {
            "User": config.user,
            "ExposedPorts": {port: {} for port in config.exposed_ports},
            "Env": list(config.env),
            "Cmd": None if config.cmd is None else list(config.cmd),
            "Volumes": {path: {} for path in config.volumes},
            "WorkingDir": config.working_dir,
            "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
            "Labels": dict(config.labels),
            "StopSignal": config.stop_signal,
        },
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.size,
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Descriptor": {"digest": image.manifest_digest},
    }


def _plans(names: list[str]) -> int:
    from scow.cli.explain import explain_plan

    for name in names:
        before, plan = service().explain(service().find(name))
        print(explain_plan(plan, before))
    return 0


INSPECT = Command(
    "inspect",
    "Show everything about containers or images, as JSON",
    _inspect,
    arguments=(Argument("NAME", "Container or image, by name or id", count="+", complete="any"),),
    options=(
        text(
            "-f",
            "--format",
            metavar="TEMPLATE",
            help="A Go template such as '{{.State.Pid}}', or 'json'",
        ),
        text("--type", metavar="TYPE", help="Look for a container or an image only"),
        flag("--plan", help="Tell what a start of the container asks of the kernel"),
    ),
    examples=(
        ("scow inspect -f '{{.State.OOMKilled}}' web", "one value"),
        ("scow inspect --plan web", "the system calls that make it"),
    ),
)
