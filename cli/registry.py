"""Which verb lives in which file. Nothing here imports a command before it is wanted.

Help shows the groups in this order. A management form (`scow container ls`) is a path of words
that leads to the same command as its short form.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scow.cli.table import Command

# verb -> (module in scow.cli, name of the table in it)
COMMANDS: dict[str, tuple[str, str]] = {
    "run": ("run", "RUN"),
    "create": ("run", "CREATE"),
    "start": ("start", "START"),
    "exec": ("exec", "EXEC"),
    "attach": ("attach", "ATTACH"),
    "ps": ("ps", "PS"),
    "logs": ("logs", "LOGS"),
    "inspect": ("inspect", "INSPECT"),
    "stats": ("stats", "STATS"),
    "stop": ("lifecycle", "STOP"),
    "kill": ("lifecycle", "KILL"),
    "pause": ("lifecycle", "PAUSE"),
    "unpause": ("lifecycle", "UNPAUSE"),
    "wait": ("lifecycle", "WAIT"),
    "rm": ("lifecycle", "RM"),
    "cp": ("cp", "CP"),
    "diff": ("export", "DIFF"),
    "export": ("export", "EXPORT"),
    "commit": ("commit", "COMMIT"),
    "pod create": ("pod", "CREATE"),
    "pod ps": ("pod", "PS"),
    "pod inspect": ("pod", "INSPECT"),
    "pod stop": ("pod", "STOP"),
    "pod rm": ("pod", "RM"),
    "pod logs": ("pod", "LOGS"),
    "pod stats": ("pod", "STATS"),
    "images": ("images", "IMAGES"),
    "pull": ("pull", "PULL"),
    "push": ("push", "PUSH"),
    "login": ("login", "LOGIN"),
    "logout": ("login", "LOGOUT"),
    "search": ("search", "SEARCH"),
    "manifest create": ("manifest_list", "CREATE"),
    "manifest ls": ("manifest_list", "LS"),
    "manifest add": ("manifest_list", "ADD"),
    "manifest annotate": ("manifest_list", "ANNOTATE"),
    "manifest remove": ("manifest_list", "REMOVE"),
    "manifest inspect": ("manifest", "INSPECT"),
    "manifest push": ("manifest_list", "PUSH"),
    "manifest rm": ("manifest_list", "RM"),
    "registry referrers": ("manifest", "REFERRERS"),
    "registry rm": ("manifest", "RM"),
    "tag": ("images", "TAG"),
    "rmi": ("images", "RMI"),
    "save": ("archive", "SAVE"),
    "load": ("archive", "LOAD"),
    "import": ("commit", "IMPORT"),
    "untag": ("images", "UNTAG"),
    "history": ("history", "HISTORY"),
    "image inspect": ("inspect", "IMAGE_INSPECT"),
    "image tree": ("tree", "TREE"),
    "serve": ("serve", "SERVE"),
    "call": ("call", "CALL"),
    "info": ("system", "INFO"),
    "version": ("system", "VERSION"),
    "image prune": ("prune", "IMAGE_PRUNE"),
    "container prune": ("prune", "CONTAINER_PRUNE"),
    "system check": ("system", "CHECK"),
    "system df": ("df", "DF"),
    "system prune": ("prune", "SYSTEM_PRUNE"),
    "completion": ("completion", "COMPLETION"),
    "cleanup": ("system", "CLEANUP"),
    "__complete": ("completion", "COMPLETE"),
}

SECTIONS: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "Containers",
        (
            "run",
            "create",
            "start",
            "exec",
            "attach",
            "stop",
            "kill",
            "pause",
            "unpause",
            "wait",
            "rm",
            "cp",
            "export",
            "commit",
            "container prune",
        ),
    ),
    ("Looking at containers", ("ps", "logs", "inspect", "stats", "diff")),
    (
        "Pods",
        (
            "pod create",
            "pod ps",
            "pod inspect",
            "pod stop",
            "pod rm",
            "pod logs",
            "pod stats",
        ),
    ),
    (
        "Images",
        (
            "pull",
            "push",
            "images",
            "tag",
            "untag",
            "rmi",
            "image prune",
            "history",
            "image inspect",
            "image tree",
            "save",
            "load",
            "import",
        ),
    ),
    (
        "Registries",
        (
            "login",
            "logout",
            "search",
            "manifest inspect",
            "manifest create",
            "manifest ls",
            "manifest add",
            "manifest annotate",
            "manifest remove",
            "manifest push",
            "manifest rm",
            "registry referrers",
            "registry rm",
        ),
    ),
    (
        "This machine",
        (
            "serve",
            "call",
            "info",
            "system check",
            "system df",
            "system prune",
            "version",
            "completion",
        ),
    ),
)

ALIASES: dict[str, str] = {
    # The first two sections are about containers; what has two words there is a long form already.
    **{f"container {verb}": verb for _, verbs in SECTIONS[:2] for verb in verbs if " " not in verb},
    "container ls": "ps",
    "container list": "ps",
    "container remove": "rm",
    "pod ls": "pod ps",
    "pod list": "pod ps",
    "image ls": "images",
    "image list": "images",
    "image pull": "pull",
    "image push": "push",
    "image search": "search",
    "image rm": "rmi",
    "image remove": "rmi",
    "image tag": "tag",
    "image save": "save",
    "image load": "load",
    "image import": "import",
    "image untag": "untag",
    "image history": "history",
    "image diff": "diff",
    "system info": "info",
    "ls": "ps",
}

# What SCOW_HOST says nothing about: the service itself, what it starts, and what needs none.
HERE = frozenset({"serve", "cleanup", "completion", "__complete"})

GROUPS = ("container", "image", "manifest", "pod", "registry", "system")


def find(words: list[str]) -> tuple[str, list[str]] | None:
    """The verb that a line begins with, and the words after it; None when there is no such."""
    for length in (2, 1):
        name = " ".join(words[:length])
        if len(words) >= length:
            name = ALIASES.get(name, name)
            if name in COMMANDS:
                return name, words[length:]
    return None


def load(name: str) -> Command:
    """The table of a verb."""
    from importlib import import_module

    module, attribute = COMMANDS[name]
    command: Command = getattr(import_module(f"scow.cli.{module}"), attribute)
    return command
