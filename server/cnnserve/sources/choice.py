"""Decides what an address is: a pack in a registry, on a web server, in an object store, or on this machine."""

import re
import urllib.parse
from collections.abc import Collection
from pathlib import Path

from cnnserve.sources import contents
from cnnserve.sources.contents import Layout, Pack, Plain, Source, Tar
from cnnserve.sources.errors import SourceError
from cnnserve.sources.object_stores import SCHEMES, ObjectStore
from cnnserve.sources.oci import LAYOUT_FILE
from cnnserve.sources.registry import Reference, Registry
from cnnserve.sources.stores import Folder, Store, WebFolder, open_web
from cnnserve.sources.web import Web, check_url

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_TAR = ".tar"


def source(address: str, credential_hosts: Collection[str] = ()) -> Source:
    """Returns what is at an address; nothing of it is read yet, or little. Raises `SourceError`.

    `credential_hosts`: hosts to which credentials may go, too, see `Web`.
    """
    if "::" in address:
        raise SourceError(f"{address[:200]!r} chains addresses with '::', which is not supported; give one address")
    match = _SCHEME.match(address)
    if match is None:
        return _on_disk(Path(address))
    scheme = match[1]
    if scheme == "oci":
        return Pack(Registry(Reference.parse(address), Web(credential_hosts)))
    if scheme == "https":
        return _on_web(check_url(address), Web(credential_hosts))
    if scheme in SCHEMES:
        store = ObjectStore(address)
        return Tar(lambda: store.open("")) if address.endswith(_TAR) else _folder(store)
    known = ", ".join(f"{name}://" for name in ("oci", *SCHEMES, "https"))
    raise SourceError(f"{address[:200]!r} has the scheme {scheme}://, expected {known} or a path")


def _on_disk(path: Path) -> Source:
    if path.is_dir():
        return _folder(Folder(path))
    if not path.is_file():
        what = "is no file or folder" if path.exists() else "does not exist"
        raise SourceError(f"{path} {what}, expected a layout, a tar, or an address such as oci://HOST/NAME:TAG")
    return Tar(lambda: contents.opened(path))


def _on_web(url: str, web: Web) -> Source:
    parts = urllib.parse.urlsplit(url)
    if parts.path.endswith(_TAR):
        return Tar(lambda: open_web(url, web))
    if parts.query or parts.fragment:
        raise SourceError(
            f"{parts.hostname}: an address with '?' or '#' must be that of a tar, such as PATH.tar?KEY=VALUE"
        )
    return Pack(Layout(WebFolder(url, web)))


def _folder(store: Store) -> Source:
    return Pack(Layout(store)) if store.has(LAYOUT_FILE) else Plain(store)
