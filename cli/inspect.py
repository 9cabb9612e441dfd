"""inspect: everything about containers and images, as JSON in Docker's shape."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text
from scow.cli.targets import tell
from scow.native.errors import InvalidArgument, NotFound, ScowError

if TYPE_CHECKING:
    from scow.image.config import ImageConfig
    from scow.image.store import Image, ImageStore


def _inspect(values: Values) -> int:
    kind = values.text("type")
    if kind not in (None, "", "container", "image"):
        raise UsageError(f"invalid --type '{kind}': container or image")
    if values.flag("plan"):
        return _plans(values.words("NAME"))
    return _show(values.words("NAME"), kind or "", values.text("format"))


def _show(names: list[str], kind: str, form: str | None) -> int:
    template = None
    if form and form != "json":
        from scow.cli.template import Template

        template = Template(form)
    found: list[dict[str, object]] = []
    status = 0
    for name in names:
        try:
            found.append(describe(name, kind))
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
        return describe_image(service().images, service().images.get(name))
    except NotFound as error:
        if kind == "image":
            raise
        raise NotFound(f"no such container or image: '{name[:256]}'") from error


def describe_image(images: ImageStore, image: Image) -> dict[str, object]:
    """An image in Docker's shape, or an artifact."""
    if image.artifact_type:
        from scow.image.artifacts import describe_artifact

        return describe_artifact(images, image)
    from scow.image.history import read_details

    details = read_details(images, image)
    top, *below = images.layer_paths(image) or [""]
    return {
        "Id": image.id,
        "RepoTags": list(image.names),
        "RepoDigests": list(image.digests),
        "Parent": "",
        "Comment": details.steps[-1].comment if details.steps else "",
        "Created": image.created,
        "Author": details.author,
        "Config": _image_config(image.config, details.onbuild),
        "Architecture": image.architecture,
        "Variant": image.variant,
        "Os": image.os,
        "Size": image.size,
        "GraphDriver": {
            "Name": "overlay",
            "Data": {"UpperDir": top, "LowerDir": ":".join(below)},
        },
        "RootFS": {"Type": "layers", "Layers": list(image.diff_ids)},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
        "Descriptor": {"digest": image.manifest_digest},
    }


def _image_config(config: ImageConfig, onbuild: tuple[str, ...]) -> dict[str, object]:
    described: dict[str, object] = {
        "User": config.user,
        "ExposedPorts": {port: {} for port in config.exposed_ports},
        "Env": list(config.env),
        "Cmd": None if config.cmd is None else list(config.cmd),
        "Volumes": {path: {} for path in config.volumes},
        "WorkingDir": config.working_dir,
        "Entrypoint": None if config.entrypoint is None else list(config.entrypoint),
        "OnBuild": list(onbuild) or None,
        "Labels": dict(config.labels),
        "StopSignal": config.stop_signal,
    }
    if config.healthcheck is not None:
        check = config.healthcheck
        described["Healthcheck"] = {
            "Test": list(check.test),
            "Interval": check.interval_ns,
            "Timeout": check.timeout_ns,
            "StartPeriod": check.start_period_ns,
            "StartInterval": check.start_interval_ns,
            "Retries": check.retries,
        }
    return described


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


IMAGE_INSPECT = Command(
    "image inspect",
    "Show everything about images, as JSON",
    lambda values: _show(values.words("IMAGE"), "image", values.text("format")),
    description="The fields are Docker's, so that scripts written for it work. Artifacts (what a "
    "registry has besides images) have fewer, and tell of their files.",
    arguments=(Argument("IMAGE", "Name or id", count="+", complete="images"),),
    options=(
        text(
            "-f",
            "--format",
            metavar="TEMPLATE",
            help="A Go template such as '{{.Config.Cmd}}', or 'json'",
        ),
    ),
    examples=(("scow image inspect -f '{{.RepoDigests}}' app", "one value"),),
)
