"""`cdcca` for scripts that call it many times: the imports are paid once, each call is a fork.

    python -m tests.fork_server SOCKET

A call comes as one JSON line {"argv", "cwd", "env"} with its three standard streams; it runs in a
child of this process, as `python -m cdcca_cli` would, and its exit code goes back. `client` gives a
program to put on the PATH as `cdcca`. What differs from a process of its own: everything is
imported already. So tests of imports, signals and costs do not use it.
"""

import array
import json
import os
import signal
import socket
import sys
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, socket, sys
call = json.dumps({{"argv": sys.argv[1:], "cwd": os.getcwd(), "env": dict(os.environ)}})
with socket.socket(socket.AF_UNIX) as to:
    to.connect({address!r})
    fds = array.array("i", [0, 1, 2])
    to.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
    to.sendall(call.encode() + b"\\n")
    code = to.makefile().readline()
sys.exit(int(code) if code else 1)
"""


def client(path: Path, address: Path) -> None:
    """Write the program that calls the server at `address`."""
    path.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    path.chmod(0o755)


def _preload() -> None:
    """Everything that a command imports, and the shipped models' classes by loading them."""
    import cdcca_cli.commands.distill
    import cdcca_cli.loop.demo
    import cdcca_cli.scoring.evaluation  # noqa: F401
    from cdcca_cli.models import load

    load("shipped:student", compute="cpu")


def _serve(to: socket.socket) -> None:
    """One call, in a child."""
    _, ancillary, _, _ = to.recvmsg(1, socket.CMSG_SPACE(3 * 4))
    fds = array.array("i", ancillary[0][2])
    call = json.loads(to.makefile().readline())
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    runner = os.fork()
    if runner:
        for fd in fds:
            os.close(fd)
        _, status = os.waitpid(runner, 0)
        to.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
        os._exit(0)
    to.close()
    for place, fd in enumerate(fds):
        os.dup2(fd, place)
    os.chdir(call["cwd"])
    os.environ.clear()
    os.environ.update(call["env"])
    from cdcca_cli.main import main

    code = main(call["argv"])
    sys.stdout.flush()
    sys.stderr.flush()
    # As an interpreter at its end: what commands left to `atexit` (temporary folders) runs.
    import atexit

    atexit._run_exitfuncs()
    os._exit(code)


def main(address: str) -> None:
    """Serve until SIGTERM."""
    _preload()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that answer calls
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        while True:
            to, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _serve(to)
            to.close()


if __name__ == "__main__":
    main(sys.argv[1])
