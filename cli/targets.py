"""Verbs on several containers or images: go on past errors, name each that worked.

Docker's rule: each id or name that worked on stdout as it was typed, each failure one line on
stderr, status 1 when any failed.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from scow.native.errors import ScowError


def tell(error: ScowError) -> None:
    """One error line while others go on."""
    sys.stdout.flush()
    print("scow: " + " ".join(str(error).split("\n")), file=sys.stderr)
    if error.hint:
        print(f"hint: {error.hint}", file=sys.stderr)


def from_os_error(error: OSError) -> ScowError:
    """What the kernel refused, where nobody below knew what for."""
    about = f" '{error.filename}'" if error.filename else ""
    hint = None
    if error.errno == errno.ENOSPC:
        hint = "'df -h' shows the full file system; 'scow rmi' and 'scow rm' free space"
    return ScowError(f"cannot go on{about}: {(error.strerror or str(error)).lower()}", hint=hint)


def each(names: list[str], action: Callable[[str], str | None]) -> int:
    """Do it to each in turn; `action` gives what to print."""
    status = 0
    for name in names:
        try:
            said = action(name)
        except (ScowError, OSError) as error:
            tell(error if isinstance(error, ScowError) else from_os_error(error))
            status = 1
        else:
            if said is not None:
                print(said, flush=True)
    return status


def each_at_once(names: list[str], action: Callable[[str], str | None]) -> int:
    """The same in threads, so that `stop a b c` takes as long as the slowest; output in order."""
    if len(names) == 1:
        return each(names, action)
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(max_workers=min(len(names), 50), thread_name_prefix="target") as pool:
        futures = {name: pool.submit(action, name) for name in names}
        return each(list(futures), lambda name: futures[name].result())
