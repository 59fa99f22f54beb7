"""A wire that takes time, for kernels without netem: what comes in here leaves there later.

    python delay_line.py SECONDS INTERFACE INTERFACE

Ethernet frames go over in both directions, each SECONDS after it came, in order, none lost but
those for which the socket's buffer had no room. Segments that the kernel has not cut yet (GSO) go
over whole, so that a gigabit needs some ten thousand system calls a second and not eighty thousand.
Needs Linux, CAP_NET_RAW, and interfaces that have no address of their own. The rate is not its
work: tc's. Runs until it is killed.
"""

import gc
import os
import select
import socket
import sys
import time
from collections import deque
from contextlib import suppress

ETH_P_ALL = 3
SOL_PACKET, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 263, 15, 23  # linux/if_packet.h
SO_RCVBUFFORCE = 33  # asm-generic/socket.h
ROOM_BYTES = 1 << 24
LONGEST_BYTES = 1 << 17
AT_ONCE = 32  # frames taken before those that are due are looked at again


class End:
    """One end of the wire; `under_way` is what came in here and has not left the other end yet."""

    def __init__(self, interface: str) -> None:
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self.socket.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        self.socket.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.socket.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, ROOM_BYTES)
        self.socket.bind((interface, ETH_P_ALL))
        self.socket.setblocking(False)
        self.under_way: deque[tuple[float, bytes]] = deque()

    def fileno(self) -> int:
        return self.socket.fileno()

    def take(self, delay_seconds: float) -> None:
        with suppress(BlockingIOError):
            for _ in range(AT_ONCE):
                frame = self.socket.recv(LONGEST_BYTES)
                self.under_way.append((time.monotonic() + delay_seconds, frame))

    def hand_over(self, other: "End") -> None:
        while self.under_way and self.under_way[0][0] <= time.monotonic():
            with suppress(OSError):  # the other side has gone down: lost, as on any wire
                other.socket.send(self.under_way[0][1])
            self.under_way.popleft()


def run(delay_seconds: float, left: End, right: End) -> None:
    """Carry frames between the two, for ever."""
    while True:
        due = [end.under_way[0][0] for end in (left, right) if end.under_way]
        wait = max(0.0, min(due) - time.monotonic()) if due else None
        ready, _, _ = select.select((left, right), (), (), wait)
        for end in ready:
            end.take(delay_seconds)
        left.hand_over(right)
        right.hand_over(left)


def main() -> None:
    delay, left, right = sys.argv[1:]
    gc.disable()  # nothing here is cyclic, and a wire does not stop to clean up
    with suppress(OSError):  # nor waits for a core, where that may be asked for
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    run(float(delay), End(left), End(right))


if __name__ == "__main__":
    main()
