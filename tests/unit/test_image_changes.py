"""--change: single lines of a Dockerfile."""

from __future__ import annotations

from typing import Any

import pytest

from scow.image.changes import apply_changes
from scow.native.errors import InvalidArgument

BASE: dict[str, Any] = {
    "Env": ["PATH=/bin", "A=1"],
    "Cmd": ["old"],
    "WorkingDir": "/srv",
    "Labels": {"a": "1"},
    "Unknown": 7,
}


@pytest.mark.parametrize(
    ("lines", "key", "value"),
    [
        (['CMD ["a", "b c"]'], "Cmd", ["a", "b c"]),
        (["cmd echo $A"], "Cmd", ["/bin/sh", "-c", "echo $A"]),
        (["CMD [not json"], "Cmd", ["/bin/sh", "-c", "[not json"]),
        (['ENTRYPOINT ["a"]'], "Entrypoint", ["a"]),
        (['ENTRYPOINT ["a"]'], "Cmd", None),
        (['CMD ["c"]', 'ENTRYPOINT ["a"]'], "Cmd", ["c"]),
        (["ENV B=2 C=3"], "Env", ["PATH=/bin", "A=1", "B=2", "C=3"]),
        (["ENV A=2"], "Env", ["PATH=/bin", "A=2"]),
        (["ENV A=2 B=$A"], "Env", ["PATH=/bin", "A=2", "B=1"]),
        (["ENV PATH=$PATH:/x"], "Env", ["PATH=/bin:/x", "A=1"]),
        (["ENV B=${A}x$NO"], "Env", ["PATH=/bin", "A=1", "B=1x"]),
        (["ENV B some  words"], "Env", ["PATH=/bin", "A=1", "B=some words"]),
        (['ENV B="x y" C=\'$A "\' D=a\\ b'], "Env", ["PATH=/bin", "A=1", "B=x y", 'C=$A "', "D=a b"]),
        (["ENV B="], "Env", ["PATH=/bin", "A=1", "B="]),
        (["LABEL b=2 'c d'=3"], "Labels", {"a": "1", "b": "2", "c d": "3"}),
        (["EXPOSE 80 53/udp 8000-8001"], "ExposedPorts", {"80/tcp": {}, "53/udp": {}, "8000-8001/tcp": {}}),
        (["VOLUME /a /b"], "Volumes", {"/a": {}, "/b": {}}),
        (['VOLUME ["/a b"]'], "Volumes", {"/a b": {}}),
        (["WORKDIR x", "WORKDIR ../y"], "WorkingDir", "/srv/y"),
        (["WORKDIR /z/$A"], "WorkingDir", "/z/1"),
        (["USER 7:8"], "User", "7:8"),
        (["STOPSIGNAL SIGQUIT"], "StopSignal", "SIGQUIT"),
        (["ONBUILD RUN x", "ONBUILD COPY . ."], "OnBuild", ["RUN x", "COPY . ."]),
        (["", "# comment", "USER x\nUSER y"], "User", "y"),
        (["USER x"], "Unknown", 7),
    ],
)  # fmt: skip
def test_lines(lines: list[str], key: str, value: object) -> None:
    config = {**BASE}
    apply_changes(config, lines)
    assert config.get(key) == value
    assert BASE["Env"] == ["PATH=/bin", "A=1"]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("FROM x", "unknown instruction 'FROM'"),
        ("RUN x", "unknown instruction"),
        ("CMD", "CMD needs a value"),
        ("ENV A", "KEY=VALUE"),
        ("ENV A=1 B", "'B' is not of the form KEY=VALUE"),
        ("ENV =1", "KEY=VALUE"),
        ("ENV A='x", "quote is not closed"),
        ("USER a b", "exactly one value"),
        ("ONBUILD FROM x", "FROM is not allowed"),
        ("ONBUILD onbuild RUN x", "ONBUILD is not allowed"),
    ],
)
def test_refused(line: str, says: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        apply_changes({}, [line])
    assert says in caught.value.message
    assert caught.value.message.startswith("invalid --change ")
