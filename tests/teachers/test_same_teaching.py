"""The shipped teacher at an address, in a batch file and loaded here teaches the same, bit for bit.

Each frame has one question, so that the server, which answers one at a time, adds up as the batch
does here. Questions have no choices, whose letters have other probabilities than their words.
"""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Question, Shard
from cdcca_cli.models.initial import create_device
from cdcca_cli.payloads.pictures import JPEG, encode
from cdcca_cli.serving.address import Address
from cdcca_cli.teachers.batch import Answers
from cdcca_cli.teachers.labelling import Teacher
from cdcca_cli.teachers.local import LocalTeacher
from cdcca_cli.teachers.served import AnsweredTeacher, ServedTeacher
from cdcca_cli.teachers.settings import LabelSettings, ServerSettings
from tests.shipped import few_frames
from tests.teachers.server import Shipped, answering
from tests.teachers.shards import shard
from tests.teachers.test_served import requests, run_batch


def refuse(error: BadData) -> None:
    raise error


KL = DistillSettings(method="pseudo-label", kl="forward", epochs=1, batch_size=4, holdout=0.2)


@pytest.fixture(scope="module", autouse=True)
def short_answers() -> None:
    """Answers here are of the usual length, not as short as elsewhere in this folder."""


@pytest.fixture(scope="module")
def teacher() -> Shipped:
    torch.set_num_threads(1)
    return Shipped()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, mirror: Device) -> list[Shard]:
    from PIL import Image

    folder = few_frames(tmp_path_factory.mktemp("frames"), "stream", 14)
    rows = map(json.loads, (folder / "frames.jsonl").read_text().splitlines())
    first = {row["image"]: row for row in rows if "prompt" in row}
    tower = models.load_device(mirror, compute="cpu").tower_digest
    made = []
    for number, (name, row) in enumerate(first.items()):
        picture = encode(Image.open(folder / name).convert("RGB"), JPEG, 90)
        question = Question(row["id"], row["prompt"], "vqa")
        one = shard(number, [question])
        made.append(replace(one, frame=name, picture=picture, tower=tower, num_tokens=37))
    return made


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Device:
    return create_device(tmp_path_factory.mktemp("same") / "mirror", "shipped:student")


def taught(
    shards: list[Shard], teacher: Teacher, mirror: Device, settings: DistillSettings
) -> Adaptation:
    asking = LabelSettings(top=20, features=False, teacher_batch_size=1)
    if isinstance(teacher, LocalTeacher):
        teacher = LocalTeacher(teacher.model, asking)
    return distill(iter(shards), teacher, mirror, settings, asking=asking)


@pytest.mark.parametrize("kl", ["none", "forward"])
def test_the_same_adaptation(
    kl: str, teacher: Shipped, shards: list[Shard], mirror: Device, tmp_path: Path
) -> None:
    settings = replace(KL, kl=kl)
    with answering(teacher) as server:
        asked = ServedTeacher(Address.parse(server.address), ServerSettings(concurrency=4))
        by_address = taught(shards, asked, mirror, settings)
        asked.close()
    lines = "\n".join(run_batch(requests(shards), teacher))
    answers = Answers(io.BytesIO(lines.encode()), "answers.jsonl", refused=refuse)
    batch = AnsweredTeacher(answers, ServerSettings())
    found = {
        "address": by_address,
        "batch": taught(shards, batch, mirror, settings),
        "here": taught(shards, LocalTeacher(teacher.model), mirror, settings),
    }
    assert found["here"].report["num_unlabelled"] == 0
    assert len({overlay_digest(one.overlay) for one in found.values()}) == 1
    assert overlay_digest(by_address.overlay) != overlay_digest(mirror.read_overlay())
    curves = [one.report["curves"] for one in found.values()]
    assert curves[0] == curves[1] == curves[2]
