"""A hub on the loopback: the four kinds of request that downloading a repository takes, and a line that can be cut."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

#: As of the hub: files of this kind are named by their sha256, the others by git's own digest.
_LARGE = (".bin", ".safetensors", ".model")


class Hub(ThreadingHTTPServer):
    """Serves the files of one folder as one repository.

    Args:
        repo: `owner/name`.
        folder: its files.
        commit: the only revision there is, `main` too.
    """

    daemon_threads = True

    def __init__(self, repo: str, folder: Path, commit: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repo, self.commit = repo, commit
        self.files = {p.name: p.read_bytes() for p in sorted(folder.iterdir())}
        self.digests = {name: _digest(name, data) for name, data in self.files.items()}
        self.gets: list[tuple[str, str | None]] = []  # file and Range of every GET of a file
        #: File -> bytes after which the line is cut, or stalls until `go_on`; used up by the first request.
        self.cut_after: dict[str, int] = {}
        self.stall_after: dict[str, int] = {}
        self.go_on = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        if m := re.fullmatch(rf"/{hub.repo}/resolve/([^/]+)/(.+)", path):
            if m[1] in (hub.commit, "main") and m[2] in hub.files:
                return self._file(m[2], body)
        elif m := re.fullmatch(rf"/api/models/{hub.repo}(/tree|/revision)?(/[^/]+)?", path):
            if (m[2] or "/main")[1:] not in (hub.commit, "main"):
                return self._json({"error": "Invalid rev id"}, 404, {"X-Error-Code": "RevisionNotFound"})
            return self._json([*map(self._entry, hub.files)] if m[1] == "/tree" else self._info())
        elif path.startswith("/api/models/owner/closed"):
            return self._json({"error": "restricted"}, 403, {"X-Error-Code": "GatedRepo"})
        return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})

    def _info(self) -> dict[str, object]:
        siblings = [{"rfilename": e["path"], **e} for e in map(self._entry, self.server.files)]
        return {"id": self.server.repo, "sha": self.server.commit, "siblings": siblings, "tags": []}

    def _entry(self, name: str) -> dict[str, object]:
        data = self.server.files[name]
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data), "oid": self.server.digests[name]}
        if name.endswith(_LARGE):
            digest = entry["oid"]
            entry["lfs"] = {"oid": digest, "sha256": digest, "size": len(data), "pointerSize": 130}
        return entry

    def _json(self, value: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        data = json.dumps(value).encode()
        self._head(status, len(data), {"Content-Type": "application/json", **(headers or {})})
        if self.command == "GET":
            self.wfile.write(data)

    def _file(self, name: str, body: bool) -> None:
        hub, data = self.server, self.server.files[name]
        about = {"X-Repo-Commit": hub.commit, "ETag": f'"{self.server.digests[name]}"', "X-Linked-Size": str(len(data))}
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(first[1]) if first else 0
        if start:
            about["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        self._head(206 if start else 200, len(data) - start, about)
        if not body:
            return
        hub.gets.append((name, self.headers.get("Range")))
        if stop := hub.stall_after.pop(name, None):
            self.wfile.write(data[start:stop])
            self.wfile.flush()
            hub.go_on.wait()
        elif stop := hub.cut_after.pop(name, None):
            self.wfile.write(data[start:stop])
            self.close_connection = True
        else:
            self.wfile.write(data[start:])

    def _head(self, status: int, length: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(length), **headers}.items():
            self.send_header(name, value)
        self.end_headers()


def _digest(name: str, data: bytes) -> str:
    return (hashlib.sha256 if name.endswith(_LARGE) else hashlib.sha1)(data).hexdigest()


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at work, in a thread of its own."""
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.go_on.set()
        hub.shutdown()
        hub.server_close()
        thread.join()
