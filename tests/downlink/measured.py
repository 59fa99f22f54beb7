"""`python -m tests.downlink.measured FOLDER FILE...`: what each file costs that `apply` refuses.

Each is applied in a process of its own, forked from one that has already applied a sound update, so
that what is loaded anyhow is not counted. One JSON object a line: the file, the exit code, the
message, the bytes by which memory grew at its highest, and the seconds of processor time.
"""

import json
import os
import sys
import time
from pathlib import Path

from cdcca_cli import streams
from cdcca_cli.downlink import receiver
from cdcca_cli.errors import CdccaError
from cdcca_cli.formats.device import Device


def memory(which: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (at its highest)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(which):
            return int(line.split()[1]) << 10
    raise ValueError(which)


def measured(folder: str, file: str) -> dict[str, object]:
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    before, began = memory("VmRSS"), time.process_time()
    code, words = 0, ""
    try:
        device = Device.open(folder)
        with streams.binary_input(file) as source:
            words = receiver.receive(device, source, where="file", dry_run=True).summary()
    except CdccaError as error:
        code, words = error.exit_code, str(error)
    seconds = time.process_time() - began
    grown = memory("VmHWM") - before
    return {"file": file, "code": code, "words": words, "bytes": grown, "seconds": seconds}


def main(folder: str, *files: str) -> None:
    measured(folder, files[0])
    for file in files:
        child = os.fork()
        if child == 0:
            sys.stdout.write(json.dumps(measured(folder, file)) + "\n")
            sys.stdout.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        if status:
            sys.exit(f"{file}: ended by itself with {status}")


if __name__ == "__main__":
    main(*sys.argv[1:])
