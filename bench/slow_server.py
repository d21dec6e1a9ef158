"""`python -m bench.slow_server FILE RATE`: one file over HTTP, whole or by ranges.

All connections share a line of RATE bytes a second. Prints the file's address, and ends when its standard input does.
"""

from __future__ import annotations

import contextlib
import http.server
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

_BLOCK = 1 << 16


class Line:
    """Lets so many bytes a second pass."""

    def __init__(self, bytes_a_second: float):
        self._rate, self._free_at = bytes_a_second, 0.0
        self._lock = threading.Lock()

    def wait(self, size: int) -> None:
        with self._lock:
            self._free_at = max(self._free_at, time.monotonic() - 0.05) + size / self._rate
            wait = self._free_at - time.monotonic()
        if wait > 0:
            time.sleep(wait)


def handler(path: Path, line: Line) -> type[http.server.BaseHTTPRequestHandler]:
    size = path.stat().st_size

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # or small answers wait 40 ms for an acknowledgement

        def do_GET(self) -> None:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            first = int(match[1]) if match else 0
            last = min(int(match[2] or size) if match else size, size - 1)
            self.send_response(206 if match else 200)
            if match:
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            self.send_header("Content-Length", str(last + 1 - first))
            self.send_header("ETag", '"bench"')
            self.end_headers()
            with path.open("rb") as file:
                for at in range(first, last + 1, _BLOCK):
                    count = min(_BLOCK, last + 1 - at)
                    line.wait(count)
                    os.sendfile(self.connection.fileno(), file.fileno(), at, count)

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # a client that had enough
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextlib.contextmanager
def serving(path: Path, bytes_a_second: float) -> Iterator[str]:
    """The file's address while the block runs."""
    command = [sys.executable, "-m", "bench.slow_server", str(path), str(bytes_a_second)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


def main() -> None:
    path, rate = Path(sys.argv[1]), float(sys.argv[2])
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler(path, Line(rate)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}/{path.name}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
