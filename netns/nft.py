"""The one nftables table of a run directory, made from state and swapped whole.

Nothing is ever added to or taken from the table piece by piece: each change writes the table anew
in one transaction, so tear-down cannot leave a rule behind and a flush by somebody else is mended
by the next change. We touch no chain of others, and a drop in their chains still holds
(CVE-2019-9946). What must not be here: who publishes what (network.py).
"""

from __future__ import annotations

import binascii
import errno
import os
import socket
import struct
import time
from collections.abc import Iterable, Sequence

import msgspec

from scow.native.errors import ScowError, Unsupported
from scow.netns import rtnetlink as nl
from scow.netns.ports import WILDCARD, PortMapping

TABLE = "scow"
DEFAULT_RUN = "/run/scow"
# nft(8) takes no longer comment; a run directory whose name does not fit is not remembered.
_COMMENT_MAX = 128
_NFT = ("/usr/sbin/nft", "/sbin/nft", "/usr/bin/nft", "/usr/local/sbin/nft")
_TRIES = 5

_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETTABLE = (_NFNL_SUBSYS_NFTABLES << 8) | 1
_NFT_MSG_GETCHAIN = (_NFNL_SUBSYS_NFTABLES << 8) | 4
_NFT_MSG_GETRULE = (_NFNL_SUBSYS_NFTABLES << 8) | 7
_NFTA_TABLE_NAME = 1
_NFTA_TABLE_USERDATA = 6
_NFTA_RULE_TABLE = 1
_NFTA_CHAIN_TABLE = 1
_NFTA_CHAIN_NAME = 3
_NFTA_CHAIN_HOOK = 4
_NFTA_CHAIN_POLICY = 5
_NFTA_HOOK_HOOKNUM = 1
_NF_INET_FORWARD = 2
_NF_DROP = 0
_NFPROTO_NAMES = {1: "inet", 2: "ip"}
_NFGENMSG = struct.pack("=BBH", socket.AF_INET, 0, 0)


class NetworkRules(msgspec.Struct, frozen=True):
    """What the rules need to know of a network."""

    bridge: str
    subnet: str


class Publication(msgspec.Struct, frozen=True):
    """One published mapping and the container address it leads to."""

    mapping: PortMapping
    address: str


def _chains(networks: Sequence[NetworkRules]) -> dict[str, tuple[str, list[str]]]:
    """Chain name to hook line and rules."""
    return {
        "guard": (
            "type filter hook prerouting priority raw; policy accept;",
            [
                # A bridge with published ports has route_localnet, which switches off the
                # kernel's own refusal of these (CVE-2020-8558).
                "iifname @bridges ip daddr 127.0.0.0/8 drop",
                "iifname @bridges ip saddr 127.0.0.0/8 drop",
            ],
        ),
        "prerouting": (
            "type nat hook prerouting priority dstnat; policy accept;",
            # Only what is meant for this host (CVE-2025-67499). Loopback addresses are left out: a
            # neighbour's packet to 127.0.0.1 must meet the kernel's martian check, not our maps.
            ["ip daddr != 127.0.0.0/8 fib daddr type local jump publish"],
        ),
        "output": (
            # nft 1.0.6 knows `dstnat` in prerouting only.
            "type nat hook output priority -100; policy accept;",
            ["fib daddr type local jump publish"],
        ),
        "publish": (
            "",
            [
                f"meta l4proto {{ tcp, udp }} dnat ip to meta l4proto . ip daddr . th dport map @{name}"
                for name in ("moved", "kept")
            ],
        ),
        "postrouting": (
            "type nat hook postrouting priority srcnat; policy accept;",
            [rule for network in networks for rule in _masquerade(network)],
        ),
        "forward": (
            "type filter hook forward priority filter; policy accept;",
            [
                "ct state established,related accept",
                "ct status dnat accept",
                *(f'iifname "{n.bridge}" oifname "{n.bridge}" accept' for n in networks),
                # No way in but a published port, for neighbours as for other networks of ours.
                "oifname @bridges drop",
            ],
        ),
    }


def _masquerade(network: NetworkRules) -> tuple[str, str]:
    return (
        f'ip saddr {network.subnet} oifname != "{network.bridge}" masquerade',
        # Hairpin: the answer must come back through us to be translated back. And a loopback
        # source has no route home. Everybody else's address is kept.
        f'oifname "{network.bridge}" ct status dnat ip saddr {{ {network.subnet}, 127.0.0.0/8 }} '
        "masquerade",
    )


def run_mark(run_dir: str) -> int:
    """A number for a run directory, never zero: what several scows on one host make they tell by it."""
    return binascii.crc32(os.fsencode(run_dir)) or 1


def table_name(run_dir: str) -> str:
    """The table of a run directory: each writes its own, and none the ports of another."""
    return TABLE if run_dir == DEFAULT_RUN else f"{TABLE}-{run_mark(run_dir):08x}"


def _stamp(networks: Sequence[NetworkRules]) -> str:
    """A mark that changes with the rules, kept in the table's comment."""
    return f"scow {binascii.crc32(repr(_chains(networks)).encode()):08x}"


def _comment(networks: Sequence[NetworkRules], run_dir: str) -> str:
    whole = f"{_stamp(networks)} {run_dir}"
    is_fit = len(os.fsencode(whole)) < _COMMENT_MAX and '"' not in whole and whole.isprintable()
    return whole if is_fit else _stamp(networks)


def _elements(publications: Iterable[Publication]) -> tuple[list[str], list[str]]:
    """Elements of the two maps: ports that keep their number, as intervals, and ports that do not.

    nftables has no `range to range with an offset`, so a moved range takes one element per port.
    """
    kept: list[str] = []
    moved: list[str] = []
    for publication in publications:
        mapping = publication.mapping
        host = "0.0.0.0/0" if mapping.host_ip == WILDCARD else mapping.host_ip
        key = f"{mapping.protocol} . {host}"
        first = mapping.host_port
        if first == mapping.container_port:
            last = first + mapping.count - 1
            ports = f"{first}-{last}" if mapping.count > 1 else str(first)
            kept.append(f"{key} . {ports} : {publication.address}")
            continue
        moved.extend(
            f"{key} . {first + i} : {publication.address} . {mapping.container_port + i}"
            for i in range(mapping.count)
        )
    return kept, moved


def _map(name: str, data: str, elements: list[str]) -> list[str]:
    lines = [
        f"  map {name} {{",
        f"    type inet_proto . ipv4_addr . inet_service : {data}",
        "    flags interval",
    ]
    if elements:
        lines.append("    elements = { " + ",\n      ".join(elements) + " }")
    return [*lines, "  }"]


def render(
    networks: Sequence[NetworkRules],
    publications: Iterable[Publication],
    run_dir: str = DEFAULT_RUN,
    stale: Sequence[str] = (),
) -> str:
    """The transaction that replaces the table of a run directory, and takes `stale` ones away."""
    table = table_name(run_dir)
    kept, moved = _elements(publications)
    bridges = ", ".join(f'"{network.bridge}"' for network in networks)
    lines = [
        *(line for name in (*stale, table) for line in _deletion(name)),
        f"table ip {table} {{",
        f'  comment "{_comment(networks, run_dir)}"',
        f"  set bridges {{ type ifname; elements = {{ {bridges} }} }}",
        *_map("kept", "ipv4_addr", kept),
        *_map("moved", "ipv4_addr . inet_service", moved),
    ]
    chains = _chains(networks)
    # A chain must exist before a jump to it.
    for name in sorted(chains, key=lambda name: name != "publish"):
        hook, rules = chains[name]
        lines += [f"  chain {name} {{", *(f"    {text}" for text in (hook, *rules) if text), "  }"]
    return "\n".join([*lines, "}", ""])


def _deletion(table: str) -> tuple[str, str]:
    # `add` first, so that the deletion finds a table in every case.
    return f"table ip {table}", f"delete table ip {table}"


def is_in_place(networks: Sequence[NetworkRules], run_dir: str = DEFAULT_RUN) -> bool:
    """Whether the kernel has our table with all its rules (two requests, no program run)."""
    table_text = table_name(run_dir)
    name = nl.text(_NFTA_TABLE_NAME, table_text)
    with nl.NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        table, rules = netlink.ask(
            nl.message(_NFT_MSG_GETTABLE, 0, _NFGENMSG + name),
            nl.message(
                _NFT_MSG_GETRULE, nl.NLM_F_DUMP, _NFGENMSG + nl.text(_NFTA_RULE_TABLE, table_text)
            ),
        )
    if isinstance(table, int) or isinstance(rules, int) or not table:
        return False
    userdata = dict(nl.attributes(table[0].body[4:])).get(_NFTA_TABLE_USERDATA, b"")
    expected = sum(len(lines) for _hook, lines in _chains(networks).values())
    return _stamp(networks).encode() in userdata and len(rules) == expected


def others(run_dir: str) -> dict[str, str]:
    """The tables of other run directories, and whose they are where that is known."""
    found: dict[str, str] = {}
    with nl.NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        (tables,) = netlink.ask(nl.message(_NFT_MSG_GETTABLE, nl.NLM_F_DUMP, _NFGENMSG))
    for reply in tables if isinstance(tables, list) else ():
        table = dict(nl.attributes(reply.body[4:]))
        name = table.get(_NFTA_TABLE_NAME, b"").rstrip(b"\0").decode(errors="replace")
        if name != table_name(run_dir) and (name == TABLE or name.startswith(f"{TABLE}-")):
            # libnftnl's attributes: a byte of type, one of length, the text and its NUL.
            words = table.get(_NFTA_TABLE_USERDATA, b"")[2:].rstrip(b"\0").split(b" ", 2)
            found[name] = os.fsdecode(words[2]) if len(words) == 3 else ""
    return found


def foreign_drops() -> list[str]:
    """Chains of others that drop forwarded packets by policy, as `family table chain`.

    An accept of ours cannot undo a drop of theirs, so `scow info` tells. Tables of the old
    iptables interface are not seen here.
    """
    found: list[str] = []
    with nl.NetlinkSocket(nl.NETLINK_NETFILTER) as netlink:
        everything = struct.pack("=BBH", socket.AF_UNSPEC, 0, 0)
        (chains,) = netlink.ask(nl.message(_NFT_MSG_GETCHAIN, nl.NLM_F_DUMP, everything))
    for reply in chains if isinstance(chains, list) else ():
        chain = dict(nl.attributes(reply.body[len(everything) :]))
        hook = dict(nl.attributes(chain.get(_NFTA_CHAIN_HOOK, b"")))
        family = _NFPROTO_NAMES.get(reply.body[0])
        if (
            family
            and int.from_bytes(hook.get(_NFTA_HOOK_HOOKNUM, b"\xff")) == _NF_INET_FORWARD
            and int.from_bytes(chain.get(_NFTA_CHAIN_POLICY, b"\xff")) == _NF_DROP
        ):
            names = (
                chain[key].rstrip(b"\0").decode() for key in (_NFTA_CHAIN_TABLE, _NFTA_CHAIN_NAME)
            )
            found.append(" ".join((family, *names)))
    return found


def apply(text: str) -> None:
    """Run one transaction; Unsupported without nft, ScowError with its first complaint otherwise."""
    status, complaint = _run_nft(text.encode())
    for attempt in range(1, _TRIES):
        # EBUSY and EINTR mean that somebody else's transaction came between.
        if status == 0 or not ("resource busy" in complaint or "Interrupted" in complaint):
            break
        time.sleep(0.01 * attempt)
        status, complaint = _run_nft(text.encode())
    if status == 0:
        return
    first = complaint.strip().partition("\n")[0] or f"nft ended with status {status}"
    raise ScowError(f"cannot load the firewall table: {first}")


def find_program() -> str | None:
    """Where `nft` is, None when it is not installed."""
    return next((path for path in _NFT if os.access(path, os.X_OK)), None)


def remove(run_dir: str = DEFAULT_RUN) -> None:
    """Take the whole table away."""
    apply("\n".join((*_deletion(table_name(run_dir)), "")))


def _run_nft(text: bytes) -> tuple[int, str]:
    """Run `nft -f -`; subprocess is not imported here, since this is part of a start with ports."""
    program = find_program()
    if program is None:
        raise Unsupported(
            "cannot set up the network: the program 'nft' is not installed",
            hint="apt-get install nftables",
        )
    source = os.memfd_create("scow-nft", os.MFD_CLOEXEC)
    output = os.memfd_create("scow-nft-errors", os.MFD_CLOEXEC)
    try:
        os.write(source, text)
        os.lseek(source, 0, os.SEEK_SET)
        actions = [
            (os.POSIX_SPAWN_DUP2, source, 0),
            (os.POSIX_SPAWN_DUP2, output, 1),
            (os.POSIX_SPAWN_DUP2, output, 2),
        ]
        environment = {"LC_ALL": "C", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
        pid = os.posix_spawn(program, ["nft", "-f", "-"], environment, file_actions=actions)
        _pid, status = os.waitpid(pid, 0)
        complaint = os.pread(output, 4096, 0).decode(errors="replace")
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, "?")
        raise ScowError(
            f"cannot run '{program}': {os.strerror(error.errno or 0).lower()} ({name})"
        ) from error
    finally:
        os.close(source)
        os.close(output)
    return os.waitstatus_to_exitcode(status), complaint
