"""The name files of a pod, which all its containers see: hosts, hostname, resolv.conf."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from scow.native.fd import OwnedFd
from scow.netns import names

if TYPE_CHECKING:
    from scow.cri.pod_network import Link
    from scow.cri.pod_records import PodOptions


def write_pod_names(options: PodOptions, run_dir: str, hostname: str, link: Link) -> None:
    """Write the files; they die with the boot, as the pod does."""
    is_host = options.network == "host"
    shown = os.uname().nodename if is_host else hostname
    files = {
        "hostname": names.hostname_file(shown),
        "hosts": names.hosts_file(shown, link.addresses[0] if link.addresses else None),
        # A DNS configuration is all there is; without one the host's counts.
        "resolv.conf": names.resolv_conf(
            "" if options.has_dns else names.read_host_resolv_conf(),
            dns=options.dns_servers,
            search=options.dns_searches,
            options=options.dns_options,
            shares_host_network=is_host or options.has_dns,
        ),
    }
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    for name, data in files.items():
        with OwnedFd(os.open(f"{run_dir}/{name}", flags, 0o644)) as fd:
            os.fchmod(fd.fileno(), 0o644)
            if options.ids is not None:
                os.fchown(fd.fileno(), options.ids.host_uid, options.ids.host_gid)
            os.write(fd.fileno(), data)
