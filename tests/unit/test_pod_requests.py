"""CRI's messages as our options: what is taken, and what is refused with which words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from scow.cri.api import answers, requests
from scow.cri.api.image_service import ImageService
from scow.cri.api.message import Message
from scow.cri.api.resources import limits_of, sum_limits, updated
from scow.cri.api.runtime_service import RuntimeService
from scow.cri.api.schema import schema
from scow.cri.options import Limits, NamespaceMode
from scow.cri.pod_records import PodMetadata, PodOptions, PodRecord, reserved_name
from scow.native.errors import InvalidArgument, ScowError, Unsupported


def pod(**fields: Any) -> PodOptions:
    config = {"metadata": {"name": "p", "namespace": "n", "uid": "u"}, **fields}
    return requests.pod_options(Message("PodSandboxConfig", config), "")


def container(options: PodOptions | None = None, **fields: Any) -> Any:
    record = PodRecord(
        "a" * 64, "p", 1, "scow/x", options or PodOptions(PodMetadata("p", "u", "n"))
    )
    config = {"metadata": {"name": "c"}, "image": {"image": "i"}, **fields}
    return requests.container_options(
        Message("ContainerConfig", config), record, lambda target: target, lambda image: image
    )


def test_a_pod_that_says_nothing() -> None:
    options = pod()
    assert (options.network, options.pid, options.ipc) == ("own", "pod", "pod")
    assert not options.has_dns
    assert options.limits == Limits(pids=-1)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"hostname": "bad name"}, "hostname"),
        ({"hostname": "x" * 65}, "hostname"),
        ({"log_directory": "relative"}, "absolute"),
        ({"port_mappings": [{"container_port": 70000}]}, "65535"),
        ({"linux": {"sysctls": {"net.x": ""}}}, "sysctl"),
        (
            {"linux": {"security_context": {"namespace_options": {"network": "CONTAINER"}}}},
            "network",
        ),
        ({"linux": {"security_context": {"namespace_options": {"pid": "TARGET"}}}}, "pid"),
    ],
)
def test_pods_that_cannot_be(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        pod(**fields)


def test_a_slice_is_not_this_driver() -> None:
    with pytest.raises(Unsupported, match="slice"):
        pod(linux={"cgroup_parent": "kubepods.slice"})
    assert pod(linux={"cgroup_parent": "/kubepods/podx/"}).cgroup_parent == "kubepods/podx"


def test_command_and_args() -> None:
    options, member = container(command=["a"], args=["b"], stop_signal="SIGNAL_SIGRTMINPLUS3")
    assert (options.entrypoint, options.command) == (("a",), ("b",))
    assert options.stop_signal == 37
    options, member = container(args=["b"])
    assert (options.entrypoint, options.command) == (None, ("b",))
    assert member.stop_signal == "SIGNAL_RUNTIME_DEFAULT"


def test_a_container_follows_its_pod_where_it_says_nothing() -> None:
    for mode, wanted in (("pod", "pod"), ("container", "private"), ("host", "host")):
        options, _ = container(PodOptions(PodMetadata("p", "u", "n"), pid=mode))
        assert options.pid == NamespaceMode(wanted)


@pytest.mark.parametrize(
    "fields",
    [
        {"metadata": {}},
        {"image": None},
        {"envs": [{"key": "A=B", "value": b"x"}]},
        {"working_dir": "relative"},
        {"devices": [{"host_path": "/dev/null", "permissions": "x"}]},
        {"mounts": [{"container_path": "relative", "host_path": "/tmp"}]},
        {"mounts": [{"container_path": "/x", "image_sub_path": "y", "host_path": "/tmp"}]},
        {"mounts": [{"container_path": "/x", "image": {"image": "i"}, "host_path": "/tmp"}]},
        {"linux": {"resources": {"oom_score_adj": 5000}}},
        {"linux": {"security_context": {"run_as_user": {"value": -1}}}},
        {"linux": {"security_context": {"masked_paths": ["proc"]}}},
        {"linux": {"security_context": {"seccomp_profile_path": "what"}}},
    ],
)
def test_containers_that_cannot_be(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgument):
        container(**fields)


def resources(**fields: Any) -> Message:
    return Message("LinuxContainerResources", fields)


def test_limits() -> None:
    assert limits_of(resources()) == Limits()
    limits = limits_of(
        resources(memory_limit_in_bytes=100, cpu_quota=-1, hugepage_limits=[{"page_size": "2MB"}])
    )
    assert (limits.memory_bytes, limits.memory_swap_bytes) == (100, 100)
    assert (limits.cpu_quota_us, limits.hugepages) == (-1, (("2MB", 0),))
    with pytest.raises(InvalidArgument, match="swap"):
        limits_of(resources(memory_limit_in_bytes=100, memory_swap_limit_in_bytes=50))


def test_the_limits_of_a_pod_are_a_sum() -> None:
    whole = sum_limits(
        resources(memory_limit_in_bytes=100, cpu_quota=50, cpu_shares=10),
        resources(memory_limit_in_bytes=20, cpu_quota=5),
    )
    assert (whole.memory_bytes, whole.cpu_quota_us, whole.cpu_shares) == (120, 55, 10)
    assert sum_limits(None, resources(memory_limit_in_bytes=20)).memory_bytes is None
    assert sum_limits(resources(cpu_quota=-1), resources(cpu_quota=5)).cpu_quota_us == -1
    assert updated(Limits(memory_bytes=5, pids=-1), Limits(cpu_shares=7)) == Limits(
        memory_bytes=5, pids=-1, cpu_shares=7
    )


def test_logs_stay_in_their_directory() -> None:
    assert requests.log_path("/logs", "c/0.log") == "/logs/c/0.log"
    assert requests.log_path("", "0.log") == ""
    for path in ("../x", "c/../../x", "/etc/x", ".", "c/.."):
        with pytest.raises(ScowError, match="log"):
            requests.log_path("/logs", path)


def test_reserved_names_differ_where_their_parts_do() -> None:
    names = [
        reserved_name(*parts)
        for parts in (("a", "b_c"), ("a_b", "c"), ("a/b", "c"), ("..",), ("",), ("a" * 300, "b"))
    ]
    assert len(set(names)) == len(names)
    assert all("/" not in name and len(name) < 256 for name in names)
    assert reserved_name("x" * 300) != reserved_name("x" * 299 + "y")


def test_every_signal_has_its_name_back() -> None:
    names = set(schema().enums["Signal"]) - {"SIGNAL_RUNTIME_DEFAULT"}
    numbers = {name: requests.stop_signal(name) for name in names}
    assert None not in numbers.values()
    for name, number in numbers.items():
        assert number is not None
        assert requests.stop_signal(answers.signal_name(number)) == number, name
        assert answers.signal_name(number) in names


def test_every_method_of_cri_is_there() -> None:
    for method in schema().methods.values():
        kind = RuntimeService if method.service == "RuntimeService" else ImageService
        assert callable(getattr(kind, method.python_name)), method.path


# docs/api.md has the reasons.
WITHOUT_EFFECT = {
    ("PodSandboxConfig", "windows"),
    ("ContainerConfig", "windows"),
    ("UpdateContainerResourcesRequest", "windows"),
    ("Mount", "selinux_relabel"),
    ("CreateContainerRequest", "sandbox_config"),
    ("PullImageRequest", "sandbox_config"),
    ("NetworkConfig", "pod_cidr"),
    # CheckpointPod and RestorePod are refused.
    ("CheckpointPodRequest", "output_path"),
    ("CheckpointPodRequest", "container_ids"),
    ("RestorePodRequest", "checkpoint_path"),
    ("RestorePodRequest", "container_configs"),
}


def test_every_field_of_a_request_is_read_or_known_to_be_without_effect() -> None:
    """A field that CRI gets tomorrow must be looked at."""
    sources = Path(requests.__file__).parent.glob("*.py")
    words = set(re.findall(r"\w+", "\n".join(path.read_text() for path in sources)))
    facts = schema()
    unread: set[tuple[str, str]] = set()
    seen: set[str] = set()
    left = [method.request for method in facts.methods.values()]
    while left:
        name = left.pop()
        if name in seen or name.startswith("Windows") or name not in facts.messages:
            continue
        seen.add(name)
        for field in facts.messages[name].values():
            left.append(field.type)
            if field.name not in words:
                unread.add((name, field.name))
    assert unread == WITHOUT_EFFECT
