"""A Hugging Face hub on this machine: huggingface_hub's protocol for files and for Spaces, with faults to order."""

import base64
import hashlib
import http.server
import json
import re
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


def commit_of(text: str) -> str:
    """Returns a commit's name, 40 hexadecimal digits."""
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


@dataclass
class Repository:
    """A repository's commits and branches; `gated` asks for a token."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    lies: dict[str, bytes] = field(default_factory=dict)


@dataclass
class Space:
    """A Space: what was asked for when it was made, its files, settings, and the stages it goes through."""

    created: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    settings: list[tuple[str, str, Any]] = field(default_factory=list)
    stages: list[str] = field(default_factory=lambda: ["BUILDING", "APP_STARTING", "RUNNING"])
    commits: int = 0


class Hub:
    """The hub and its faults.

    Attributes:
        url: What `HF_ENDPOINT` is to be.
        requests: Every request, as `(method, path, Range header)`.
        failures: By path's end: a list of statuses to answer with before the real answer.
        cuts: By path's end: after how many bytes the connection is cut, for each coming request.
        token: What gated repositories want; every token that came is kept in `tokens`.
        logs: The lines that a Space's log streams give.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.spaces: dict[str, Space] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.failures: dict[str, list[int]] = {}
        self.cuts: dict[str, list[int]] = {}
        self.token = "hf_thisisthetokenofatest"
        self.tokens: set[str] = set()
        self.logs = ["Building ...", "ModuleNotFoundError: No module named 'nothing'"]
        self.large = 1 << 10
        self.answers: Callable[[str, str], tuple[int, dict[str, str], bytes] | None] | None = None
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def add(self, name: str, files: dict[str, bytes], *, branch: str = "main", gated: bool = False) -> str:
        """Commits files to a repository and returns the commit."""
        repository = self.repositories.setdefault(name, Repository())
        commit = commit_of(f"{name} {len(repository.commits)}")
        repository.commits[commit] = dict(files)
        repository.branches[branch] = commit
        repository.gated = gated
        return commit

    def gets(self, end: str) -> list[str | None]:
        """Returns the Range headers of the GET requests for a path that ends so."""
        return [ranged for method, path, ranged in self.requests if method == "GET" and path.endswith(end)]

    def close(self) -> None:
        """Stops it; it can't be reached afterwards."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: Hub

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._handle()

    def do_GET(self) -> None:
        self._handle()

    def do_POST(self) -> None:
        self._handle()

    def do_PUT(self) -> None:
        self._handle()

    def _handle(self) -> None:
        hub, path = self.state, urllib.parse.unquote(self.path.partition("?")[0])
        length = int(self.headers.get("Content-Length") or 0)
        self.body = self.rfile.read(length)
        if token := self.headers.get("Authorization"):
            hub.tokens.add(token)
        hub.requests.append((self.command, path, self.headers.get("Range")))
        for end, statuses in hub.failures.items():
            if path.endswith(end) and statuses and (self.command != "HEAD" or "resolve" not in path):
                return self._send(statuses.pop(0), b"out of order")
        if hub.answers is not None and (answer := hub.answers(self.command, path)) is not None:
            return self._send(answer[0], answer[2], answer[1])
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self._model_info(match[1], match[2] or "main")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)(?:/(.*))?", path):
            return self._tree(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._resolve(match[1], match[2], match[3])
        if path.startswith(("/api/repos/create", "/api/spaces/", "/api/validate-yaml", "/api/whoami-v2")):
            return self._space(path)
        self._send(404, b"{}")

    def _repository(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.state.repositories.get(name)
        if repository is None:
            self._send(404 if self.headers.get("Authorization") else 401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return None
        if repository.gated and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            status = 403 if self.headers.get("Authorization") else 401
            self._send(status, b'{"error": "gated"}', {"X-Error-Code": "GatedRepo"})
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            return None
        return commit, repository.commits[commit]

    def _model_info(self, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        siblings = []
        for path, content in found[1].items():
            about: dict[str, Any] = {"rfilename": path, "size": len(content), "blobId": _git_hash(content)}
            if len(content) > self.state.large:
                about["lfs"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            siblings.append(about)
        self._json({"id": name, "modelId": name, "sha": found[0], "siblings": siblings, "private": False, "tags": []})

    def _tree(self, name: str, revision: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        rows = [{"type": "file", "path": p, "size": len(c), "oid": _git_hash(c)} for p, c in found[1].items()]
        self._json(rows)

    def _resolve(self, name: str, revision: str, path: str) -> None:
        if (found := self._repository(name, revision)) is None:
            return
        commit, files = found
        if path not in files:
            return self._send(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit})
        content = self.state.repositories[name].lies.get(path, files[path])
        sha = hashlib.sha256(files[path]).hexdigest() if len(files[path]) > self.state.large else _git_hash(files[path])
        headers = {"ETag": f'"{sha}"', "X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        status = 206 if match else 200
        if match:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._send(status, content[start:], headers)

    def _space(self, path: str) -> None:
        hub = self.state
        if path.startswith("/api/repos/create"):
            asked = json.loads(self.body)
            name = f"{asked.get('organization') or 'me'}/{asked['name']}"
            if name in hub.spaces:
                url = f"{hub.url}/spaces/{name}"
                return self._json({"error": "You already created this space repo", "url": url, "name": name}, 409)
            hub.spaces[name] = Space(asked)
            return self._json({"url": f"{hub.url}/spaces/{name}", "name": name, "id": "1"})
        if path.startswith("/api/validate-yaml"):
            return self._json({"errors": [], "warnings": []})
        if path.startswith("/api/whoami-v2"):
            return self._json({"type": "user", "name": "me", "orgs": []})
        match = re.fullmatch(r"/api/spaces/([^/]+/[^/]+)(?:/(.*))?", path)
        assert match is not None
        space, rest = hub.spaces.get(match[1]), match[2] or ""
        if space is None:
            return self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"})
        if rest.startswith("preupload/"):
            files = json.loads(self.body)["files"]
            rows = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
            return self._json({"files": rows})
        if rest.startswith("commit/"):
            for line in self.body.splitlines():
                row = json.loads(line)
                if row["key"] == "file":
                    space.files[row["value"]["path"]] = base64.b64decode(row["value"]["content"])
                elif row["key"] == "deletedFile":
                    space.files.pop(row["value"]["path"], None)
            space.commits += 1
            url = f"{hub.url}/spaces/{match[1]}/commit/{commit_of('space')}"
            return self._json({"success": True, "commitOid": commit_of("space"), "commitUrl": url})
        if rest == "runtime":
            stage = space.stages.pop(0) if len(space.stages) > 1 else space.stages[0]
            return self._json({"stage": stage, "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}})
        if rest.startswith("logs/"):
            events = "".join(
                f"data: {json.dumps({'data': line, 'timestamp': '2026-01-01T00:00:00.000Z'})}\n\n" for line in hub.logs
            )
            return self._send(200, events.encode(), {"Content-Type": "text/event-stream"})
        if rest in ("variables", "secrets", "sleeptime", "hardware", "restart"):
            asked = json.loads(self.body or b"{}")
            space.settings.append((self.command, rest, asked))
            if rest == "variables":
                return self._json({asked["key"]: {"value": asked["value"], "updatedAt": "2026-01-01T00:00:00.000Z"}})
            return self._json({"stage": "BUILDING", "hardware": {"current": "cpu-basic", "requested": "cpu-basic"}})
        if rest.startswith(("tree/", "revision/")) or not rest:
            rows = [{"type": "file", "path": p, "size": len(c), "oid": _git_hash(c)} for p, c in space.files.items()]
            if rest.startswith("tree/"):
                return self._json(rows)
            siblings = [{"rfilename": row["path"]} for row in rows]
            return self._json({"id": match[1], "sha": commit_of("space"), "siblings": siblings, "tags": []})
        self._send(404, b"{}")

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        path = urllib.parse.unquote(self.path.partition("?")[0])
        for end, cuts in self.state.cuts.items():
            if path.endswith(end) and cuts:
                self.wfile.write(body[: cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                self.connection.close()
                return
        self.wfile.write(body)

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError, ValueError, OSError):  # cut, as was ordered, or the client left
            self.close_connection = True


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
