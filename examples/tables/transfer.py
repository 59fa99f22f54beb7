"""Sends files over TCP and times them, each one checked at the other end by its SHA-256.

    python transfer.py receive [--port 5005]
    python transfer.py send FILE ADDRESS [--port 5005] [--times 10] [--within 120]

One connection a transfer. The sender writes 40 bytes, the length (8, big-endian) and the digest
(32), then the content. The receiver answers one byte when it has the last one, and another one
once it has compared the digest. The clock runs from before connect() to the first answer; hashing
what came is done on the way, its last piece after that answer. `send` waits up to ten seconds for
a receiver, makes one transfer of nothing, which is not timed, and prints one JSON object:

    {"file", "bytes", "seconds": [...], "connect_seconds": [...], "congestion_control"}

A transfer that is cut short or comes with another digest ends `send` with a message and code 1;
`receive` says it on stderr and serves on. CUBIC wherever the kernel has it, whatever its default,
and no delay for small segments (as ssh and HTTPS do). Nothing is encrypted, resumed or written to
a disk. Standard library only, so that it runs wherever there is a Python.
"""

import argparse
import contextlib
import hashlib
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PORT = 5005
HEADER = struct.Struct("!Q32s")
HAVE_ALL, SAME, OTHER = b".", b"=", b"!"
PIECE_BYTES = 1 << 18
STALLED_SECONDS = 60.0
CONGESTION_CONTROL = "cubic"


class Damaged(Exception):
    """What came is not what was sent; the message says how."""


@dataclass(frozen=True)
class Timing:
    """Of one transfer. connect_seconds: until connect() was done, one round trip."""

    seconds: float
    connect_seconds: float


def take(connection: socket.socket) -> int:
    """Receive one file and answer; returns its number of bytes.

    Raises: Damaged for one that is cut short or has another digest; OSError.
    """
    header = _header(connection)
    length, wanted = HEADER.unpack(header)
    found = hashlib.sha256()
    piece = memoryview(bytearray(PIECE_BYTES))
    missing, num_bytes = length, 0
    while missing:
        found.update(piece[:num_bytes])
        num_bytes = connection.recv_into(piece[: min(missing, PIECE_BYTES)])
        if not num_bytes:
            raise Damaged(f"cut short: {length - missing:,} of {length:,} bytes came")
        missing -= num_bytes
    connection.sendall(HAVE_ALL)
    found.update(piece[:num_bytes])
    if found.digest() != wanted:
        connection.sendall(OTHER)
        raise Damaged(f"sha256 {found.hexdigest()[:12]}… came, {wanted.hex()[:12]}… was announced")
    connection.sendall(SAME)
    return int(length)


def _header(connection: socket.socket) -> bytes:
    header = b""
    while len(header) < HEADER.size:
        more = connection.recv(HEADER.size - len(header))
        if not more:
            raise Damaged(f"cut short: {len(header)} of the header's {HEADER.size} bytes came")
        header += more
    return header


def serve(listener: socket.socket) -> None:
    """Receive one file after the other, for ever; what goes wrong with one is told."""
    while True:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(STALLED_SECONDS)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                take(connection)
            except (Damaged, OSError) as error:
                sys.stderr.write(f"receive: {error}\n")
                sys.stderr.flush()


def give(path: Path, digest: bytes, address: tuple[str, int]) -> Timing:
    """Send one file on a new connection.

    Raises: Damaged if the receiver found it short or different; OSError.
    """
    length = path.stat().st_size
    with open(path, "rb") as file, socket.socket() as connection:
        connection.settimeout(STALLED_SECONDS)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        _choose_congestion_control(connection)
        start = time.perf_counter()
        connection.connect(address)
        connected = time.perf_counter()
        # MSG_MORE: the header shares its first segment with the content.
        connection.send(HEADER.pack(length, digest), socket.MSG_MORE if length else 0)
        sent = connection.sendfile(file) if length else 0
        if sent != length:
            raise Damaged(f"{path}: {sent:,} of {length:,} bytes could be read")
        answer = connection.recv(1)
        stop = time.perf_counter()
        if answer != HAVE_ALL or connection.recv(1) != SAME:
            raise Damaged(f"{path}: the receiver did not get what was sent")
    return Timing(stop - start, connected - start)


def _choose_congestion_control(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # a kernel without it: its default
        connection.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION_CONTROL.encode()
        )


def congestion_control() -> str:
    """What `give` sends with here."""
    with socket.socket() as connection:
        _choose_congestion_control(connection)
        name = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    return name.rstrip(b"\0").decode()


def wait_for(address: tuple[str, int], patience_seconds: float = 10.0) -> None:
    """Until a receiver answers there, with one transfer of nothing. Raises: OSError, Damaged."""
    end = time.monotonic() + patience_seconds
    while True:
        try:
            give(Path(os.devnull), hashlib.sha256().digest(), address)
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.1)


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    verbs = parser.add_subparsers(dest="verb", required=True)
    receive = verbs.add_parser("receive", help="receive files, for ever")
    send = verbs.add_parser("send", help="send one file, several times")
    for verb in (receive, send):
        verb.add_argument("--port", type=int, default=PORT)
    send.add_argument("file", type=Path)
    send.add_argument("address")
    send.add_argument("--times", type=int, default=10)
    send.add_argument(
        "--within", type=float, default=120.0, help="seconds after which no other transfer begins"
    )
    asked = parser.parse_args(words)
    if asked.verb == "receive":
        with socket.create_server(("", asked.port)) as listener:
            serve(listener)
    address = (asked.address, asked.port)
    with open(asked.file, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").digest()
    try:
        wait_for(address)
        timings: list[Timing] = []
        end = time.monotonic() + asked.within
        while not timings or (len(timings) < asked.times and time.monotonic() < end):
            timings.append(give(asked.file, digest, address))
    except (Damaged, OSError) as error:
        sys.stderr.write(f"send: {error}\n")
        return 1
    result = {
        "file": asked.file.name,
        "bytes": asked.file.stat().st_size,
        "seconds": [timing.seconds for timing in timings],
        "connect_seconds": [timing.connect_seconds for timing in timings],
        "congestion_control": congestion_control(),
    }
    sys.stdout.write(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
