"""CRI's ImageService. An image has one id everywhere: the digest of its configuration."""

from __future__ import annotations

import base64
import binascii
import os
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from scow.cri import parse
from scow.cri.api import requests
from scow.cri.api.answers import Answer
from scow.cri.api.calls import as_json, chunks
from scow.cri.usage import Usage, Usages
from scow.image.reference import parse_reference
from scow.native.errors import InvalidArgument, NotFound, RegistryError, ScowError

if TYPE_CHECKING:
    from scow.cri.api.message import Message
    from scow.cri.service import Service
    from scow.image.credentials import Credentials
    from scow.image.store import Image


class ImageService:
    """All calls; to be used by any number of threads."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self._usages = Usages()

    def list_images(self, request: Message) -> Answer:
        """ListImages."""
        return {"images": self._list(request.filter)}

    def stream_images(self, request: Message) -> Iterator[Answer]:
        """StreamImages."""
        return chunks("images", self._list(request.filter))

    def _list(self, wanted: Message | None) -> list[Answer]:
        name = wanted.image.image if wanted is not None and wanted.image is not None else ""
        if name:
            image = self._find(name)
            return [_image(image)] if image is not None else []
        found: list[Answer] = []
        for summary in self.service.images.list():
            # Removed meanwhile.
            with suppress(ScowError):
                found.append(_image(self.service.images.get(summary.id)))
        return found

    def _find(self, name: str) -> Image | None:
        try:
            return self.service.images.get(name)
        except NotFound:
            return None

    def image_status(self, request: Message) -> Answer:
        """ImageStatus; a missing image is no error."""
        image = self._find(_name(request.image))
        if image is None:
            return {}
        answer: Answer = {"image": _image(image)}
        if request.verbose:
            answer["info"] = {
                "info": as_json(
                    {
                        "manifest": image.manifest_digest,
                        "created": image.created,
                        "platform": f"{image.os}/{image.architecture}",
                        "layers": list(image.diff_ids),
                        "config": image.config,
                    }
                )
            }
        return answer

    def pull_image(self, request: Message) -> Answer:
        """PullImage."""
        name = _name(request.image)
        credentials = _credentials(request.auth, name)
        try:
            image = self.service.images.pull(name, credentials=credentials)
        except RegistryError as error:
            # The word that kubelets look for.
            raise RegistryError(f"RegistryUnavailable: {error}", hint=error.hint) from error
        return {"image_ref": image.id}

    def remove_image(self, request: Message) -> Answer:
        """RemoveImage, with all its names; one that is gone is fine."""
        image = self._find(_name(request.image))
        if image is not None:
            with suppress(NotFound):
                self.service.remove_image(image.id, force=True)
        return {}

    def image_fs_info(self, request: Message) -> Answer:
        """ImageFsInfo."""
        from scow.image.layers import LayerStore

        root = self.service.root
        store = LayerStore(f"{root}/layers")
        os.makedirs(f"{root}/images", mode=0o700, exist_ok=True)
        blobs = self._usages.get(f"{root}/images")
        # Layers were measured when they came in: they are never walked.
        layers: list[Usage] = []
        for diff_id in store.list():
            with suppress(NotFound):  # removed meanwhile, as a container below
                info = store.info(diff_id)
                layers.append(Usage(blobs.time_ns, info.size, info.entries))
        uppers: list[Usage] = []
        for container_id in self.service.store.ids():
            with suppress(NotFound):
                directory = self.service.store.container_dir(container_id)
                uppers.append(self._usages.get(f"{directory}/upper"))
        return {
            "image_filesystems": [_filesystem(root, [blobs, *layers])],
            "container_filesystems": [_filesystem(root, uppers)],
        }


def _filesystem(root: str, usages: list[Usage]) -> Answer:
    return {
        "timestamp": time.time_ns(),
        "fs_id": {"mountpoint": root},
        "used_bytes": {"value": sum(usage.used_bytes for usage in usages)},
        "inodes_used": {"value": sum(usage.inodes for usage in usages)},
    }


def _name(spec: Message | None) -> str:
    name: str = requests.need(spec, "image").image
    if not name:
        raise InvalidArgument("the request has no image.image")
    return name


def _image(image: Image) -> Answer:
    answer: Answer = {
        "id": image.id,
        "repo_tags": [str(parse_reference(name)) for name in image.names],
        "repo_digests": [str(parse_reference(name)) for name in image.digests],
        "size": image.size,
        "spec": {"image": image.id},
    }
    user = parse.parse_user("image User", image.config.user).user if image.config.user else 0
    if isinstance(user, int):
        answer["uid"] = {"value": user}
    else:
        answer["username"] = user
    return answer


def _credentials(auth: Message | None, name: str) -> Credentials | None:
    """What to prove ourselves with; None: what the host has for that registry."""
    from scow.image.credentials import Credentials

    if auth is None or not _is_for(auth.server_address, name):
        return None
    username, password = auth.username, auth.password
    if auth.auth and not username:
        try:
            decoded = base64.b64decode(auth.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise InvalidArgument("auth.auth is not base64 of 'user:password'") from None
        username, colon, password = decoded.partition(":")
        if not colon:
            raise InvalidArgument("auth.auth is not base64 of 'user:password'")
    if not (username or auth.identity_token or auth.registry_token):
        return None
    return Credentials(username, password, auth.identity_token, auth.registry_token)


# docker's config.json, and kubelets after it, call the one registry by several names.
_HUB = frozenset(
    {"docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"}
)


def _is_for(address: str, name: str) -> bool:
    """Whether credentials for the server at `address` ("": any) may be shown to an image's registry."""
    host = address.partition("://")[2] or address
    host = host.partition("/")[0].lower()
    wanted = parse_reference(name).host.lower()
    return not host or host == wanted or (host in _HUB and wanted in _HUB)
