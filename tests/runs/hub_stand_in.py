"""Not a test: the part of the hub's HTTP API that uploads and downloads of models use, on this machine, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

TOKEN = "hf_stand_in"


@dataclass
class Repository:
    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: list[tuple[str, list[str]]] = field(default_factory=list)

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr(sorted(self.files.items())).encode()).hexdigest()


class Hub:
    """`repositories` by id, `requests` as (method, path), and whether the next commit fails."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.large: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.fails = False
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def __getitem__(self, name: str) -> Repository:
        return self.repositories[name]

    # -- what the API does: (status, JSON) ----------------------------------------------------------------------------

    def create(self, asked: dict[str, Any]) -> tuple[int, Any]:
        name = asked["name"] if "/" in asked["name"] else f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.repositories:
            return 409, {"error": "exists", "url": f"{self.url}/{name}"}
        self.repositories[name] = Repository(asked.get("visibility") == "private")
        return 200, {"url": f"{self.url}/{name}", "name": name}

    def commit(self, name: str, body: bytes) -> tuple[int, Any]:
        if self.fails:
            return 500, {"error": "The stand-in fails."}
        repository, names, message = self[name], [], ""
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
                continue
            content = base64.b64decode(value["content"]) if line["key"] == "file" else self.large[value["oid"]]
            repository.files[value["path"]] = content
            names.append(value["path"])
        repository.commits.append((message, sorted(names)))
        return 200, {
            "success": True,
            "commitOid": repository.sha,
            "commitUrl": f"{self.url}/{name}/commit/{repository.sha}",
        }

    def batch(self, asked: dict[str, Any]) -> tuple[int, Any]:
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/large/{each['oid']}"}}} for each in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def about(self, name: str, repository: Repository) -> tuple[int, Any]:
        files = [{"rfilename": each} for each in sorted(repository.files)]
        return 200, {
            "id": name,
            "modelId": name,
            "sha": repository.sha,
            "siblings": files,
            "tags": [],
            "private": False,
        }

    def tree(self, repository: Repository) -> tuple[int, Any]:
        rows = [
            {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for name, content in sorted(repository.files.items())
        ]
        return 200, rows


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._file() if "/resolve/" in self.path else self._json(*self._answer(b""))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = b""
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        self._json(*self._answer(body))

    def do_PUT(self) -> None:
        self.hub.large[self.path.rsplit("/", 1)[1]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._json(200, {})

    def _answer(self, body: bytes) -> tuple[int, Any]:
        hub, path = self.hub, urlsplit(self.path).path
        hub.requests.append((self.command, path))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}" and (self.command == "POST" or "whoami" in path):
            return 401, {"error": "Invalid credentials."}
        if path == "/api/whoami-v2":
            return 200, {"type": "user", "name": "me", "auth": {"accessToken": {"role": "write"}}}
        if path == "/api/repos/create":
            return hub.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            return hub.batch(json.loads(body))
        name = "/".join(path.split("/")[3:5])
        if not path.startswith("/api/models/") or name not in hub.repositories:
            return 404, {"error": "Repository not found"}
        repository, what = hub[name], path.split("/")[5] if path.count("/") > 4 else "revision"
        if what == "preupload":
            modes = [
                {"path": each["path"], "uploadMode": "lfs" if each["path"].endswith(".safetensors") else "regular"}
                for each in json.loads(body)["files"]
            ]
            return 200, {"files": [each | {"shouldIgnore": False, "oid": None} for each in modes]}
        if what == "commit":
            return hub.commit(name, body)
        return hub.tree(repository) if what == "tree" else hub.about(name, repository)

    def _file(self) -> None:
        before, after = urlsplit(self.path).path.strip("/").split("/resolve/")
        repository, name = self.hub.repositories.get(before), after.split("/", 1)[1]
        if repository is None or name not in repository.files:
            self._json(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        content = repository.files[name]
        self._send(200, content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": repository.sha})

    def _json(self, status: int, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextmanager
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that huggingface_hub's own client talks to, with a cache of its own."""
    from huggingface_hub import constants

    hub = Hub()
    for name, value in {
        "ENDPOINT": hub.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_URL_HOSTS": frozenset({"127.0.0.1"}),
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
    }.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    try:
        yield hub
    finally:
        hub.server.shutdown()
