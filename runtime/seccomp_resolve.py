"""A seccomp profile in the specification's own form, from Docker's with its conditions."""

from __future__ import annotations

import msgspec

from scow.runtime.seccomp import SeccompProfile, parse_profile, rule_counts, rule_names


def resolve_profile(document: bytes, capabilities: frozenset[str]) -> SeccompProfile:
    """A profile for a container with these capabilities, in the specification's own form."""
    profile = parse_profile(document)
    rules = [
        msgspec.structs.replace(rule, names=rule_names(rule), name="", includes=None, excludes=None)
        for rule in profile.syscalls or ()
        if rule_counts(rule, capabilities)
    ]
    architectures = list(profile.architectures or ())
    for item in profile.arch_map or ():
        architectures += [item.architecture, *(item.sub_architectures or ())]
    return msgspec.structs.replace(
        profile, architectures=tuple(architectures), arch_map=None, syscalls=tuple(rules)
    )
