"""The shipped teacher by address and by batch file says what it says when it is loaded here."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.formats.labels import Entry
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.payloads.pictures import JPEG, encode
from cdcca_cli.serving.address import Address
from cdcca_cli.skipped import Skipped
from cdcca_cli.teachers.labelling import Lacks
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.served import ServedTeacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings
from tests.shipped import few_frames
from tests.teachers.server import Shipped, answering
from tests.teachers.shards import shard
from tests.teachers.test_served import answered, coded, requests, run_batch

FORCED = Question("forced", "what is at the bottom?", "vqa", ["zebra", "moon", "an old car"])


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> None:
    """Answers here are of the usual length, not as short as elsewhere in this folder."""


@pytest.fixture(scope="module")
def teacher() -> Shipped:
    torch.set_num_threads(1)
    return Shipped()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[Shard]:
    """Shipped frames as pictures, with their own questions and one whose choices are all wrong."""
    from PIL import Image

    folder: Path = few_frames(tmp_path_factory.mktemp("frames"), "stream", 3)
    by_image: dict[str, list[Question]] = {}
    for line in (folder / "frames.jsonl").read_text().splitlines():
        row = json.loads(line)
        task = "vqa" if "prompt" in row else "caption"
        question = Question(row["id"], row.get("prompt"), task, row.get("choices"))  # type: ignore[arg-type]
        by_image.setdefault(row["image"], []).append(question)
    made = []
    for number, (name, questions) in enumerate(by_image.items()):
        picture = encode(Image.open(folder / name).convert("RGB"), JPEG, 90)
        made.append(replace(shard(number, [*questions, FORCED]), frame=name, picture=picture))
    return made


@pytest.fixture(scope="module")
def by_address(teacher: Shipped, shards: list[Shard]) -> list[Entry]:
    with answering(teacher) as server:
        asked = ServedTeacher(Address.parse(server.address), ServerSettings(concurrency=4))
        found = [*asked.label(shards, Lacks(), Skipped(strict=True))]
        asked.close()
    return found


def test_by_address_it_says_what_it_says_here(
    teacher: Shipped, shards: list[Shard], by_address: list[Entry]
) -> None:
    """The same answers, and the same probabilities at every token, the end token too."""
    settings = LabelSettings(top=20, features=False)
    local = [*LocalTeacher(teacher.model, settings).label(shards, Lacks(), Skipped(strict=True))]
    num_same = 0
    for one, other in zip(by_address, local, strict=True):
        assert one.payload == other.payload and list(one.labels) == list(other.labels)
        for served, here in zip(one.labels.values(), other.labels.values(), strict=True):
            assert (served.end == "choice") == (here.end == "choice")
            assert served.answer == here.answer
            if here.end == "choice":  # its letter's log-probability is not the words'
                continue
            num_same += 1
            assert served.nats == pytest.approx(here.nats, abs=1e-4)
            assert served.top is not None and here.top is not None
            assert here.top.ids_AK is not None and served.top.pieces_AK is not None
            np.testing.assert_allclose(served.top.logp_AK, here.top.logp_AK, atol=1e-3)
            np.testing.assert_allclose(
                np.exp(served.top.rest_A), np.exp(here.top.rest_A), atol=1e-4
            )
            chosen = b"".join(row[0] for row in served.top.pieces_AK)
            assert chosen.decode().strip() == served.answer
    assert num_same >= 6


def test_by_batch_file_it_says_the_same_to_the_bytes(
    teacher: Shipped, shards: list[Shard], by_address: list[Entry]
) -> None:
    found, refused, skipped = answered(run_batch(requests(shards), teacher), shards)
    assert coded(found) == coded(by_address) and not refused and not skipped.count
