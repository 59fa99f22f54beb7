"""A server that answers for one repository as the hub does, and counts the bytes of each file.

    /OWNER/NAME/resolve/REVISION/FILE   HEAD and GET, whole or a range
    /api/models/OWNER/NAME              the names of its files

Everything else is not found, as in a repository without folders.
"""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """endpoint: for HF_ENDPOINT. sent: bytes by file. requests: number by file.

    size: the length of a file that a part's headers name; None: the true one.
    """

    def __init__(self, folder: Path, repository: str, *, has_ranges: bool = True) -> None:
        self.folder, self.repository, self.has_ranges = folder, repository, has_ranges
        self.sent, self.requests = Counter[str](), Counter[str]()
        self.endpoint = ""
        self.size: str | None = None

    def listing(self) -> dict[str, object]:
        names = [{"rfilename": path.name} for path in sorted(self.folder.iterdir())]
        return {"id": self.repository, "modelId": self.repository, "sha": COMMIT, "siblings": names}

    def file(self, path: str) -> Path | None:
        match = re.fullmatch(rf"/{re.escape(self.repository)}/resolve/[^/]+/(.+)", path)
        found = None if match is None else self.folder / match[1]
        return found if found is not None and found.is_file() else None


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def do_POST(self) -> None:
            self.send_error(404)

        def _answer(self, *, with_body: bool) -> None:
            path = self.path.split("?")[0]
            if path == f"/api/models/{hub.repository}":
                self._send(json.dumps(hub.listing()).encode())
                return
            file = hub.file(path)
            if file is None:
                self.send_response(404)
                is_known = f"/{hub.repository}/" in path
                self.send_header("X-Error-Code", "EntryNotFound" if is_known else "RepoNotFound")
                self.send_header("X-Repo-Commit", COMMIT)
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            data = file.read_bytes()
            total, begin, end = len(data), 0, len(data)
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            is_part = span is not None and hub.has_ranges
            if is_part and span is not None:
                begin, end = int(span[1]), min(int(span[2]) + 1, total)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {begin}-{end - 1}/{hub.size or total}")
            else:
                self.send_response(200)
            self.send_header("ETag", f'"{file.name}-{total}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("Content-Length", str(end - begin))
            self.end_headers()
            if with_body:
                hub.requests[file.name] += 1
                hub.sent[file.name] += end - begin
                self.wfile.write(data[begin:end])

        def _send(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
