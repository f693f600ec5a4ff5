"""A hub on this machine: the part of the Hugging Face hub's HTTP interface that its client uses for one model."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Hub:
    """Repositories by id, each with ``private`` and the ``commits`` it has seen, a dict of files each."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, Any]] = {}
        self.fetched: list[str] = []
        self.address = ""

    def put(self, name: str, files: dict[str, bytes], private: bool = False) -> None:
        """A repository made by other means than ours."""
        self.repositories[name] = {"private": private, "commits": [files]}

    def files(self, name: str) -> dict[str, bytes]:
        """What a repository holds now."""
        return dict(self.repositories[name]["commits"][-1])


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub that answers while this lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def _sha(number: int) -> str:
    return f"{number:040x}"


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?", path):
            name, what, revision = found.groups()
            if (files := self._at(name, revision or "main")) is None:
                return
            if what == "tree":
                self._json([
                    {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for file, content in files.items()
                ])  # fmt: skip
                return
            repository = self.hub.repositories[name]
            number = self._number(name, revision or "main")
            siblings = [{"rfilename": file} for file in files]
            self._json({"id": name, "sha": _sha(number), "private": repository["private"], "siblings": siblings})
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            name, revision, file = found.groups()
            if (files := self._at(name, revision)) is None:
                return
            if file not in files:
                self._error(404, "EntryNotFound")
                return
            if self.command == "GET":
                self.hub.fetched.append(file)
            mark = hashlib.sha1(files[file]).hexdigest()
            self._send(files[file], {"ETag": f'"{mark}"', "X-Repo-Commit": _sha(self._number(name, revision))})
        else:
            self._error(404, "RepoNotFound")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = self.path.partition("?")[0]
        if not self.headers.get("Authorization"):
            self._error(401, "RepoNotFound")
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if name not in self.hub.repositories:
                private = asked.get("private") or asked.get("visibility") == "private"
                self.hub.put(name, {".gitattributes": b""}, bool(private))
            self._json({"url": f"{self.hub.address}/{name}"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", path):
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            commits, files = self.hub.repositories[found[1]]["commits"], self.hub.files(found[1])
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "deletedFile":
                    del files[line["value"]["path"]]
            commits.append(files)
            self._json({"commitUrl": f"{self.hub.address}/{found[1]}/commit/main", "commitOid": _sha(len(commits) - 1)})
        else:
            self._error(404, "RepoNotFound")

    def _number(self, name: str, revision: str) -> int:
        commits = self.hub.repositories[name]["commits"]
        return len(commits) - 1 if revision == "main" else int(revision, 16)

    def _at(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a revision; None, and told so, where there is no such thing."""
        if name not in self.hub.repositories:
            self._error(404, "RepoNotFound")
            return None
        commits = self.hub.repositories[name]["commits"]
        if revision != "main" and not (re.fullmatch(r"[0-9a-f]{40}", revision) and int(revision, 16) < len(commits)):
            self._error(404, "RevisionNotFound")
            return None
        return commits[self._number(name, revision)]

    def _error(self, status: int, code: str) -> None:
        self._send(b"{}", {"X-Error-Code": code, "X-Error-Message": code}, status)

    def _json(self, data: Any) -> None:
        self._send(json.dumps(data).encode(), {"Content-Type": "application/json"})

    def _send(self, content: bytes, headers: dict[str, str], status: int = 200) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
