"""Live sources for tests: streams on loopback that can be stopped, started again and damaged."""

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

SIZE = (64, 48)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def grey(number: int) -> np.ndarray:
    """The picture of a frame: its number modulo 200, as a level of grey, over a texture."""
    texture = np.random.default_rng(number).integers(0, 40, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return texture + np.uint8(number % 200)


def mpeg_ts(sink: Any, rate: int, seconds: float, key_interval: int = 5) -> None:
    """Write an H.264 transport stream to a file object, at its own pace."""
    import av

    with (
        suppress(OSError, av.FFmpegError),  # the reader went away, or this server did
        av.open(sink, "w", format="mpegts", options={"flush_packets": "1"}) as container,
    ):
        stream = container.add_stream("libx264", rate=rate)
        stream.width, stream.height = SIZE
        stream.pix_fmt, stream.gop_size = "yuv420p", key_interval
        stream.options = {"tune": "zerolatency", "preset": "ultrafast"}
        start = time.monotonic()
        for number in range(int(seconds * rate)):
            frame = av.VideoFrame.from_ndarray(grey(number), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, rate)
            for packet in stream.encode(frame):
                container.mux(packet)
            time.sleep(max(0.0, start + number / rate - time.monotonic()))


class Server:
    """An HTTP server of one endless answer, `write(file, path)`, to each that asks."""

    def __init__(self, write: Callable[[Any, str], None], port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.num_asked = 0
        self.paths: list[str] = []
        self._open: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.num_asked += 1
                outer.paths.append(self.path)
                outer._open.append(self.connection)
                self.send_response(200)
                kind = "multipart/x-mixed-replace; boundary=b" if "mjpeg" in self.path else None
                self.send_header("Content-Type", kind or "video/mp2t")
                self.end_headers()
                with suppress(OSError):
                    write(self.wfile, self.path)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None:
                pass

        self._server = Quiet(("127.0.0.1", self.port), Handler)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.02,), daemon=True
        )
        self._thread.start()

    def url(self, path: str = "cam") -> str:
        return f"http://127.0.0.1:{self.port}/{path}"

    def stop(self) -> None:
        """Drop every connection, and listen no longer."""
        self._server.shutdown()
        self._server.server_close()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextmanager
def serving(write: Callable[[Any, str], None], port: int | None = None) -> Iterator[Server]:
    server = Server(write, port)
    try:
        yield server
    finally:
        server.stop()


class _Interleaved:
    """A file of transport-stream packets, sent as RTP over an RTSP connection (RFC 2326, 10.12)."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._sequence, self._rest = connection, 0, b""

    def write(self, data: bytes) -> int:
        self._rest += bytes(data)
        while len(self._rest) >= 188:
            size = min(7, len(self._rest) // 188) * 188
            clock = int(time.monotonic() * 90_000) & 0xFFFFFFFF
            head = struct.pack(">BBHII", 0x80, 33, self._sequence & 0xFFFF, clock, 7)
            packet = head + self._rest[:size]
            self._connection.sendall(struct.pack(">cBH", b"$", 0, len(packet)) + packet)
            self._rest = self._rest[size:]
            self._sequence += 1
        return len(data)


def rtsp(connection: socket.socket, play: Callable[[Any], None]) -> list[str]:
    """Answer one RTSP client, with one transport stream in SDP; returns the requests' URLs."""
    requests = connection.makefile("rb")
    asked = []
    while line := requests.readline().decode():
        verb, url, _ = line.split()
        asked.append(url)
        fields = {}
        while (field := requests.readline().decode().strip()) != "":
            name, _, value = field.partition(":")
            fields[name.lower()] = value.strip()
        body = ""
        more = "Session: 1\r\n"
        if verb == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 33\r\n"
            more += f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n"
        elif verb == "SETUP":
            more += f"Transport: {fields['transport']}\r\n"
        connection.sendall(
            f"RTSP/1.0 200 OK\r\nCSeq: {fields['cseq']}\r\n{more}\r\n{body}".encode()
        )
        if verb == "PLAY":
            with suppress(OSError):
                play(_Interleaved(connection))
            break
    connection.close()
    return asked
