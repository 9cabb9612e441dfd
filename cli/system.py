"""info, version, system check, cleanup: scow and this machine."""

from __future__ import annotations

import sys

from scow.cli.session import service
from scow.cli.table import Argument, Command, UsageError, Values, flag, text

API_VERSION = "v1"  # CRI


def scow_version() -> str:
    """The version that is installed."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("scow")
    except PackageNotFoundError:
        return "unknown"


def version_line() -> str:
    """What `scow --version` prints."""
    return f"scow version {scow_version()}"


def _details() -> dict[str, str]:
    import os
    import platform

    system = os.uname()
    return {
        "Version": scow_version(),
        "ApiVersion": API_VERSION,
        "PythonVersion": platform.python_version(),
        "Os": system.sysname.lower(),
        "Arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(system.machine, system.machine),
        "KernelVersion": system.release,
    }


def _version(values: Values) -> int:
    details = _details()
    form = values.text("format")
    if form == "json":
        from scow.cli.template_functions import to_json

        print(to_json({"Client": details}))
    elif form:
        from scow.cli.template import Template

        print(Template(form).render({"Client": details, "Server": details}))
    else:
        print("scow")
        print(f" Version:        {details['Version']}")
        print(f" API version:    {details['ApiVersion']}")
        print(f" Python version: {details['PythonVersion']}")
        print(f" OS/Arch:        {details['Os']}/{details['Arch']}")
        print(f" Kernel:         {details['KernelVersion']}")
    return 0


VERSION = Command(
    "version",
    "Show the version",
    _version,
    options=(text("-f", "--format", metavar="TEMPLATE", help="'json', or a Go template"),),
    examples=(("scow version -f '{{.Client.Version}}'", "the number only"),),
    needs_root="",
)


def _info(values: Values) -> int:
    facts = service().info()
    form = values.text("format")
    if form:
        details: dict[str, object] = {fact.key.replace(" ", ""): fact.value for fact in facts}
        details["Missing"] = [fact.key for fact in facts if not fact.is_well]
        if form == "json":
            from scow.cli.template_functions import to_json

            print(to_json(details))
        else:
            from scow.cli.template import Template

            print(Template(form).render(details))
        return 0
    width = max(len(fact.key) for fact in facts) + 2
    for fact in facts:
        mark = "" if fact.is_well else "  <- missing"
        print(f"{fact.key + ':':<{width}}{fact.value}{mark}")
        if fact.hint:
            print(f"{'':<{width}}hint: {fact.hint}")
    return 0


INFO = Command(
    "info",
    "Say what this machine can do, what is missing, and how to mend it",
    _info,
    options=(text("-f", "--format", metavar="TEMPLATE", help="'json', or a Go template"),),
    examples=(("scow info", "look here first when something does not work"),),
    needs_root="it asks the kernel what only root may",
)


def _check(values: Values) -> int:
    repair, quick = values.flag("repair"), values.flag("quick")
    lines = service().check(repair=repair, quick=quick)
    left = service().check(repair=False, quick=quick) if lines and repair else lines
    if values.flag("json"):
        from scow.cli.template_functions import to_json

        findings = [{"what": line, "left": line in left} for line in dict.fromkeys([*lines, *left])]
        print(to_json({"clean": not left, "findings": findings}))
        return 1 if left else 0
    if not lines:
        print("nothing damaged, nothing left behind")
        return 0
    print("\n".join(lines))
    if not repair:
        sys.stdout.flush()
        print("hint: 'scow system check --repair' mends this", file=sys.stderr)
    return 1 if left else 0


CHECK = Command(
    "system check",
    "Look for damage and for anything left behind",
    _check,
    description="Compares what is on disk and in the kernel (mounts, cgroups, links, addresses, "
    "firewall rules) with the containers and images that exist, and reads all images: each blob against "
    "its digest, each file of a layer against what its blob unpacks to. The first look unpacks each "
    "layer once more; later ones compare digests. The status is 1 when something is wrong and stays so.",
    options=(
        flag(
            "--repair",
            help="Mend it: remove what belongs to nothing, set damaged records aside, unpack layers "
            "again, fetch what is damaged from the registry that it came from (over the network)",
        ),
        flag("--quick", help="Read no content of images: whether all of it is there, no more"),
        flag("--json", help="One JSON object: clean, and findings with what was found and is left"),
    ),
    examples=(("scow system check", "look only"), ("scow system check --repair", "and mend")),
    needs_root="it looks at mounts, cgroups and firewall rules",
)


def _cleanup(values: Values) -> int:
    container_id = values.word("ID")
    if len(container_id) != 64:
        raise UsageError("cleanup: needs a whole id")
    service().cleanup(container_id)
    return 0


CLEANUP = Command(
    "cleanup",
    "Give back what a container that has ended took (the monitor calls this)",
    _cleanup,
    arguments=(Argument("ID", "The whole id"),),
    hidden=True,
)
