"""A stand-in of the Hugging Face Hub on localhost: as much of its HTTP API as a release needs, kept in memory.

    POST /api/repos/create, /api/validate-yaml
    POST /api/models/ORG/NAME/preupload/REV, /ORG/NAME.git/info/lfs/objects/batch, PUT /lfs/OID, POST /lfs/verify
    POST /api/models/ORG/NAME/commit/REV                                     newline-delimited JSON: one commit
    GET  /api/models/ORG/NAME[/revision/REV], /api/models/ORG/NAME/tree/REV, /ORG/NAME/resolve/REV/PATH

Like the real one it refuses writers it does not know, LFS objects of another checksum than their name, and commits of
objects that were never uploaded. Git history, Xet storage and redirects to a CDN are left out.
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

import yaml

TOKEN = "hf_stand_in"
LARGE = (".safetensors", ".png")
"""Suffixes of files that go through LFS, as the Hub's .gitattributes say."""


@dataclass
class Commit:
    sha: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repository:
    private: bool
    commits: list[Commit]

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.sha == revision), None)


@dataclass
class Hub:
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    """Method and path of each, in order."""


class Refused(Exception):
    def __init__(self, status: int, message: str, code: str = ""):
        super().__init__(message)
        self.status, self.code = status, code


@contextmanager
def serve() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        path = self.path.partition("?")[0]
        self.hub.requests.append(f"{self.command} {path}")
        body = self._body()
        try:
            for pattern, method in ROUTES:
                if match := re.fullmatch(pattern, f"{self.command} {path}"):
                    return getattr(self, method)(body, *match.groups())
            raise Refused(404, f"no route for {self.command} {path}")
        except Refused as error:
            self._send(json.dumps({"error": str(error)}).encode(), error.status, {"X-Error-Code": error.code})

    def log_message(self, *_: Any) -> None:
        pass

    # ---- writing ----

    def create(self, body: bytes) -> None:
        self._writer()
        wanted = json.loads(body)
        name = f"{wanted['organization']}/{wanted['name']}"
        known = name in self.hub.repositories
        if not known:
            first = Commit(_sha(name), "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
            self.hub.repositories[name] = Repository(wanted.get("visibility") == "private", [first])
        self._json({"url": f"{self.hub.url}/{name}", "name": name}, 409 if known else 200)

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(found[1]) if found else None
        errors = [] if isinstance(data, dict) else [{"message": "no metadata"}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def preupload(self, body: bytes, name: str, revision: str) -> None:
        self._writer()
        self._commit(name, revision)
        modes = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self._json({"files": modes})

    def batch(self, body: bytes, name: str) -> None:
        self._writer()
        objects = []
        for wanted in json.loads(body)["objects"]:
            if wanted["oid"] not in self.hub.lfs:
                wanted["actions"] = {
                    "upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.hub.url}/lfs/verify"},
                }
            objects.append(wanted)
        self._json({"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        if hashlib.sha256(body).hexdigest() != oid:
            raise Refused(400, "checksum does not match")
        self.hub.lfs[oid] = body
        self._send(b"", 200)

    def verify(self, body: bytes) -> None:
        wanted = json.loads(body)
        if len(self.hub.lfs.get(wanted["oid"], b"")) != wanted["size"]:
            raise Refused(404, "object not found")
        self._json({})

    def commit(self, body: bytes, name: str, revision: str) -> None:
        self._writer()
        head = self._commit(name, revision)
        files, message = dict(head.files), ""
        for line in body.splitlines():
            item = json.loads(line)
            key, value = item["key"], item["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.hub.lfs:
                    raise Refused(400, f"{value['path']}: no such object")
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            else:
                raise Refused(400, f"no operation {key}")
        commits = self.hub.repositories[name].commits
        commits.append(Commit(_sha(f"{name} {len(commits)}"), message, files))
        self._json({"commitUrl": f"{self.hub.url}/{name}/commit/{commits[-1].sha}", "commitOid": commits[-1].sha})

    # ---- reading ----

    def info(self, _: bytes, name: str, revision: str | None) -> None:
        commit = self._commit(name, revision or "main")
        siblings = [{"rfilename": path} for path in commit.files]
        private = self.hub.repositories[name].private
        self._json(
            {"id": name, "modelId": name, "sha": commit.sha, "private": private, "siblings": siblings, "tags": []}
        )

    def tree(self, _: bytes, name: str, revision: str) -> None:
        commit = self._commit(name, revision)
        self._json([_entry(path, content) for path, content in commit.files.items()])

    def resolve(self, _: bytes, name: str, revision: str, path: str) -> None:
        commit = self._commit(name, revision)
        if path not in commit.files:
            raise Refused(404, "Entry not found", "EntryNotFound")
        content = commit.files[path]
        entry = _entry(path, content)
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        self._send(content, 200, {"X-Repo-Commit": commit.sha, "ETag": f'"{etag}"'})

    # ---- requests ----

    def _writer(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refused(401, "Invalid credentials")

    def _commit(self, name: str, revision: str) -> Commit:
        repository = self.hub.repositories.get(name)
        if repository is not None and repository.private:
            self._writer()
        if repository is None:
            raise Refused(404, "Repository not found", "RepoNotFound")
        commit = repository.at(revision)
        if commit is None:
            raise Refused(404, f"no revision {revision}", "RevisionNotFound")
        return commit

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(json.dumps(value).encode(), status, {"Content-Type": "application/json"})

    def _send(self, content: bytes, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {**(headers or {}), "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES = (
    (r"POST /api/repos/create", "create"),
    (r"POST /api/validate-yaml", "validate"),
    (rf"POST /api/models/{NAME}/preupload/(\w+)", "preupload"),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", "batch"),
    (r"PUT /lfs/([0-9a-f]{64})", "put"),
    (r"POST /lfs/verify", "verify"),
    (rf"POST /api/models/{NAME}/commit/(\w+)", "commit"),
    (rf"GET /api/models/{NAME}(?:/revision/(\w+))?", "info"),
    (rf"GET /api/models/{NAME}/tree/(\w+)", "tree"),
    (rf"(?:GET|HEAD) /{NAME}/resolve/(\w+)/(.+)", "resolve"),
)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(content),
        "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return entry


def _sha(text: str) -> str:
    return hashlib.sha1(text.encode()).hexdigest()
