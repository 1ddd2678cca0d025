"""A small server that speaks as much of the Hugging Face hub as a download needs."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import close_session, constants

_CHUNK = 1 << 14
_WHO_ASKS = "/api/agent-harnesses"  # the client finds out once a day; no part of a download


class Asked(NamedTuple):
    """A request."""

    method: str
    path: str
    bytes: str | None


@dataclass
class Hub:
    """What the server has, what it does wrong on purpose, and what it was asked."""

    url: str = ""
    models: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Of each model, of each commit, the files."""
    refs: dict[str, dict[str, str]] = field(default_factory=dict)
    refuse: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Status and error code of all requests for a model."""
    gated: set[str] = field(default_factory=set)
    """Models whose description is open, and whose files are not."""
    cut: dict[str, int] = field(default_factory=dict)
    """Of a file, after how many bytes the next connection breaks."""
    pause: float = 0.0
    """Seconds between two pieces of a file."""
    asked: list[Asked] = field(default_factory=list)

    def add(self, model: str, files: dict[str, bytes], *refs: str) -> str:
        """Add a commit, to which these branches and tags point from now on; return it."""
        told = repr((model, sorted(files.items()))).encode()
        commit = hashlib.sha1(told, usedforsecurity=False).hexdigest()
        self.models.setdefault(model, {})[commit] = files
        self.refs.setdefault(model, {}).update(dict.fromkeys(refs or ["main"], commit))
        return commit

    def fetched(self) -> list[str]:
        """Return the names of the files that were asked for since the last call."""
        found = [
            each.path.split("/resolve/")[1].partition("/")[2]
            for each in self.asked
            if each.method == "GET" and "/resolve/" in each.path
        ]
        self.asked.clear()
        return found


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a hub on this machine."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def asked_from_here(cache: Path) -> Iterator[Hub]:
    """Run a hub that ``huggingface_hub`` in this process asks, with a cache of its own."""
    template = "{repo_id}/resolve/{revision}/{filename}"
    with hub_server() as server, pytest.MonkeyPatch.context() as patch:
        for name in ("HF_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            patch.delenv(name, raising=False)
        patch.setattr(constants, "ENDPOINT", server.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{server.url}/{template}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 14)
        patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "token"))
        close_session()
        yield server
    close_session()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, *_: Any) -> None:
        """Stay silent."""

    def _answer(self) -> None:
        hub, path = self.state, unquote(urlsplit(self.path).path)
        if path == _WHO_ASKS:
            return self._refuse(404, "")
        hub.asked.append(Asked(self.command, path, self.headers.get("Range")))
        api = re.fullmatch("/api/models/(.+?)(?:/revision/(.+))?", path)
        file = re.fullmatch("/(.+?)/resolve/([^/]+)/(.+)", path)
        found = api or file
        model = found[1] if found else ""
        if model in hub.refuse:
            return self._refuse(*hub.refuse[model])
        if model not in hub.models:
            return self._refuse(404, "RepoNotFound")
        assert found is not None
        revision = found[2] or "main"
        commit = hub.refs[model].get(revision, revision)
        if commit not in hub.models[model]:
            return self._refuse(404, "RevisionNotFound")
        files = hub.models[model][commit]
        if file is None:
            return self._describe(model, commit, files)
        if model in hub.gated:
            return self._refuse(403, "GatedRepo")
        if file[3] not in files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        return self._send(file[3], files[file[3]], commit)

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._begin(status, {"X-Error-Code": code, "Content-Length": "0", **(headers or {})})

    def _describe(self, model: str, commit: str, files: dict[str, bytes]) -> None:
        siblings = [
            {"rfilename": name, "size": len(content), "blobId": _etag(content)}
            for name, content in files.items()
        ]
        about = {"id": model, "sha": commit, "siblings": siblings, "tags": [], "private": False}
        body = json.dumps(about).encode()
        self._begin(200, {"Content-Type": "application/json", "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send(self, name: str, content: bytes, commit: str) -> None:
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}
        begin, status = 0, 200
        if asked := re.fullmatch("bytes=([0-9]+)-", self.headers.get("Range", "")):
            begin, status = int(asked[1]), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        content = content[begin:]
        self._begin(status, {**headers, "Content-Length": str(len(content))})
        if self.command == "HEAD":
            return
        end = self.state.cut.pop(name, None)
        self.close_connection = end is not None
        content = content[:end]
        with suppress(ConnectionError):  # the other side may have enough
            for start in range(0, len(content), _CHUNK):
                self.wfile.write(content[start : start + _CHUNK])
                time.sleep(self.state.pause)

    def _begin(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()
