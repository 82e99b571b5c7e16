"""A hub on 127.0.0.1: the few answers that huggingface_hub asks for, and faults on demand."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REPO = "arcinstitute/evo2_tiny"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class HubStub:
    """Files of one repository and what goes wrong with them.

    Attributes:
        files: Name to content.
        cut: Names whose next transfer breaks off half way.
        short: Names that arrive with fewer bytes than stated.
        damaged: Names of which one byte arrives changed.
        requests: `METHOD path range` of every request.
    """

    files: dict[str, bytes]
    cut: set[str] = field(default_factory=set)
    short: set[str] = field(default_factory=set)
    damaged: set[str] = field(default_factory=set)
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def info(self) -> dict[str, object]:
        return {
            "_id": "1", "id": REPO, "modelId": REPO, "sha": COMMIT, "private": False, "tags": [],
            "siblings": [
                {
                    "rfilename": name, "size": len(data), "blobId": hashlib.sha1(data).hexdigest(),
                    "lfs": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1},
                }
                for name, data in self.files.items()
            ],
        }  # fmt: skip


def _handler(stub: HubStub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:
            pass

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, *, body: bool) -> None:
            wanted = self.headers.get("Range", "")
            stub.requests.append(f"{self.command} {self.path} {wanted}".strip())
            if self.path.startswith(f"/api/models/{REPO}"):
                data = json.dumps(stub.info()).encode()
                self.reply(200, {"Content-Type": "application/json"}, data, body=body)
                return
            match = re.fullmatch(rf"/{REPO}/resolve/(main|{COMMIT})/(.+)", self.path)
            if match is None or match.group(2) not in stub.files:
                self.reply(404, {"X-Error-Code": "EntryNotFound"}, b"", body=body)
                return
            self.send_file(match.group(2), wanted, body=body)

        def send_file(self, name: str, wanted: str, *, body: bool) -> None:
            data = stub.files[name]
            digest = hashlib.sha256(data).hexdigest()
            headers = {
                "ETag": f'"{digest}"',
                "X-Linked-Etag": f'"{digest}"',
                "X-Linked-Size": str(len(data)),
                "X-Repo-Commit": COMMIT,
                "Accept-Ranges": "bytes",
            }
            if name in stub.damaged:
                data = data[:100] + bytes([data[100] ^ 1]) + data[101:]
            if name in stub.short and body:
                data = data[:-10]
            status, start = 200, 0
            if wanted:
                start = int(wanted.removeprefix("bytes=").removesuffix("-"))
                status = 206
                headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
            part = data[start:]
            if body and name in stub.cut:
                stub.cut.discard(name)
                self.reply(status, headers, part, body=True, send=len(part) // 2)
                self.close_connection = True
                return
            self.reply(status, headers, part, body=body)

        def reply(
            self,
            status: int,
            headers: dict[str, str],
            data: bytes,
            *,
            body: bool,
            send: int | None = None,
        ) -> None:
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if body:
                self.wfile.write(data[:send])

    return Handler


@contextmanager
def running(stub: HubStub) -> Iterator[HubStub]:
    """Serve the stub on a free port; `stub.endpoint` is its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(stub))
    stub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
