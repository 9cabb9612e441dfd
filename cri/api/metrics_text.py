"""/metrics: what CRI's metric methods give, and the door's own numbers, as Prometheus text.

(prometheus.io/docs/instrumenting/exposition_formats, version 0.0.4)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})
_HELP_ESCAPES = str.maketrans({"\\": r"\\", "\n": r"\n"})


@dataclass(frozen=True, slots=True)
class Family:
    """One metric of the door's own: `values` by the values of the labels that `keys` names."""

    name: str
    kind: str
    text: str
    keys: tuple[str, ...]
    values: Mapping[tuple[str, ...], int]


def render(
    descriptors: Iterable[Mapping[str, Any]],
    pods: Iterable[Mapping[str, Any]],
    own: Iterable[Family],
) -> bytes:
    """All of it: CRI's descriptors and metrics in canonical form, then the door's own."""
    known = {descriptor["name"]: descriptor for descriptor in descriptors}
    samples: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    for metric in _all_metrics(pods):
        name = metric["name"]
        descriptor = known.get(name)
        if descriptor is None:
            continue  # a name that nobody describes has labels that nobody can name
        kinds[name] = metric.get("metric_type") or "COUNTER"
        value = (metric.get("value") or {}).get("value", 0)
        samples.setdefault(name, []).append(
            _sample(name, descriptor.get("label_keys", ()), metric.get("label_values", ()), value)
        )
    lines: list[str] = []
    for name, found in samples.items():
        lines += _head(name, kinds[name].lower(), known[name].get("help", "")) + found
    for one in own:
        lines += _head(one.name, one.kind, one.text)
        lines += [_sample(one.name, one.keys, labels, n) for labels, n in one.values.items()]
    return "".join(line + "\n" for line in lines).encode()


def _all_metrics(pods: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
    for pod in pods:
        yield from pod.get("metrics", ())
        for container in pod.get("container_metrics", ()):
            yield from container.get("metrics", ())


def _head(name: str, kind: str, text: str) -> list[str]:
    return [f"# HELP {name} {text.translate(_HELP_ESCAPES)}", f"# TYPE {name} {kind}"]


def _sample(name: str, keys: Iterable[str], values: Iterable[str], value: int) -> str:
    labels = ",".join(
        f'{key}="{label.translate(_ESCAPES)}"' for key, label in zip(keys, values, strict=True)
    )
    return f"{name}{{{labels}}} {value}" if labels else f"{name} {value}"
