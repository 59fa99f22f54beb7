"""How much memory is free here."""

import os
from dataclasses import dataclass
from pathlib import Path

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory: free, and in all, both as far as a container's limit allows."""

    free: int
    total: int


def main_memory() -> Memory:
    """What a process can take here. Without /proc (macOS) free is all that there is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit_file, used_file in _CGROUPS:
        limit, used = _text(limit_file).strip(), _text(used_file).strip()
        if limit.isdigit() and used.isdigit() and int(limit) < total:
            total, free = int(limit), min(free, max(int(limit) - int(used), 0))
    return Memory(free, total)


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
