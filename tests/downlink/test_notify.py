"""The command that `apply` runs after a change: what it is told, and what comes of its failures.

The invariant, at every moment, whatever was killed and whenever the power failed: the runtime has
the overlay that the device has, or the device has a mark. The runtime here is a file, written whole
and synced, with the digest of the overlay that the command found in the folder.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from io import BytesIO
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cdcca_cli import acceptance, files
from cdcca_cli.downlink import notify, receiver
from cdcca_cli.downlink.settings import NotifySettings
from cdcca_cli.errors import BadData, CannotWrite, NotifyFailed
from cdcca_cli.formats import mark
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import State
from cdcca_cli.main import main
from cdcca_cli.scoring.settings import AcceptanceSettings
from tests.downlink import changes, power, worlds
from tests.downlink.calls import Killed, Real, between, not_synced, unsynced
from tests.downlink.changes import CHANGES, Change
from tests.downlink.power import Tree
from tests.downlink.processes import Process, forked, started
from tests.downlink.test_concurrent import at_once
from tests.downlink.test_lost_pages import laid_out

Capture = pytest.CaptureFixture[str]
COMMAND = NotifySettings(command="the command")
FAILED = NotifyFailed.exit_code
SAYS = 'echo "$CDCCA_SEQUENCE after $CDCCA_PREVIOUS_SEQUENCE" >> said'
"""A command that writes down what it is told, one line each time."""
HAS = "runtime/has"
"""What the runtime has, in the device folder: a file in a folder that no other sync is for."""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device that trusts a key and is at sequence 2, with the overlay of 1 kept."""
    made = Device.create(
        tmp_path / "device", worlds.SETTINGS, worlds.overlay(), trust=changes.trust(0)
    )
    for _ in range(2):
        changes.apply(made.path, changes.next_file(Device.open(made.path)))
    return made.path


@pytest.fixture
def update(tmp_path: Path, device: Path) -> Path:
    path = tmp_path / "update"
    path.write_bytes(changes.next_file(Device.open(device)))
    return path


def apply(*arguments: object) -> int:
    return main(["apply", *map(str, arguments)])


def said(folder: Path) -> list[str]:
    """What SAYS has written, and is not asked for again."""
    path = folder / "said"
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def contents(folder: Path) -> dict[str, bytes]:
    return worlds.bytes_of(Device.open(folder))


class TestTold:
    def test_after_an_update_and_after_a_rollback(
        self, device: Path, update: Path, tmp_path: Path
    ) -> None:
        assert apply(device, update, "--notify", SAYS) == 0
        assert said(tmp_path) == ["3 after 2"]
        assert apply(device, "--rollback", "--notify", SAYS) == 0
        assert said(tmp_path) == ["2 after 3"]
        assert changes.leftovers(device) == set()
        assert Device.open(device).highest_sequence == 3

    def test_of_what(self, device: Path, update: Path, tmp_path: Path, capfd: Capture) -> None:
        old = Device.open(device)
        names = ["DEVICE", "SEQUENCE", "DIGEST", "PREVIOUS_SEQUENCE", "PREVIOUS_DIGEST"]
        command = f"printf '%s\\n' {' '.join(f'$CDCCA_{name}' for name in names)}; cat; pwd"
        assert apply("device", update, "--json", "--notify", command) == 0
        out, err = capfd.readouterr()
        new = Device.open(device)
        told = [str(device), "3", new.digest, "2", old.digest, str(tmp_path)]
        assert err.splitlines()[:6] == told  # nothing to read
        assert json.loads(out)["status"] == "applied"

    def test_pipes_that_fail_as_in_the_other_commands(self, device: Path, update: Path) -> None:
        if shutil.which("bash"):
            assert apply(device, update, "--notify", "false | true") == FAILED

    @pytest.mark.parametrize("kind", ["dry run", "again", "trust", "codebook", "refused"])
    def test_of_nothing_else(self, device: Path, update: Path, tmp_path: Path, kind: str) -> None:
        options, code = [], 0
        if kind == "dry run":
            options = ["--dry-run"]
        elif kind == "again":
            assert apply(device, update) == 0
        elif kind == "trust":
            update.write_bytes(changes.trust_file(changes.trust(0, 1, version=2), 0))
        elif kind == "codebook":
            update.write_bytes(changes.codebook_file(1, 0))
        else:
            update.write_bytes(worlds.file_of(changes.update_of(Device.open(device))))
            code = 77
        assert apply(device, update, "--notify", SAYS, *options) == code
        assert said(tmp_path) == []
        assert changes.leftovers(device) == set()

    def test_of_no_rollback_where_there_is_none(self, tmp_path: Path) -> None:
        folder = worlds.device(tmp_path / "new").path
        before = contents(folder)
        assert apply(folder, "--rollback", "--notify", SAYS) == 66
        assert said(tmp_path) == []
        assert contents(folder) == before

    def test_with_a_test_of_the_update_too(
        self, device: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(acceptance, "measure", lambda *_: None)
        telling = NotifySettings(f"{SAYS}; false")
        with update.open("rb") as source, pytest.raises(NotifyFailed):
            acceptance.receive(
                Device.open(device),
                source,
                AcceptanceSettings("probe"),
                where="file",
                telling=telling,
            )
        assert said(tmp_path) == ["3 after 2", "2 after 2"]

    def test_what_is_set_in_cdcca_toml(self, device: Path, update: Path, tmp_path: Path) -> None:
        text = f"[apply]\nnotify = {json.dumps(SAYS)}\nnotify_timeout = 5\n"
        (tmp_path / "cdcca.toml").write_text(text)
        assert apply(device, update) == 0
        assert said(tmp_path) == ["3 after 2"]

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (["--notify", ""], "--notify"),
            (["--notify", "  "], "--notify: expected a command"),
            (["--notify", "true", "--notify-timeout", "0"], "more than 0, at most 86400 seconds"),
            (["--notify-timeout", "5"], "--notify-timeout: does nothing without --notify"),
        ],
    )
    def test_settings_that_cannot_be(
        self, device: Path, update: Path, capfd: Capture, options: list[str], words: str
    ) -> None:
        assert apply(device, update, *options) == 2
        assert words in capfd.readouterr().err


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "words"),
        [
            ("exit 3", "ended with exit status 3"),
            ("kill -9 $$", "ended by signal 9"),
            ("sleep 60 & wait", "had not ended after 0.2 seconds"),
            ("trap '' TERM; sleep 60 & wait; sleep 60", "had not ended after 0.2 seconds"),
            ("no-such-program", "ended with exit status 127"),
        ],
    )
    def test_the_device_is_as_before_and_the_command_knows_it(
        self,
        device: Path,
        update: Path,
        tmp_path: Path,
        capfd: Capture,
        monkeypatch: pytest.MonkeyPatch,
        failure: str,
        words: str,
    ) -> None:
        monkeypatch.setattr(notify, "_GRACE_SECONDS", 0.3)
        before = contents(device)
        command = f"{SAYS}; [ $CDCCA_SEQUENCE = 2 ] || {{ {failure}; }}"
        how = ["--notify", command, "--notify-timeout", "0.2", "--json"]
        assert apply(device, update, *how) == FAILED
        out, err = capfd.readouterr()
        assert contents(device) == before
        assert said(tmp_path) == ["3 after 2", "2 after 2"]
        assert f"the command {words}; the device is back at sequence 2" in err
        now = {"sequence": 2, "digest": Device.open(device).digest}
        line = json.loads(out)
        assert line.items() >= {"status": "command failed", "current": now, **now}.items()
        assert line["exit_code"] == FAILED and line["reason"] in err
        assert apply(device, update, "--notify", SAYS) == 0, "the same update, later"
        assert said(tmp_path) == ["3 after 2"]
        assert changes.leftovers(device) == set()

    def test_it_cannot_be_started(
        self, device: Path, update: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
    ) -> None:
        monkeypatch.setattr(notify.remote, "in_shell", lambda _: ["/no/such/shell"])
        before = contents(device)
        assert apply(device, update, "--notify", "true") == FAILED
        assert "cannot be started (no such file or directory)" in capfd.readouterr().err
        assert contents(device).keys() - before.keys() == {"notify"}, "it is owed"

    def test_the_processes_that_it_started_end_with_it(
        self, device: Path, update: Path, tmp_path: Path
    ) -> None:
        command = "sh -c 'echo $$ >> children; exec sleep 60' & wait"
        assert apply(device, update, "--notify", command, "--notify-timeout", "0.5") == FAILED
        for number in (tmp_path / "children").read_text().split():
            with pytest.raises(ProcessLookupError):
                _until_gone(int(number))

    def test_after_a_rollback(self, device: Path, tmp_path: Path) -> None:
        """What the rollback would have deleted is still there."""
        before = contents(device)
        command = f"{SAYS}; [ $CDCCA_SEQUENCE = 2 ]"
        assert apply(device, "--rollback", "--notify", command) == FAILED
        assert said(tmp_path) == ["1 after 2", "2 after 2"]
        assert contents(device) == before

    def test_that_go_on_are_owed_and_come_first(
        self, device: Path, update: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        fails = f"{SAYS}; false"
        assert apply(device, update, "--notify", fails) == FAILED
        assert said(tmp_path) == ["3 after 2", "2 after 2"]
        assert "too: it is still owed" in capfd.readouterr().err
        assert apply(device, update, "--notify", fails) == FAILED
        assert said(tmp_path) == ["2 after 2"], "not even the update is looked at"
        assert "it is still owed, and the device stays there" in capfd.readouterr().err
        assert apply(device, update, "--notify", SAYS) == 0
        assert said(tmp_path) == ["2 after 2", "3 after 2"]
        assert changes.leftovers(device) == set()

    def test_keys_that_came_meanwhile_stay(self, device: Path, update: Path) -> None:
        killed_while_it_runs(device, update)
        newer = changes.trust(0, 2, version=2)
        changes.apply(device, changes.trust_file(newer, 0))
        assert apply(device, update, "--notify", "false") == FAILED
        found = Device.open(device)
        assert (found.trust, found.sequence, found.highest_sequence) == (newer, 2, 2)

    def test_updates_without_a_command_meanwhile(
        self, device: Path, update: Path, tmp_path: Path, capfd: Capture
    ) -> None:
        """They say that one is owed; it goes back to what the command last took."""
        before = contents(device)
        killed_while_it_runs(device, update)
        update.write_bytes(changes.next_file(Device.open(device)))
        assert apply(device, update) == 0
        assert "the next one with --notify runs it" in capfd.readouterr().err
        command = f"{SAYS}; [ $CDCCA_SEQUENCE = 2 ]"
        assert apply(device, update, "--notify", command) == FAILED
        assert said(tmp_path) == ["4 after 2", "2 after 2"]
        assert contents(device) == before

    def test_what_it_would_go_back_to_is_damaged(
        self, device: Path, update: Path, capfd: Capture
    ) -> None:
        """It does not go from a sound overlay to none."""
        for file in (device / "overlay").iterdir():
            if file.name.startswith("1-"):
                file.write_bytes(b"")
        spoil = "printf x > device/overlay/2-*; false"
        assert apply(device, update, "--notify", spoil) == 65
        assert "cannot go back: " in capfd.readouterr().err
        assert Device.open(device).read_overlay() and (device / "notify").exists()


def _until_gone(number: int) -> None:
    """Raises: ProcessLookupError as soon as there is no such process."""
    for _ in range(200):
        os.kill(number, 0)
        if Path(f"/proc/{number}/stat").read_text().split()[2] == "Z":
            raise ProcessLookupError
        time.sleep(0.01)


def killed_while_it_runs(device: Path, update: Path) -> None:
    """kill -9 of cdcca while its command runs, which goes on and is ended here."""
    process = running(device, update, "echo $$ > heard; exec sleep 60")
    process.kill(signal.SIGKILL)
    assert process.wait().code == -signal.SIGKILL
    os.kill(int(Path("heard").read_text()), signal.SIGKILL)
    Path("heard").unlink()
    assert Device.open(device).sequence == 3


def running(device: Path, update: Path, command: str, start: Any = forked) -> Process:
    """A process of `apply` whose command has begun and made the file `heard`."""
    process: Process = start(["apply", str(device), str(update), "--notify", command], Path("out"))
    deadline = time.monotonic() + 60
    while not (Path("heard").exists() and Path("heard").read_text().endswith("\n")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process


class TestStopped:
    @pytest.mark.parametrize("again", ["the same", "nothing new", "the next", "rollback"])
    def test_killed_while_the_command_runs(
        self, device: Path, update: Path, tmp_path: Path, again: str
    ) -> None:
        """The next `apply` runs it, whatever it brings; `--rollback` goes back before."""
        killed_while_it_runs(device, update)
        how: list[object] = [update]
        expected = ["3 after 2"]
        if again == "nothing new":
            update.write_bytes(changes.trust_file(changes.trust(0), 0))
        elif again == "the next":
            update.write_bytes(changes.next_file(Device.open(device)))
            expected.append("4 after 3")
        elif again == "rollback":
            how, expected = ["--rollback"], ["2 after 2"]
        assert apply(device, *how, "--notify", SAYS) == 0
        assert said(tmp_path) == expected
        assert changes.leftovers(device) == set()

    def test_a_refused_update_does_not_keep_it_from_running(
        self, device: Path, update: Path, tmp_path: Path
    ) -> None:
        killed_while_it_runs(device, update)
        update.write_bytes(b"noise")
        assert apply(device, update, "--notify", SAYS) == 65
        assert said(tmp_path) == ["3 after 2"]

    def test_a_dry_run_leaves_it(self, device: Path, update: Path, tmp_path: Path) -> None:
        killed_while_it_runs(device, update)
        assert apply(device, update, "--dry-run", "--notify", SAYS) == 0
        assert said(tmp_path) == [] and (device / "notify").exists()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    @pytest.mark.parametrize("start", [forked, started])
    def test_interrupted_while_the_command_runs(
        self, device: Path, update: Path, tmp_path: Path, number: int, start: Any
    ) -> None:
        """The command is ended too, the device keeps the new overlay, and the command is owed."""
        process = running(device, update, f"echo $$ > {tmp_path}/heard; sleep 60 & wait", start)
        process.kill(number)
        assert process.wait().code == 128 + number
        with pytest.raises(ProcessLookupError):
            _until_gone(int(Path("heard").read_text()))
        assert Device.open(device).sequence == 3
        assert apply(device, update, "--notify", SAYS) == 0
        assert said(tmp_path) == ["3 after 2"]

    def test_interrupted_while_the_command_is_started(
        self, device: Path, update: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Before anything knows the process by which it could be ended."""
        real, begun = subprocess.Popen, []

        def start(*words: Any, **how: Any) -> Any:
            process: Any = real(*words, **how)
            begun.append(process.pid)
            os.kill(os.getpid(), signal.SIGINT)
            return process

        monkeypatch.setattr(notify.subprocess, "Popen", start)
        assert apply(device, update, "--notify", "sleep 60 & wait") == 130
        with pytest.raises(ProcessLookupError):
            _until_gone(begun[0])
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.undo()
        monkeypatch.chdir(tmp_path)
        assert apply(device, update, "--notify", SAYS) == 0
        assert said(tmp_path) == ["3 after 2"]

    def test_applies_at_once_run_it_once(self, device: Path, update: Path, tmp_path: Path) -> None:
        command = ["apply", str(device), str(update), "--json", "--notify", f"{SAYS}; sleep 0.1"]
        ended = at_once(3 * [command], tmp_path)
        assert [one.code for one in ended] == 3 * [0]
        assert said(tmp_path) == ["3 after 2"]
        assert changes.leftovers(device) == set()

    def test_applies_at_once_that_fail(self, device: Path, update: Path, tmp_path: Path) -> None:
        """Each installs it, is refused, and goes back."""
        command = f"{SAYS}; [ $CDCCA_SEQUENCE = 2 ]"
        ended = at_once(2 * [["apply", str(device), str(update), "--notify", command]], tmp_path)
        assert [one.code for one in ended] == 2 * [FAILED]
        assert said(tmp_path) == 2 * ["3 after 2", "2 after 2"]
        assert changes.leftovers(device) == set()

    def test_the_command_may_read_the_folder(self, device: Path, update: Path) -> None:
        """Opening and reading need no lock, which `apply` holds meanwhile."""
        program = f"'{sys.executable}' -m cdcca_cli inspect --json"
        command = f"PYTHONPATH='{Path(__file__).parents[2]}' {program} $CDCCA_DEVICE > seen"
        assert apply(device, update, "--notify", command) == 0
        assert '"sequence": 3' in Path("seen").read_text()


class TestMark:
    def test_is_gone_with_the_device_that_is_replaced(self, device: Path, update: Path) -> None:
        killed_while_it_runs(device, update)
        Device.create(device, worlds.SETTINGS, worlds.overlay(9), force=True)
        assert changes.leftovers(device) == set()

    @pytest.mark.parametrize("text", [b"", b"{}", b"[" * 9999, b'{"kind":"notify","version":2}'])
    def test_is_one_even_if_damaged(
        self, device: Path, update: Path, tmp_path: Path, text: bytes
    ) -> None:
        """Then there is nothing to go back to."""
        killed_while_it_runs(device, update)
        (device / "notify").write_bytes(text)
        assert apply(device, update, "--notify", f"{SAYS}; false") == FAILED
        assert said(tmp_path) == ["3 after 3"]
        assert Device.open(device).sequence == 3
        assert apply(device, update, "--notify", SAYS) == 0
        assert changes.leftovers(device) == set()

    @given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(max_size=9),
                        lambda inner: st.lists(inner, max_size=3)
                        | st.dictionaries(st.sampled_from(["kind", "version", "current", "kept",
                                                           "highest_sequence"]), inner),
                        max_leaves=9))  # fmt: skip
    def test_is_parsed_or_refused(self, data: Any) -> None:
        with suppress(BadData):
            assert isinstance(mark.parse_mark(data, "mark"), State)

    def test_is_read_as_it_was_written(self, device: Path) -> None:
        before = Device.open(device).written_state()
        mark.write_mark(device, before)
        found = mark.read_mark(device)
        assert found is not None and found.before is not None
        for name in ("current", "kept", "highest_sequence"):
            assert getattr(found.before, name) == getattr(before, name)


# ---------------------------------------------------------------- at every system call


class Runtime:
    """In place of the command: a file in the device folder, outside of what `apply` knows.

    refuses: digests of overlays that it does not take; it has the old one until then.
    """

    def __init__(self, refuses: Sequence[str] = ()) -> None:
        self.refuses = refuses

    def __call__(self, device: Device, before: State | None, how: NotifySettings) -> str | None:
        found = Device.open(device.path)
        found.read_overlay()
        files.atomic_write_bytes(device.path / HAS, found.digest.encode())
        return "refused" if found.digest in self.refuses else None


def is_sound(change: Change, folder: Path) -> bool:
    """The invariant; and the device can go back where it may have to."""
    if not changes.is_one_of(folder, change.states):
        return False
    device, found = Device.open(folder), mark.read_mark(folder)
    if found is None:
        return (folder / HAS).read_bytes().decode() == device.digest
    before = found.before
    return before is not None and all(map(device._is_sound, (before.current, *before.kept)))


def told(folder: Path, file: bytes) -> str:
    """What `apply --notify` does; the status, or "refused"."""
    device = Device.open(folder)
    try:
        if file == changes.ROLLBACK:
            return receiver.rollback(device, COMMAND).status
        notify.settle(device, COMMAND)
        return receiver.receive(device, BytesIO(file), where="it", telling=COMMAND).status
    except NotifyFailed:
        return "refused"


@pytest.fixture(scope="module", params=["first", "later", "rollback"])
def change(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Change:
    made = CHANGES[request.param](tmp_path_factory.mktemp(request.param), request.param)
    made.states  # noqa: B018 (before there is a runtime beside them)
    (made.before / HAS).parent.mkdir()
    (made.before / HAS).write_bytes(Device.open(made.before).digest.encode())
    return made


@pytest.fixture(params=["takes", "refuses"])
def runtime(
    request: pytest.FixtureRequest, change: Change, monkeypatch: pytest.MonkeyPatch
) -> Runtime:
    """One that takes what comes, or refuses it."""
    new = change.states[1][0]["current"]["digest"]
    made = Runtime([new] if request.param == "refuses" else [])
    monkeypatch.setattr(notify, "_run", made)
    return made


def settled(change: Change, folder: Path, runtime: Runtime) -> None:
    """From here on: the device ends as if nothing had been cut off."""
    old, new = change.states
    assert is_sound(change, folder)
    (file,) = change.files
    if file == changes.ROLLBACK:  # once more would be a second rollback
        with suppress(NotifyFailed):
            notify.settle(Device.open(folder), COMMAND)
    else:
        told(folder, file)
        told(folder, file)
    assert is_sound(change, folder) and not (folder / "notify").exists()
    found = changes.state_of(folder)
    assert found == old if runtime.refuses else found == new or file == changes.ROLLBACK
    Device.open(folder).tidy()  # as at the next change
    assert changes.leftovers(folder) == {HAS}


Fault = Callable[[str, Real, tuple[Any, ...], dict[str, Any]], Any]


def _kill(*_: Any) -> Any:
    raise Killed


def _interrupt(*_: Any) -> Any:
    raise KeyboardInterrupt


def _fill(name: str, *rest: Any) -> Any:
    raise OSError(28, os.strerror(28))


@pytest.mark.parametrize("fault", [_kill, _interrupt, _fill])
def test_cut_off_at_every_call(
    change: Change, runtime: Runtime, tmp_path: Path, fault: Fault
) -> None:
    """A kill ends it for good; Ctrl-C comes once; a full disk stays full."""
    num_cut = 0
    for number in count(1):
        folder = change.copy(tmp_path / str(number))
        calls = 0

        def cut(*call: Any, last: int = number) -> Any:
            nonlocal calls
            calls += 1
            is_hit = calls == last if fault is _interrupt else calls >= last
            return fault(*call) if is_hit else not_synced(*call)

        with suppress(Killed, KeyboardInterrupt, CannotWrite, OSError), between(cut):
            told(folder, change.files[0])
        if calls < number:
            break
        num_cut += 1
        with unsynced():
            settled(change, folder, runtime)
    assert num_cut > 20


def test_power_loss_at_every_moment(change: Change, runtime: Runtime, tmp_path: Path) -> None:
    folder = change.copy(tmp_path / "folder")
    log = power.record(folder, partial(told, folder, change.files[0]))
    assert power.as_asked(log) == frozenset(power.files_of(folder).items())
    num_states = 0
    for tree in dict.fromkeys(tree for _, tree in power.after_power_loss(log)):
        after = laid_out(tree, tmp_path / "after")
        with unsynced():
            settled(change, after, runtime)
        num_states += 1
    assert num_states > 20


def test_every_fsync_is_needed(change: Change, runtime: Runtime, tmp_path: Path) -> None:
    """Left out, any one of them lets the power break the invariant, or the device."""
    folder = change.copy(tmp_path / "folder")
    log = power.record(folder, partial(told, folder, change.files[0]))
    kinds = [made.kind for made in log.operations]
    gone = log.operations.index(power.Operation("delete", "notify"))
    exempt = {gone + 1} if "delete" not in kinds[gone + 1 :] else set()  # it would be told twice
    if runtime.refuses:  # nobody has answered for the change, and what undoes it is synced
        flip = next(n for n, made in enumerate(log.operations) if made.to == "device.json")
        exempt.add(flip + 1)
    exempt |= _syncs_of_runtime(log.operations)
    needed = [number for number in log.syncs() if number not in exempt]
    assert len(needed) > 4
    seen: dict[Tree, bool] = {}

    def holds(tree: Tree) -> bool:
        if tree not in seen:
            seen[tree] = is_sound(change, laid_out(tree, tmp_path / "after"))
        return seen[tree]

    unneeded = [
        (number, log.operations[number])
        for number in needed
        if all(holds(tree) for _, tree in power.after_power_loss(log.without(number)))
    ]
    assert unneeded == []


def _syncs_of_runtime(operations: Sequence[power.Operation]) -> set[int]:
    """Of its file and its folder."""
    made = {one.file for one in operations if one.kind == "make" and "runtime" in one.name}
    return {
        number
        for number, one in enumerate(operations)
        if (one.kind == "sync" and one.file in made)
        or (one.kind == "sync folder" and one.name == "runtime")
    }
