"""Tells the runtime of a change of the overlay by a command, and takes the change back if it fails.

The command runs after an update was installed and after a rollback, not after a trust list, a
codebook or a dry run. It runs in a shell, as `remote` runs one, in the working folder, with nothing
to read; what it prints goes to stderr. Its environment has, beside that of cdcca:

    CDCCA_DEVICE                              the device folder, as an absolute path
    CDCCA_SEQUENCE, CDCCA_DIGEST              of the overlay that is current now
    CDCCA_PREVIOUS_SEQUENCE, CDCCA_PREVIOUS_DIGEST
                                              of the one that the command last succeeded with; the
                                              same as the current one if the device has gone back

**If it fails** (another exit status than 0, a signal, more than `notify_timeout` seconds, no shell)
the device goes back to what it had before: overlay, kept overlays and highest_sequence. Keys and
codebook stay. The command is run once more, so that the runtime has the old files again, and
`apply` ends with NotifyFailed (81). The same update can be applied again later.

**If cdcca is stopped** (Ctrl-C, a signal, kill -9, a power cut) between the installation and the
end of the command, the command is owed. A mark in the folder says so (`formats.mark`): it is on
the disk before the change, and goes when the command has succeeded. The next `apply` that has a
command runs it first, even if it brings nothing new, with the same consequences if it fails.
`--rollback` goes back first and runs it once. An `apply` without a command leaves the mark, and
says so. If the command also fails after the device went back, it stays owed.

So the command has to bear being run twice for one overlay, even while an earlier run, whose cdcca
was killed, has not ended. At Ctrl-C and at the time limit its process group is ended: what it
starts to stay (a server) must leave that group (setsid, a service manager), or is ended with it.

The folder is locked until the command has ended, so no other process changes it meanwhile. The
command may read the folder (`cdcca export`, `infer`), but not change it: its own `apply` would wait
until the time limit.
"""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cdcca_cli import remote, streams
from cdcca_cli.downlink.settings import NotifySettings
from cdcca_cli.errors import CannotWrite, CdccaError, NotifyFailed
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import State
from cdcca_cli.formats.digest import short
from cdcca_cli.formats.mark import Mark, read_mark, remove_mark, write_mark

NO_COMMAND = NotifySettings()
_GRACE_SECONDS = 5.0


def change(device: Device, install: Callable[[], None], how: NotifySettings) -> None:
    """Change the overlay, and run the command, if there is one.

    Raises: NotifyFailed, and the device is as before; CannotWrite; as `install`.
    """
    with device.lock():
        mark = read_mark(device.path)
        if how.command is None:
            install()
            _say_what_is_owed(mark)
            return
        before = device.written_state()
        if mark is None or mark.before is None:
            write_mark(device.path, before)
        try:
            install()
        except BaseException:
            with suppress(CdccaError):
                if mark is None and _is_as(device.written_state(), before):
                    remove_mark(device.path)
            raise
        _tell(device, how)


def settle(device: Device, how: NotifySettings) -> None:
    """Run the command if an earlier `apply` was stopped before it had succeeded.

    Raises: as `change`.
    """
    if how.command is not None and read_mark(device.path) is not None:
        with device.lock():
            if read_mark(device.path) is not None:  # no other process has settled it meanwhile
                streams.message(f"{device.path}: running the command that is still owed")
                _tell(device, how)


def _say_what_is_owed(mark: Mark | None) -> None:
    if mark is not None:
        streams.message(
            "an earlier apply was stopped before its command had succeeded: the next one with "
            "`notify` runs it"
        )


def _tell(device: Device, how: NotifySettings) -> None:
    """Run the command, and go back if it fails. The folder is locked and has a mark."""
    mark = read_mark(device.path)
    before = None if mark is None else mark.before
    if before is None:
        fault = "" if mark is None else mark.fault
        streams.message(f"{fault}: what the device had before is not known")
    failure = _run(device, before, how)
    if failure is None:
        _forget(device)
        return
    failed = f"sequence {device.sequence}, {short(device.digest)}: the command {failure}"
    if before is None or _is_as(device.written_state(), before):
        raise _failed(device, f"{failed}; it is still owed, and the device stays there")
    try:
        device.restore(before)
    except CdccaError as error:
        raise type(error)(f"{failed}, and the device cannot go back: {error}") from None
    back = f"the device is back at sequence {device.sequence}, {short(device.digest)}"
    failure = _run(device, before, how)
    if failure is None:
        _forget(device)
        raise _failed(device, f"{failed}; {back}")
    raise _failed(device, f"{failed}; {back}, for which it {failure}, too: it is still owed")


def _failed(device: Device, words: str) -> NotifyFailed:
    report = {"status": "command failed", "sequence": device.sequence, "digest": device.digest}
    return NotifyFailed(words, report)


def _forget(device: Device) -> None:
    """Remove the mark, and then what it has kept."""
    try:
        remove_mark(device.path)
    except CannotWrite as error:
        streams.message(f"{error}: the command will be run again")
        return
    device.tidy()


def _is_as(state: State, before: State) -> bool:
    """Whether the overlays of two states are the same."""
    return (state.current, state.kept, state.highest_sequence) == (
        before.current,
        before.kept,
        before.highest_sequence,
    )


def _run(device: Device, before: State | None, how: NotifySettings) -> str | None:
    """Run the command; None, or how it failed."""
    assert how.command is not None, "there is a command wherever it is run"
    current = device.current
    previous = current if before is None else before.current
    variables = {
        "CDCCA_DEVICE": str(device.path.absolute()),
        "CDCCA_SEQUENCE": str(current.sequence),
        "CDCCA_DIGEST": current.digest,
        "CDCCA_PREVIOUS_SEQUENCE": str(previous.sequence),
        "CDCCA_PREVIOUS_DIGEST": previous.digest,
    }
    running = None
    try:
        with _signals_held() as arrived:  # until there is something to end
            running = subprocess.Popen(
                remote.in_shell(how.command),
                stdin=subprocess.DEVNULL,
                stdout=2,  # stdout is data's
                env=os.environ | variables,
                process_group=0,
            )
        for number in arrived:
            signal.raise_signal(number)
        status = running.wait(how.seconds)
    except (OSError, ValueError) as error:
        return f"cannot be started ({(getattr(error, 'strerror', None) or str(error)).lower()})"
    except BaseException as error:
        if running is not None:
            _end(running)
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return f"had not ended after {how.seconds:g} seconds"
    if status == 0:
        return None
    return f"ended by signal {-status}" if status < 0 else f"ended with exit status {status}"


@contextmanager
def _signals_held() -> Iterator[list[int]]:
    """What Ctrl-C and other signals would raise, listed instead."""
    arrived: list[int] = []
    before = {}
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if callable(signal.getsignal(number)):  # one that is ignored stays so
            with suppress(ValueError):  # not the main thread
                before[number] = signal.signal(number, lambda number, _: arrived.append(number))
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _end(running: subprocess.Popen[bytes]) -> None:
    """End the command and all that is in its process group."""
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        running.wait(_GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)
    running.wait()
