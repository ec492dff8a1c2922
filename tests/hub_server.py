"""A hub on this machine: the part of the Hugging Face protocol that loading and pushing models uses, stdlib only.

Small files are git blobs (their ETag is their SHA-1); files above `LFS_FROM` bytes are LFS objects, which are served by
redirect with their SHA-256 as `X-Linked-Etag`. Commits are numbered by content, branches and tags name them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_FROM = 4096


@dataclass
class Repository:
    """Its commits, by hash, and what names them."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def commit(self, files: dict[str, bytes], message: str = "", ref: str = "main") -> str:
        """Add files to what `ref` holds and return the new commit's hash."""
        tree = {**self.commits.get(self.refs.get(ref, ""), {}), **files}
        content = json.dumps(
            [[name, sha256(data)] for name, data in sorted(tree.items())] + [[message, len(self.commits)]]
        )
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit], self.messages[commit], self.refs[ref] = tree, message, commit
        return commit

    def resolve(self, revision: str) -> str | None:
        found = self.refs.get(revision, revision)
        return found if found in self.commits else None


@dataclass
class Hub:
    """The server's state, and what a test tells it to do.

    Attributes:
        endpoint: Its address.
        repositories: By `org/name`.
        token: Who sends it may read private repositories and write.
        requests: `METHOD path` of each request, and its Range header if it has one.
        cuts: How many downloads of LFS objects still end half-way.
        corrupt: Serve other bytes of the right length for LFS objects.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    uploads: dict[str, bytes] = field(default_factory=dict)
    token: str = "hf_secret"
    requests: list[str] = field(default_factory=list)
    cuts: int = 0
    corrupt: bool = False

    @property
    def storage(self) -> str:
        """The same server by another name: the client stops its HEAD request where a redirect leaves the hub's host."""
        return self.endpoint.replace("127.0.0.1", "localhost")

    def downloads(self) -> list[str]:
        return [line for line in self.requests if line.startswith("GET /lfs/")]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def is_lfs(data: bytes) -> bool:
    return len(data) >= LFS_FROM


def git_blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class Refusal(Exception):
    """An HTTP error with the hub's own code."""

    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message or code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        wanted = self.headers.get("Range")
        self.hub.requests.append(f"{self.command} {path}" + (f" {wanted}" if wanted else ""))
        # The body is read before anything is answered, or the connection could not be used again.
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method:
                    action(self, *match.groups(), body=body)
                    return
            raise Refusal(404, "", f"no such route {path}")
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.message}
            self._send(
                refusal.status, json.dumps({"error": refusal.message}).encode(), {k: v for k, v in headers.items() if v}
            )

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _send(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, values: Any) -> None:
        self._send(200, json.dumps(values).encode(), {"Content-Type": "application/json"})

    @property
    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {self.hub.token}"

    def _repository(self, name: str) -> Repository:
        repository = self.hub.repositories.get(name)
        # As the real hub does: whoever may not know of a repository hears the same as if there were none.
        if repository is None or (repository.private and not self._may):
            raise Refusal(404 if self._may else 401, "RepoNotFound", "Repository not found")
        if repository.gated and not self._may:
            raise Refusal(401, "GatedRepo", "Access to this model is restricted")
        return repository

    def _commit(self, name: str, revision: str) -> tuple[str, dict[str, bytes]]:
        repository = self._repository(name)
        commit = repository.resolve(revision)
        if commit is None:
            raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, repository.commits[commit]

    # ---- reading

    def resolve(self, name: str, revision: str, filename: str, body: bytes) -> None:
        commit, files = self._commit(name, revision)
        headers = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if filename not in files:
            self._send(404, b"", {**headers, "X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
            return
        data = files[filename]
        if is_lfs(data):
            digest = sha256(data)
            linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(data))}
            self.hub.uploads[digest] = data
            self._send(302, b"", {**headers, **linked, "Location": f"{self.hub.storage}/lfs/{digest}"})
        else:
            self._send_content(data, {**headers, "ETag": f'"{git_blob(data)}"'})

    def lfs_download(self, digest: str, body: bytes) -> None:
        data = self.hub.uploads[digest]
        if self.hub.corrupt:
            data = data[:-4] + bytes(255 - byte for byte in data[-4:])
        self._send_content(data, {"ETag": f'"{digest}"', "Accept-Ranges": "bytes"})

    def _send_content(self, data: bytes, headers: dict[str, str]) -> None:
        total, status = len(data), 200
        if match := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or ""):
            first, last = int(match[1]), int(match[2] or total - 1)
            data, status = data[first : last + 1], 206
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{total}"}
        if self.command == "GET" and self.hub.cuts and is_lfs(data):
            self.hub.cuts -= 1
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            self.close_connection = True
            return
        self._send(status, data, headers)

    def model_info(self, name: str, revision: str | None, body: bytes) -> None:
        commit, files = self._commit(name, revision or "main")
        siblings = [{"rfilename": path} for path in files]
        private = self._repository(name).private
        self._json(
            {
                "_id": "1",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def tree(self, name: str, revision: str, folder: str | None, body: bytes) -> None:
        _, files = self._commit(name, revision)
        self._json([tree_entry(path, data) for path, data in files.items()])

    # ---- writing

    def _writer(self) -> None:
        if not self._may:
            raise Refusal(401, "", "Invalid username or password.")

    def create(self, body: bytes) -> None:
        self._writer()
        asked = json.loads(body)
        name = f"{asked.get('organization') or 'me'}/{asked['name']}"
        if name in self.hub.repositories:
            self._send(409, json.dumps({"error": "exists", "url": f"{self.hub.endpoint}/{name}"}).encode())
            return
        self.hub.repositories[name] = Repository(
            private=asked.get("visibility") == "private" or bool(asked.get("private"))
        )
        self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        self._json({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": "1"})

    def validate_card(self, body: bytes) -> None:
        self._json({"errors": [], "warnings": []})

    def preupload(self, name: str, revision: str, body: bytes) -> None:
        self._writer()
        self._repository(name)
        modes = [
            {"path": f["path"], "uploadMode": "lfs" if f["size"] >= LFS_FROM else "regular", "shouldIgnore": False}
            for f in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def lfs_batch(self, name: str, body: bytes) -> None:
        self._writer()
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.hub.endpoint}/lfs-upload/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, digest: str, body: bytes) -> None:
        assert sha256(body) == digest
        self.hub.uploads[digest] = body
        self._send(200)

    def commit(self, name: str, revision: str, body: bytes) -> None:
        self._writer()
        lines = [json.loads(line) for line in body.splitlines()]
        message = next(line["value"]["summary"] for line in lines if line["key"] == "header")
        files = {}
        for line in lines:
            if line["key"] == "file":
                files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "lfsFile":
                files[line["value"]["path"]] = self.hub.uploads[line["value"]["oid"]]
        commit = self._repository(name).commit(files, message, revision)
        self._json({"success": True, "commitOid": commit, "commitUrl": f"{self.hub.endpoint}/{name}/commit/{commit}"})


def tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": git_blob(data)}
    if is_lfs(data):
        entry["lfs"] = {"oid": sha256(data), "size": len(data), "pointerSize": 130}
    return entry


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (("GET", "HEAD"), rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.resolve),
    (("GET", "HEAD"), r"/lfs/(\w+)", Handler.lfs_download),
    (("GET",), rf"/api/models/{NAME}(?:/revision/([^/]+))?", Handler.model_info),
    (("GET",), rf"/api/models/{NAME}/tree/([^/]+)(?:/(.*))?", Handler.tree),
    (("POST",), r"/api/repos/create", Handler.create),
    (("POST",), r"/api/validate-yaml", Handler.validate_card),
    (("POST",), rf"/api/models/{NAME}/preupload/([^/]+)", Handler.preupload),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/lfs-upload/(\w+)", Handler.lfs_upload),
    (("POST",), rf"/api/models/{NAME}/commit/([^/]+)", Handler.commit),
)


@contextmanager
def serve() -> Iterator[Hub]:
    """Run a hub on a free port of this machine until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
