"""The proto3-JSON mapping of CRI's messages: what is read, what is written, what is refused where."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scow.cri.api import received
from scow.cri.api.calls import Shown
from scow.cri.api.codec import Kept, decode, encode
from scow.cri.api.message import Message
from scow.cri.api.schema import Field, schema
from scow.native.errors import InvalidArgument, ScowError

RANGES = {
    "int32": (-(1 << 31), (1 << 31) - 1),
    "uint32": (0, (1 << 32) - 1),
    "int64": (-(1 << 63), (1 << 63) - 1),
    "uint64": (0, (1 << 64) - 1),
}


class Pod:
    def __init__(self, name: str) -> None:
        self.id = name


def field_of(type_name: str, name: str, body: bytes | str) -> Any:
    return getattr(decode(type_name, body.encode() if isinstance(body, str) else body), name)


# --- whole messages, any of them --------------------------------------------------------------


def values_of(field: Field, depth: int) -> st.SearchStrategy[Any]:
    known = schema()
    text = st.text(max_size=8)
    if field.type in known.messages:
        one: st.SearchStrategy[Any] = messages(field.type, depth - 1)
    elif field.type in known.enums:
        one = st.sampled_from(list(known.enums[field.type]))
    elif field.type in RANGES:
        one = st.integers(*RANGES[field.type])
    else:
        one = {
            "string": text,
            "bytes": st.binary(max_size=8),
            "bool": st.booleans(),
            "double": st.floats(allow_nan=False),
            "map<string,string>": st.dictionaries(text, text, max_size=2),
        }[field.type]
    return st.lists(one, max_size=2) if field.repeated else one


def messages(name: str, depth: int = 4) -> st.SearchStrategy[dict[str, Any]]:
    fields = schema().messages[name].values()
    kept = [field for field in fields if depth > 0 or field.type not in schema().messages]
    return st.fixed_dictionaries({}, optional={f.name: values_of(f, depth) for f in kept})


def without_zeros(name: str, value: dict[str, Any]) -> dict[str, Any]:
    """What is left of a message when defaults are left out, as the wire does."""
    found: dict[str, Any] = {}
    for field in schema().messages[name].values():
        one = value.get(field.name)
        if one is None:
            continue
        if field.type in schema().messages:
            one = (
                [without_zeros(field.type, item) for item in one]
                if field.repeated
                else without_zeros(field.type, one)
            )
            if field.repeated and not one:
                continue
        elif one == schema().default(field):
            continue
        found[field.name] = one
    return found


TYPES = ["RunPodSandboxRequest", "CreateContainerRequest", "ContainerStatusResponse",
         "ListPodSandboxStatsResponse", "ListPodSandboxMetricsResponse", "ContainerEventResponse"]  # fmt: skip


@given(st.data())
def test_what_is_written_is_read_again(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(TYPES))
    value = data.draw(messages(name))
    assert decode(name, encode(name, value)).to_dict() == without_zeros(name, value)
    # As the client reads it.
    assert received.read(name, encode(name, value)).to_dict() == without_zeros(name, value)


@pytest.mark.parametrize("name", sorted(schema().messages))
def test_what_is_absent_reads_as_its_default(name: str) -> None:
    answer, message = received.read(name, b'{"unknown": [1]}'), Message(name)
    for field in schema().messages[name]:
        assert getattr(answer, field) == getattr(message, field)
    assert (answer.to_dict(), answer.type_name) == ({}, name)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b'{"exitCode": "x"}', b'{"stdout": "\xff"}'])
def test_an_answer_that_is_none(body: bytes) -> None:
    with pytest.raises(ScowError, match="no ExecSyncResponse"):
        received.read("ExecSyncResponse", body)


def test_a_kept_message_is_written_as_any_other_and_once() -> None:
    item = {"id": "x", "created_at": 7, "state": "CONTAINER_CREATED", "labels": {"a": "b"}}
    plain = encode("ListContainersResponse", {"containers": [item]})
    kept = Kept(item)
    assert encode("ListContainersResponse", {"containers": [kept]}) == plain
    assert kept == item
    assert kept.to_wire("Container") is kept.to_wire("Container")
    alone = encode("ContainerStatusResponse", {"status": Kept(id="x")})
    assert alone == b'{"status":{"id":"x"}}'


def test_items_are_made_again_when_something_changed() -> None:
    made: list[tuple[str, int]] = []

    def make(pod: Pod, state: int) -> dict[str, object]:
        made.append((pod.id, state))
        return {"id": pod.id, "state": state}

    shown = Shown[Pod, int](make)
    one, two = Pod("1"), Pod("2")
    shown.of([(one, 1), (two, 1)])
    assert [item["state"] for *_, item in shown.of([(one, 1), (two, 2)])] == [1, 2]
    assert made == [("1", 1), ("2", 1), ("2", 2)]
    shown.of([(Pod("1"), 1)])  # written anew
    assert [item["id"] for *_, item in shown.of([(two, 2)])] == ["2"]
    assert made[3:] == [("1", 1), ("2", 2)]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        decode("RunPodSandboxRequest", body)
    except InvalidArgument:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
NAMES = sorted({name for fields in schema().messages.values() for f in fields.values()
                for name in (f.name, f.json_name)})  # fmt: skip


@given(st.sampled_from(sorted(schema().messages)), st.dictionaries(st.sampled_from(NAMES), JSON))
def test_any_json_is_read_or_refused(name: str, value: dict[str, Any]) -> None:
    try:
        decode(name, json.dumps(value).encode())
    except InvalidArgument:
        pass


# --- reading ----------------------------------------------------------------------------------


def test_both_names_are_taken() -> None:
    for name in ("containerId", "container_id"):
        assert field_of("StopContainerRequest", "container_id", f'{{"{name}":"x"}}') == "x"


@pytest.mark.parametrize("text", ["5", '"5"', "5.0", "5e0", "50e-1", '"5.00"', '"0.5e1"', "5E+0"])
def test_integers(text: str) -> None:
    assert field_of("StopContainerRequest", "timeout", f'{{"timeout":{text}}}') == 5


@pytest.mark.parametrize("value", [2**63 - 1, -(2**63), 2**53 + 1, 0])
def test_wide_integers_are_exact(value: int) -> None:
    for text in (str(value), f'"{value}"'):
        assert field_of("StopContainerRequest", "timeout", f'{{"timeout":{text}}}') == value


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("1.5", "1.5 is not a whole number"),
        ("1e400", "1e400 is out of range"),
        ("-1e400", "-1e400 is out of range"),
        (str(2**63), "out of range"),
        ("9" * 100_000, "too many digits"),
        ('"' + "9" * 100_000 + '"', "too many digits"),
        ("1e999999999", "out of range"),
        ("NaN", "NaN is not a whole number"),
        ("Infinity", "Infinity is not a whole number"),
        ("true", "must be a whole number, not true or false"),
        ('""', "is not a whole number"),
        ('" 5"', "is not a whole number"),
        ('"5 "', "is not a whole number"),
        ('"+5"', "is not a whole number"),
        ('"0x5"', "is not a whole number"),
        ('"1_0"', "is not a whole number"),
        ('"\u0665"', "is not a whole number"),
        ('"05"', "is not a whole number"),
        ("[5]", "must be a whole number, not a list"),
        ("{}", "must be a whole number, not an object"),
        ('{"a":1,"a":2}', 'the key "a" comes twice'),
    ],
)
def test_no_integer(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode("StopContainerRequest", f'{{"timeout":{text}}}'.encode())
    assert str(caught.value).startswith("timeout: ")
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("AP8-Pw==", b"\x00\xff>?"),
        ("AP8+Pw==", b"\x00\xff>?"),
        ("AP8-Pw", b"\x00\xff>?"),
        ("", b""),
    ],
)
def test_bytes_in_either_alphabet(text: str, wanted: bytes) -> None:
    assert field_of("KeyValue", "value", f'{{"value":"{text}"}}') == wanted


@pytest.mark.parametrize("text", ['"A"', '"AA=A"', '"AA==="', '"A A="', '"%%%%"', "5", "null "])
def test_no_base64(text: str) -> None:
    if text.strip() == "null":
        assert field_of("KeyValue", "value", '{"value":null}') == b""
        return
    with pytest.raises(InvalidArgument, match=r"^value: "):
        decode("KeyValue", f'{{"value":{text}}}'.encode())


@pytest.mark.parametrize("text", ['"UDP"', "1", "1.0"])
def test_enums_by_name_or_number(text: str) -> None:
    assert field_of("PortMapping", "protocol", f'{{"protocol":{text}}}') == "UDP"


@pytest.mark.parametrize("text", ['"udp"', "7", '"1"', "true", "[]"])
def test_no_enum(text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"^protocol: "):
        decode("PortMapping", f'{{"protocol":{text}}}'.encode())


def test_unknown_fields_are_passed_over() -> None:
    body = b'{"container_id":"x","future":{"a":[1,{"b":null}]},"Container_Id":5}'
    assert decode("StopContainerRequest", body).to_dict() == {"container_id": "x"}


def test_null_is_absent() -> None:
    request = decode("RunPodSandboxRequest", b'{"config":null,"runtime_handler":null}')
    assert request.config is None
    assert request.runtime_handler == ""
    assert not request.has("config")


def test_absent_fields_read_as_their_zero() -> None:
    config = Message("ContainerConfig")
    assert config.metadata is None
    assert config.args == []
    assert config.labels == {}
    assert config.tty is False
    assert config.stop_signal == "SIGNAL_RUNTIME_DEFAULT"
    with pytest.raises(AttributeError, match="ContainerConfig has no field 'argz'"):
        _ = config.argz


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b'{"config":{"metadata":{"name":5}}}', "config.metadata.name: must be a string"),
        (b'{"config":{"portMappings":[{},{"hostPort":"x"}]}}', "config.portMappings[1].hostPort: "),
        (b'{"config":{"portMappings":[null]}}', "config.portMappings[0]: null"),
        (b'{"config":{"portMappings":{}}}', "config.portMappings: must be a list"),
        (b'{"config":{"labels":{"a":1}}}', 'config.labels["a"]: must be a string'),
        (b'{"config":{"labels":{"a":null}}}', 'config.labels["a"]: null'),
        (b'{"config":{"labels":{"a":"1","a":"2"}}}', 'config.labels: the key "a" comes twice'),
        (b'{"config":{},"config":{}}', 'the key "config" comes twice'),
        (b'{"config":{"log_directory":"","logDirectory":""}}', "config.logDirectory: given twice"),
        (b'{"config":{"hostname":"\\ud800"}}', "config.hostname: half of a surrogate"),
        (b'{"config":{"linux":{"securityContext":{"runAsUser":5}}}}', "runAsUser: must be an object"),
        (b"[]", "must be an object, not a list"),
        (b"null", "null is not a value here"),
        (b"", "the body is empty"),
        (b"{", "the body is not JSON"),
        (b"{}{}", "the body is not JSON"),
        (b"\xef\xbb\xbf{}", "the body is not JSON"),
        (b"\xff\xfe{\x00}\x00", "the body is not UTF-8"),
        (b"{\xff}", "the body is not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(body: bytes, where: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        decode("RunPodSandboxRequest", body)
    assert where in str(caught.value)


def test_a_secret_is_not_repeated() -> None:
    for body in (b'{"auth":{"password":["hunter2"]}}', b'{"auth":{"password":"\\ud800hunter2"}}'):
        with pytest.raises(InvalidArgument) as caught:
            decode("PullImageRequest", body)
        assert "hunter2" not in str(caught.value)
    request = decode("PullImageRequest", b'{"auth":{"password":"hunter2"}}')
    assert "hunter2" not in f"{request!r} {request.auth!r}"


# --- writing ----------------------------------------------------------------------------------


def written(name: str, value: dict[str, Any]) -> Any:
    return json.loads(encode(name, value))


def test_names_and_numbers_out() -> None:
    status = {"id": "x", "created_at": 2**60 + 1, "state": "CONTAINER_RUNNING", "exit_code": -1}
    assert written("ContainerStatusResponse", {"status": status}) == {
        "status": {
            "id": "x",
            "createdAt": str(2**60 + 1),
            "state": "CONTAINER_RUNNING",
            "exitCode": -1,
        }
    }


def test_defaults_are_left_out_and_messages_kept() -> None:
    value = {"status": {"id": "", "state": "CONTAINER_CREATED", "labels": {}, "mounts": []}}
    assert written("ContainerStatusResponse", value) == {"status": {}}
    assert written("ImageStatusResponse", {"image": None}) == {}


def test_bytes_and_doubles_out() -> None:
    assert written("ExecSyncResponse", {"stdout": b"\xff\x00"}) == {
        "stdout": base64.b64encode(b"\xff\x00").decode()
    }
    found = written("PsiData", {"Avg10": math.inf, "Avg60": math.nan, "Avg300": -math.inf})
    assert found == {"Avg10": "Infinity", "Avg60": "NaN", "Avg300": "-Infinity"}


@pytest.mark.parametrize(
    "value",
    [
        {"nope": 1},
        {"status": {"id": 5}},
        {"status": {"id": b"x"}},
        {"status": {"created_at": "5"}},
        {"status": {"exit_code": True}},
        {"status": {"state": "RUNNING"}},
        {"status": {"labels": [("a", "b")]}},
        {"status": []},
    ],
)
def test_a_wrong_answer_is_our_fault(value: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        encode("ContainerStatusResponse", value)


def test_schema_covers_cri() -> None:
    known = schema()
    assert len(known.methods) == 43
    assert (
        known.methods["/runtime.v1.RuntimeService/RunPodSandbox"].python_name == "run_pod_sandbox"
    )
    for method in known.methods.values():
        assert method.request in known.messages
        assert method.response in known.messages
    scalars = {"string", "bytes", "bool", "double", "map<string,string>", *RANGES}
    for fields in known.messages.values():
        for field in fields.values():
            assert field.type in scalars | set(known.messages) | set(known.enums)
