"""Shell completion: small scripts that ask scow itself, from the same tables as everything else."""

from __future__ import annotations

import os

from scow.cli import registry
from scow.cli.session import service
from scow.cli.table import FLAG, Argument, Command, Option, UsageError, Values
from scow.native.errors import ScowError

BASH = """\
# bash completion for scow; put into ~/.bashrc:  source <(scow completion bash)
_scow() {
    local IFS=$'\\n' line
    COMPREPLY=()
    while IFS= read -r line; do
        if [[ $line == ':files' ]]; then compopt -o default; else COMPREPLY+=("${line%%$'\\t'*}"); fi
    done < <(scow __complete -- "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null)
    [[ ${#COMPREPLY[@]} -eq 1 && ${COMPREPLY[0]} == *[:=/] ]] && compopt -o nospace
    declare -F __ltrim_colon_completions >/dev/null && __ltrim_colon_completions "${COMP_WORDS[COMP_CWORD]}"
}
complete -F _scow scow
"""

ZSH = """\
#compdef scow
# zsh completion for scow; put into ~/.zshrc after compinit:  source <(scow completion zsh)
_scow() {
    local line; local -a found
    while IFS= read -r line; do
        if [[ $line == ':files' ]]; then _files; else found+=("${${line%%$'\\t'*}//:/\\\\:}:${line#*$'\\t'}"); fi
    done < <(scow __complete -- "${(@)words[2,CURRENT]}" 2>/dev/null)
    _describe scow found
}
compdef _scow scow
"""

FISH = """\
# fish completion for scow; put into ~/.config/fish/completions/scow.fish
function __scow_complete
    set -l words (commandline -opc) (commandline -ct)
    scow __complete -- $words[2..-1] 2>/dev/null | string match -v ':files'
end
complete -c scow -a '(__scow_complete)'
"""

_SCRIPTS = {"bash": BASH, "zsh": ZSH, "fish": FISH}


def _completion(values: Values) -> int:
    shell = values.word("SHELL")
    if shell not in _SCRIPTS:
        raise UsageError("completion: bash, zsh or fish")
    print(_SCRIPTS[shell], end="")
    return 0


COMPLETION = Command(
    "completion",
    "Print a script that lets your shell complete commands and names",
    _completion,
    arguments=(Argument("SHELL", "bash, zsh or fish", complete="shells"),),
    examples=(
        ("source <(scow completion bash)", "for this shell; put it into ~/.bashrc to keep it"),
        ("scow completion fish > ~/.config/fish/completions/scow.fish", "for fish"),
    ),
    needs_root="",
)


def _complete(values: Values) -> int:
    words = values.words("WORDS")
    for candidate, about in candidates(words or [""]):
        print(f"{candidate}\t{about}" if about else candidate)
    return 0


COMPLETE = Command(
    "__complete",
    "Answer the completion scripts",
    _complete,
    arguments=(Argument("WORDS", "The words so far, the last one unfinished", count="*"),),
    hidden=True,
    interspersed=False,
    needs_root="",
)


def candidates(words: list[str]) -> list[tuple[str, str]]:
    """What the last word may become, with a few words about each."""
    *before, last = words
    while before and before[0].startswith("-"):
        before = before[2:] if before[0] in ("--root", "--run-root", "--host") else before[1:]
    found = registry.find(before)
    if found is None:
        return _keep(_verbs(before), last)
    name, rest = found
    if name == "system check" and not before:
        return []
    return _of_command(registry.load(name), rest, last)


def _keep(pairs: list[tuple[str, str]], last: str) -> list[tuple[str, str]]:
    return [pair for pair in pairs if pair[0].startswith(last) or pair[0] == ":files"]


def _verbs(before: list[str]) -> list[tuple[str, str]]:
    prefix = " ".join(before) + " " if before else ""
    pairs: dict[str, str] = {}
    for name in (*registry.COMMANDS, *registry.ALIASES):
        target = registry.ALIASES.get(name, name)
        if name.startswith(prefix) and not name.startswith("_") and name != "cleanup":
            word = name[len(prefix) :].split(" ")[0]
            is_group = not prefix and word in registry.GROUPS
            pairs.setdefault(word, "" if is_group else registry.load(target).summary)
    return list(pairs.items())


def _of_command(command: Command, rest: list[str], last: str) -> list[tuple[str, str]]:
    by_name = {name: option for option in command.options for name in option.names}
    position, waiting = _walk(command, by_name, rest)
    if waiting is not None:
        return _keep(_values(waiting.complete), last)
    if last.startswith("--") and "=" in last:
        name, _, value = last.partition("=")
        option = by_name.get(name)
        values = _values(option.complete) if option and option.kind != FLAG else []
        return [(f"{name}={word}", about) for word, about in _keep(values, value)]
    if last.startswith("-"):
        options = [(n, o.help) for o in command.options if not o.hidden for n in o.names]
        return _keep([*options, ("--help", "Explain the command")], last)
    argument = _argument_at(command, position)
    return _keep(_values(argument.complete), last) if argument else []


def _walk(
    command: Command, by_name: dict[str, Option], rest: list[str]
) -> tuple[int, Option | None]:
    """How many positional words there are, and the option that waits for its value."""
    position = 0
    waiting: Option | None = None
    for word in rest:
        if waiting is not None:
            waiting = None
        elif word.startswith("-") and len(word) > 1 and (command.interspersed or not position):
            option = by_name.get(word if word.startswith("--") else "-" + word[-1])
            if option is not None and option.kind != FLAG and "=" not in word:
                waiting = option
        else:
            position += 1
    return position, waiting


def _argument_at(command: Command, position: int) -> Argument | None:
    for argument in command.arguments:
        if position == 0 or argument.count in "+*":
            return argument
        position -= 1
    return None


def _values(kind: str) -> list[tuple[str, str]]:
    if kind == "files":
        return [(":files", "")]
    fixed = {
        "pull": ("always", "missing", "never"),
        "shells": ("bash", "zsh", "fish"),
        "network": ("bridge", "none", "host"),
    }
    if kind in fixed:
        return [(word, "") for word in fixed[kind]]
    if kind == "signals":
        from scow.cri.parse import SIGNALS

        return [(name, "") for name in SIGNALS]
    if kind == "capabilities":
        from scow.cri.parse import CAPABILITIES

        return [(name, "") for name in sorted(CAPABILITIES)]
    if os.geteuid() != 0:
        return []  # names belong to root; a completion must not fail
    try:
        return _names(kind)
    except (ScowError, OSError, ImportError):
        return []


def _names(kind: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    if kind in ("containers", "running", "stopped", "any"):
        for view in service().list():
            is_running = view.state in ("running", "paused")
            if kind in ("containers", "any") or is_running == (kind == "running"):
                found.append((view.name, f"{view.image}, {view.state}"))
    if kind in ("images", "any"):
        found += [(name, "") for image in service().images.list() for name in image.names]
    if kind == "lists":
        from scow.image.lists import all_lists

        found += [(one.reference.familiar, "") for one in all_lists(service().images)]
    return found
