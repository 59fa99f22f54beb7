"""`cdcca label` with a teacher at an address and in a file of answers, as a user runs it."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from cdcca_cli.formats import shard_stream
from tests.teachers.server import Hashed, answering
from tests.teachers.shards import shard
from tests.teachers.test_served import run_batch

ROOT = Path(__file__).parents[2]


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "cdcca_cli", "label", *map(str, words)]


def label(folder: Path, *words: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(*words), cwd=folder, env={**_environment(), **environment}, capture_output=True,
        text=True,
    )  # fmt: skip


def _environment() -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    return found | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("served")
    with open(made / "up.shards", "wb") as file, shard_stream.writer(file) as write:
        for number in range(12):
            write(shard(number, media="image/jpeg"))
    return made


def test_labels_by_address_with_an_estimate_and_without_the_key(folder: Path) -> None:
    with answering(Hashed()) as server:
        done = label(
            folder, "up.shards", "--teacher", server.address, "-o", "a.labels", "--api-key-env",
            "MINE", MINE="sk-very-secret",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "36 questions: at most 61 requests of" in done.stderr
        assert "36 labels written" in done.stderr
        assert server.headers[0]["Authorization"] == "Bearer sk-very-secret"
        data = (folder / "a.labels").read_bytes()
        assert server.address.encode() in data
        assert b"sk-very" not in data and "sk-very" not in done.stderr + done.stdout
        again = label(folder, "up.shards", "--teacher", server.address, "-o", "a.labels")
        assert "0 labels written" in again.stderr and (folder / "a.labels").read_bytes() == data


def test_too_many_requests_are_refused_before_the_first(folder: Path) -> None:
    with answering(Hashed()) as server:
        done = label(
            folder, "up.shards", "--teacher", server.address, "-o", "b.labels", "--max-requests", 60
        )
        assert done.returncode == 2 and "--max-requests 60: 36 questions" in done.stderr
        assert not server.bodies


def test_a_server_that_is_not_there_is_one_line(folder: Path) -> None:
    done = label(
        folder, "up.shards", "--teacher", "http://127.0.0.1:9/v1#m", "-o", "c.labels", "--set",
        "attempts=2", "--set", "backoff=0",
    )  # fmt: skip
    assert done.returncode == 69
    assert "http://127.0.0.1:9/v1#m: the connection failed" in done.stderr.splitlines()[-1]


def test_credentials_in_the_address_are_not_repeated(folder: Path) -> None:
    done = label(folder, "up.shards", "--teacher", "http://me:hunter2@host/v1#m", "-o", "d.labels")
    assert done.returncode == 2 and "--api-key-env" in done.stderr
    assert "hunter2" not in done.stderr


def test_requests_are_written_and_their_answers_read(folder: Path) -> None:
    done = label(folder, "up.shards", "--teacher", "model", "--write-requests", "asks.jsonl")
    assert done.returncode == 0 and "48 requests" in done.stderr, done.stderr
    lines = run_batch((folder / "asks.jsonl").read_text())
    (folder / "answers.jsonl").write_text("\n".join([*lines[::-1], "{half a line"]))
    done = label(folder, "up.shards", "--teacher", "answers.jsonl", "-o", "e.labels")
    assert done.returncode == 0 and "36 labels written, 1 " in done.stderr, done.stderr
    with answering(Hashed()) as server:
        label(folder, "up.shards", "--teacher", server.address, "-o", "f.labels")
    one, other = (len((folder / name).read_bytes()) for name in ("e.labels", "f.labels"))
    assert abs(one - other) < 12 * 64  # but for the name of the teacher


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_goes_on_with_the_same_bytes(folder: Path, number: int) -> None:
    with answering(Hashed(), seconds=0.02) as server:
        whole, part = folder / f"{number}-whole.labels", folder / f"{number}-part.labels"
        words = ("up.shards", "--teacher", server.address, "--concurrency", 2, "-o")
        assert label(folder, *words, whole).returncode == 0
        for most in (20, 30):
            begin = server.asked.total()
            child = subprocess.Popen(
                command(*words, part), cwd=folder, env=_environment(), stderr=subprocess.PIPE
            )
            while server.asked.total() < begin + most and child.poll() is None:
                time.sleep(0.005)
            sent = time.monotonic()
            child.send_signal(number)
            child.communicate()
            assert time.monotonic() - sent < 5
            assert child.returncode in (130, -signal.SIGINT, -signal.SIGKILL)
        assert label(folder, *words, part).returncode == 0
        assert part.read_bytes() == whole.read_bytes()


def test_a_server_that_fails_and_recovers_gives_the_same_bytes(folder: Path) -> None:
    count = itertools.count(1)

    def shaky(handler: Any, reply: dict[str, Any], number: int) -> bool:
        is_bad = next(count) % 3 == 0
        if is_bad:
            handler.send(503, json.dumps({"error": {"message": "Loading model"}}).encode())
        return is_bad

    with answering(Hashed(), shaky) as server:
        words = ("up.shards", "--teacher", server.address, "--set", "backoff=0.01", "-o")
        done = label(folder, *words, "g.labels")
        assert done.returncode == 0 and done.stderr.count("trying again") == 1
        count = itertools.count(2)  # other requests fail
        assert label(folder, *words, "h.labels").returncode == 0
    assert (folder / "g.labels").read_bytes() == (folder / "h.labels").read_bytes()
