"""A server on this machine that speaks as much of the Hugging Face Hub's protocol as its client asks for."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "1234567890abcdef1234567890abcdef12345678"


class Hub(ThreadingHTTPServer):
    """Serves `files` of one repository, "org/repo", and fails as it is told to.

    `statuses` answers the next HEADs and GETs of a file; `cut` ends bodies early; `etag` names a false hash;
    `uploads` are the files of commits; `private` says whether the repository is, None that it is still to be made;
    `created` are the requests to make it.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.statuses: list[tuple[str, int]] = []
        self.cut = False
        self.etag: str | None = None
        self.requests: list[str] = []
        self.uploads: dict[str, bytes] = {}
        self.private: bool | None = None
        self.created: list[bytes] = []

    def asked_for_files(self) -> int:
        """Return the number of requests about the repository; newer clients also ask for instances of their own."""
        return sum("/org/repo" in request for request in self.requests)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._file(body=False)

    def do_GET(self) -> None:
        self._file(body=True)

    def do_POST(self) -> None:
        self.server.requests.append(f"POST {self.path}")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path == "/api/repos/create":
            self.server.created.append(data)
            if self.server.private is None:
                wanted = json.loads(data)
                self.server.private = wanted.get("private") is True or wanted.get("visibility") == "private"
            self._json({"url": f"{self.server.url}/org/repo"})
        elif "/preupload/" in self.path:
            files = json.loads(data)["files"]
            self._json({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif "/commit/" in self.path:
            import base64

            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.server.uploads[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self._json({"commitUrl": f"{self.server.url}/org/repo/commit/{COMMIT}", "commitOid": COMMIT})
        elif self.path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        else:
            self._send(404)

    def _file(self, body: bool) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        path = self.path.split("?")[0].strip("/")
        if path.startswith("api/models/org/repo"):
            return self._json({"id": "org/repo", "sha": COMMIT, "siblings": [], "private": self.server.private})
        if not path.startswith("org/repo/resolve/"):
            # The Hub answers 401 to those who are not logged in, for what is private and for what does not exist.
            code = "GatedRepo" if path.startswith("org/gated") else "RepoNotFound"
            return self._send(401 if code == "RepoNotFound" else 403, {"X-Error-Code": code})
        revision, _, name = path.removeprefix("org/repo/resolve/").partition("/")
        if revision not in ("main", COMMIT):
            return self._send(404, {"X-Error-Code": "RevisionNotFound"})
        if name not in self.server.files:
            return self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        if self.server.statuses and self.server.statuses[0][0] == self.command:
            return self._send(self.server.statuses.pop(0)[1])
        data = self.server.files[name]
        digest = self.server.etag or hashlib.sha256(data).hexdigest()
        headers = {"ETag": f'"{digest}"', "X-Linked-ETag": f'"{digest}"', "X-Repo-Commit": COMMIT}
        headers["X-Linked-Size"] = str(len(data))
        headers["Accept-Ranges"] = "bytes"
        status = 200
        if body and (wanted := self.headers.get("Range")):
            start = int(wanted.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            data, status = data[start:], 206
        return self._send(status, headers, data, body)

    def _json(self, value: object) -> None:
        self._send(200, {"Content-Type": "application/json"}, json.dumps(value).encode())

    def _send(self, status: int, headers: dict[str, str] | None = None, data: bytes = b"", body: bool = True) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if body and self.command != "HEAD":
            if self.server.cut and len(data) > 100:
                self.wfile.write(data[: len(data) // 2])
                self.close_connection = True
            else:
                self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
