"""The loss that `compress` measures is the loss that training judged by."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.batches import Example, look
from cdcca_cli.distillation.held_out_loss import HeldOutLoss
from cdcca_cli.distillation.training import DistillSettings, distill, kept_for_compress
from cdcca_cli.errors import BadData
from cdcca_cli.formats import adaptation as format_
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard, read_shards, writer
from cdcca_cli.models import LoadedModel, load_device

QUICK = DistillSettings(epochs=2, batch_size=8, holdout=0.4)


@pytest.fixture(scope="module")
def adapted(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    """Trained on 8-bit shards, as `sample` sends them, and read back from its own file."""
    stream = io.BytesIO()
    with writer(stream) as write:
        for shard in shards:
            write(replace(shard, bits=8))
    stream.seek(0)
    made = distill(read_shards(stream), teacher, mirror, QUICK)
    out = io.BytesIO()
    write_adaptation(out, made)
    out.seek(0)
    return read_adaptation(out)


@pytest.fixture
def loss(adapted: Adaptation, student: LoadedModel, mirror: Device) -> HeldOutLoss:
    assert adapted.held_out is not None
    return HeldOutLoss(student, adapted.held_out, mirror.lora.alpha, QUICK.batch_size)


def test_it_is_what_training_measured(
    adapted: Adaptation, loss: HeldOutLoss, mirror: Device
) -> None:
    """Before and after, to the bit, though tokens and answers went through a file."""
    said = adapted.report["held_out"]["cross_entropy"]
    assert loss(mirror.read_overlay()) == said["before"]
    assert loss(adapted.overlay) == said["after"]
    assert loss(adapted.overlay) == said["after"]  # as often as one likes
    assert said["after"] < said["before"]


def test_it_is_the_mean_over_asks_by_another_way(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel, mirror: Device
) -> None:
    """Ask by ask, without batches: log-softmax of the logits at the answer's tokens, in float64."""
    student.install_overlay(adapted.overlay, mirror.lora.alpha)
    held_out = adapted.held_out
    assert held_out is not None
    nats = []
    for shard, answers in zip(held_out.shards, held_out.answers, strict=True):
        for ask, answer in zip(shard.asks, answers, strict=True):
            ids_1A = student.answer_ids([answer])
            with torch.no_grad():
                seen = look(student, [Example(shard, ask)])
                logits_1AV = student.forward(seen.spliced, ids_1A).logits.double()
            chosen = logits_1AV.log_softmax(-1)[0, torch.arange(ids_1A.shape[1]), ids_1A[0]]
            nats.append(-float(chosen.mean()))
    assert loss(adapted.overlay) == pytest.approx(np.mean(nats), rel=1e-5)
    assert loss.judge(adapted.overlay).nats_E.tolist() == pytest.approx(nats, rel=1e-4)


def test_another_batch_size_changes_the_last_bits_only(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel, mirror: Device
) -> None:
    assert adapted.held_out is not None
    other = HeldOutLoss(student, adapted.held_out, mirror.lora.alpha, 1)
    assert other(adapted.overlay) == pytest.approx(loss(adapted.overlay), rel=1e-5)


def test_the_student_has_its_own_overlay_again(
    adapted: Adaptation, loss: HeldOutLoss, student: LoadedModel
) -> None:
    before = overlay_digest(student.overlay())
    loss(adapted.overlay)
    assert overlay_digest(student.overlay()) == before
    broken = {**adapted.overlay, "query_tokens": np.zeros(3, np.float32)}
    with pytest.raises(BadData):
        loss(broken)
    assert overlay_digest(student.overlay()) == before
    assert not any(parameter.requires_grad for parameter in student.module.parameters())


def test_the_frames_are_those_that_were_not_trained_on(
    adapted: Adaptation, shards: list[Shard]
) -> None:
    held_out, report = adapted.held_out, adapted.report
    assert held_out is not None
    assert len(held_out.shards) == report["held_out"]["num_frames"] == report["num_frames_kept"]
    assert held_out.num_asks == report["held_out"]["num_asks"]
    assert report["num_trained"] == sum(len(shard.asks) for shard in shards) - held_out.num_asks


def test_without_a_held_out_share_there_is_none(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=1, holdout=0))
    assert made.held_out is None
    assert made.report["held_out"] is None
    assert made.sensitivity is not None


def test_no_more_frames_are_kept_than_an_adaptation_holds(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first ones, as many as fit."""
    from cdcca_cli.distillation import lessons, training

    gathered = lessons.gather(shards, teacher, load_device(mirror, compute="cpu"), QUICK)
    whole = kept_for_compress(gathered)
    assert whole is not None
    first = whole.shards[0].tokens.nbytes
    for module in (training, format_):
        monkeypatch.setattr(module, "HELD_OUT_BYTES", first)
    kept = kept_for_compress(gathered)
    assert kept is not None
    assert [shard.frame for shard in kept.shards] == [whole.shards[0].frame]
    assert kept.answers == whole.answers[:1]


def test_frames_of_another_tower_are_refused(
    adapted: Adaptation, blip2_opt: Path, student: LoadedModel, mirror: Device
) -> None:
    held_out = adapted.held_out
    assert held_out is not None
    foreign = replace(held_out, shards=[replace(held_out.shards[0], tower="sha256:" + "1" * 64)])
    with pytest.raises(BadData, match="vision tower"):
        HeldOutLoss(student, foreign, mirror.lora.alpha)


def test_sensitivity_is_the_mean_squared_gradient(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """After a single step the bias-corrected second moment is the clipped gradient, squared."""
    assert adapted.sensitivity is not None
    assert adapted.sensitivity.keys() == adapted.overlay.keys()
    assert all(value >= 0 for value in adapted.sensitivity.values())
    one = distill(shards, teacher, mirror, replace(QUICK, epochs=1, batch_size=1000))
    assert one.sensitivity is not None
    sizes = {name: array.size for name, array in one.overlay.items()}
    energy = sum(value * sizes[name] for name, value in one.sensitivity.items())
    assert 0 < energy <= 1 + 1e-5  # the norm of all gradients, phi's among them, is clipped to 1
    assert energy > 0.01
