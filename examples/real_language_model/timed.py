"""Run a command and note what it took: `python timed.py LOG NAME COMMAND...`.

LOG gets a JSON line: wall and CPU seconds, and the largest memory of the command in MB. Its exit
status is the command's.
"""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path


def main() -> int:
    """The command line."""
    log, name, *command = sys.argv[1:]
    start = time.monotonic()
    status = subprocess.run(command).returncode
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    if status == 0:
        line = {
            "stage": name,
            "seconds": round(time.monotonic() - start, 1),
            "cpu_seconds": round(used.ru_utime + used.ru_stime, 1),
            "megabytes": round(used.ru_maxrss / 1000),
        }
        with Path(log).open("a") as file:
            file.write(json.dumps(line) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
