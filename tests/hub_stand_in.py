"""A stand-in of the Hugging Face Hub: as much of its HTTP interface as Segue uses, in memory."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

Files = dict[str, bytes]


@dataclass
class Repository:
    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        text = json.dumps([len(self.commits), sorted(files)])
        name = hashlib.sha1(text.encode()).hexdigest()
        self.commits[name], self.branches[branch] = files, name
        return name

    def files(self, revision: str) -> Files | None:
        return self.commits.get(self.branches.get(revision, revision))


class Hub(ThreadingHTTPServer):
    """Serve repositories; requests without the token see no private one and change nothing."""

    token = "hf_right"

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer_file()

    def do_GET(self) -> None:
        if not self.path.startswith("/api/models/"):
            self.answer_file()
            return
        name, what, revision = self.parts()
        repository = self.visible(name)
        if repository is None:
            return
        files = repository.files(revision)
        if files is None:
            self.error(404, "RevisionNotFound")
        elif what == "tree":
            self.send([self.entry(path, data) for path, data in sorted(files.items())])
        else:
            sha = repository.branches.get(revision, revision)
            siblings = [{"rfilename": path} for path in sorted(files)]
            self.send({"id": name, "sha": sha, "siblings": siblings})

    def do_PUT(self) -> None:
        self.server.objects[self.path.rpartition("/")[2]] = self.body()
        self.send({})

    def do_POST(self) -> None:
        body = self.body()
        if self.path == "/api/validate-yaml":
            self.send({"errors": [], "warnings": []})
            return
        if self.headers.get("Authorization") != f"Bearer {self.server.token}":
            self.error(401, "")
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            status = 409 if name in self.server.repositories else 200
            if status == 200:
                private = asked.get("visibility") == "private" or bool(asked.get("private"))
                repository = self.server.repositories[name] = Repository(private)
                repository.commit("main", {".gitattributes": b""})
            address = {"url": f"{self.server.address}/{name}", "id": name, "name": name}
            self.send(address, status=status)
        elif self.path.endswith("/info/lfs/objects/batch"):
            self.send(
                {
                    "transfer": "basic",
                    "objects": [self.upload(o) for o in json.loads(body)["objects"]],
                }
            )
        else:
            self.change(body)

    def upload(self, asked: dict[str, Any]) -> dict[str, Any]:
        href = f"{self.server.address}/objects/{asked['oid']}"
        return asked | {"actions": {"upload": {"href": href, "header": {}}}}

    def change(self, body: bytes) -> None:
        name, what, revision = self.parts()
        repository = self.visible(name)
        if repository is None:
            return
        if what == "branch":
            known = revision in repository.branches
            repository.branches.setdefault(revision, repository.branches["main"])
            self.error(409, "") if known else self.send({})
        elif what == "preupload":
            modes = [
                {"path": f["path"], "shouldIgnore": False, "uploadMode": self.mode(f["path"])}
                for f in json.loads(body)["files"]
            ]
            self.send({"files": modes})
        else:
            files = dict(repository.files(revision) or {})
            for line in map(json.loads, body.splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.server.objects[value["oid"]]
                elif line["key"] == "deletedFile":
                    del files[value["path"]]
            sha = repository.commit(revision, files)
            url = f"{self.server.address}/{name}/commit/{sha}"
            self.send({"success": True, "commitOid": sha, "commitUrl": url, "hookOutput": ""})

    def answer_file(self) -> None:
        name, revision, path = self.parts(marker="resolve")
        repository = self.visible(name)
        if repository is None:
            return
        data = (repository.files(revision) or {}).get(path)
        if data is None:
            self.error(404, "EntryNotFound")
            return
        sha = repository.branches.get(revision, revision)
        etag = hashlib.sha256(data).hexdigest()
        self.send(data, {"X-Repo-Commit": sha, "ETag": f'"{etag}"'})

    def mode(self, path: str) -> str:
        return "lfs" if path.endswith(".safetensors") else "regular"

    def entry(self, path: str, data: bytes) -> dict[str, Any]:
        oid = hashlib.sha1(data).hexdigest()
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(data), "oid": oid}
        if self.mode(path) == "lfs":
            oid = hashlib.sha256(data).hexdigest()
            entry["lfs"] = {"oid": oid, "size": len(data), "pointerSize": 134}
        return entry

    def parts(self, marker: str = "") -> tuple[str, str, str]:
        """Return owner/name and the two parts of the path after it."""
        path = unquote(urlsplit(self.path).path).removeprefix("/api/models").strip("/")
        if marker:
            name, _, rest = path.partition(f"/{marker}/")
            revision, _, file = rest.partition("/")
            return name, revision, file
        owner, name, *rest = path.split("/")
        what, revision = (*rest, "", "main")[:2] if rest else ("", "main")
        return f"{owner}/{name}", what, revision or "main"

    def visible(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        known = self.headers.get("Authorization") == f"Bearer {self.server.token}"
        if repository is None or (repository.private and not known):
            self.error(404 if known else 401, "RepoNotFound")
            return None
        return repository

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def error(self, status: int, code: str) -> None:
        headers = {"X-Error-Code": code} if code else {}
        self.send({"error": code}, headers, status)

    def send(self, content: Any, headers: dict[str, str] | None = None, status: int = 200) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.server.requests.append(f"{self.command} {self.path}")
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        if not isinstance(content, bytes):
            self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)
