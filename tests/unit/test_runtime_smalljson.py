"""The small JSON of scow-oci says what json says."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scow.runtime import smalljson

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.sampled_from(["", "  "]))
def test_what_it_writes_is_read_by_others_and_by_itself(value: object, indent: str) -> None:
    text = smalljson.encode(value, indent)
    assert json.loads(text) == value
    assert smalljson.decode(text.encode()) == value


@pytest.mark.parametrize("text", ["", "{", "{}{}", "x", '{"a":}'])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        smalljson.decode(text.encode())


def test_floats_are_not_ours() -> None:
    with pytest.raises(TypeError):
        smalljson.encode(1.5)
