"""What is learnt of the teacher's answers: distributions, confidence; labels without a teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, MissingInput, UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import encode
from tests.distillation.conftest import a_trainer

PL = DistillSettings(method="pseudo-label", epochs=1, batch_size=8, holdout=0.3)


# ---- distributions


def softmax(row: list[float], tau: float) -> list[float]:
    weights = [math.exp((value - max(row)) / tau) for value in row]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_that_of_the_labels_logits(
    direction: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """tau^2 sum p ln(p/q) in float64 loops, from the stored logits and the student's, one by one.

    Labels of 32 bits are the teacher's own logits.
    """
    settings = replace(PL, kl=direction, kl_temperature=1.7, cache_bits=32)
    run = a_trainer(shards, teacher, mirror, settings)
    assert run.method is not None
    batch = run.dataset.train[:6]
    with torch.no_grad():
        found_B = run.method.losses(batch)["kl"].tolist()
    for number, found in zip(batch, found_B, strict=True):
        example, stored = run.dataset.examples[number], run.dataset.teacher_rows(number, "logits")
        with torch.no_grad():
            rows = []
            for model in (teacher, run.student):
                ids = model.answer_ids([run.dataset.answers[number]])
                rows.append(model.forward(encode(model, [example]).spliced, ids).logits[0])
        np.testing.assert_allclose(stored, rows[0].numpy(), atol=1e-4)
        tokens = []
        for theirs, ours in zip(stored.tolist(), rows[1].tolist(), strict=True):
            p, q = softmax(theirs, 1.7), softmax(ours, 1.7)
            if direction == "reverse":
                p, q = q, p
            tokens.append(1.7**2 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
        assert found == pytest.approx(sum(tokens) / len(tokens), rel=1e-4)


def test_kl_brings_the_student_nearer(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    for kl in ("forward", "reverse"):
        made = distill(shards, teacher, mirror, replace(PL, kl=kl, ce_weight=0.0, epochs=2))
        curves = made.report["curves"]
        assert set(curves) == {"loss", "kl", "held_out"}
        assert curves["kl"][1] < curves["kl"][0]


def test_kl_of_another_vocabulary_is_refused(
    foreign: LoadedModel,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before the work if the teacher is there, and by what its labels say if not."""
    kl = replace(PL, kl="forward", cache=tmp_path / "labels")
    with pytest.raises(UsageError, match="`kl` forward: the vocabularies differ"):
        distill(shards, foreign, mirror, replace(kl, cache=None))
    assert distill(shards, foreign, mirror, PL).report["epochs_done"] == 1
    distill(shards, teacher, mirror, kl)
    theirs = short(teacher.vocabulary_digest)
    monkeypatch.setattr(LoadedModel, "vocabulary_digest", foreign.vocabulary_digest)
    with pytest.raises(UsageError, match=f"`kl` forward: the voc.* labels' is {theirs}, the"):
        distill(shards, None, mirror, kl)


# ---- confidence


def test_confidence_weighs_by_the_teachers_own_probability(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """In proportion to exp(-nats), 1 on average over those trained on, the others not counted."""
    sure = a_trainer(shards, teacher, mirror, replace(PL, confidence=True))
    plain = a_trainer(shards, teacher, mirror, PL)
    assert sure.method is not None and plain.method is not None
    train, nats = sure.dataset.train, sure.dataset.nats
    with torch.no_grad():
        weighed, bare = (
            np.concatenate([run.method.losses([n])["ce"].numpy() for n in train])  # type: ignore[union-attr]
            for run in (sure, plain)
        )
        for number in train[:4]:
            ids = teacher.answer_ids([sure.dataset.answers[number]])
            seen = encode(teacher, [sure.dataset.examples[number]]).spliced
            own = losses.answer_cross_entropy(teacher.forward(seen, ids).logits, ids)
            assert nats[number] == pytest.approx(own.item(), rel=1e-4)
    weights = weighed / bare
    likely = np.array([math.exp(-nats[number]) for number in train])
    np.testing.assert_allclose(weights, likely / likely.mean(), rtol=1e-4)
    assert weights.mean() == pytest.approx(1, rel=1e-5)
    assert weights.max() > 1.5 * weights.min()
    batch = train[:8]
    with torch.no_grad():
        together = sure.method.losses(batch)["ce"].numpy()
    np.testing.assert_allclose(together, weighed[:8], rtol=1e-4)


# ---- a file of labels in place of the teacher

CACHED = [
    DistillSettings(epochs=1, batch_size=8, holdout=0.3, kl="forward"),
    replace(PL, method="cwd", cache_bits=8),
    replace(PL, method="tent"),
]


@pytest.mark.parametrize("settings", CACHED, ids=lambda settings: settings.method)
def test_the_cache_alone_gives_the_same_bits(
    settings: DistillSettings,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """As the run that filled it, as one with the teacher beside it, as one without a file."""
    cached = replace(settings, cache=tmp_path / "labels")
    unkept = distill(shards, teacher, mirror, settings)
    filling = distill(shards, teacher, mirror, cached)
    stored = (tmp_path / "labels").read_bytes()
    monkeypatch.setattr(teacher, "generate", never)
    monkeypatch.setattr(teacher, "queries", never)
    beside = distill(shards, teacher, mirror, cached)
    alone = distill(shards, None, mirror, cached)
    for made in (filling, beside, alone):
        assert overlay_digest(made.overlay) == overlay_digest(unkept.overlay)
        assert made.report == unkept.report
    assert alone.report["teacher"] == teacher.digest
    assert (tmp_path / "labels").read_bytes() == stored


def test_what_a_cache_lacks_is_said(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    cached = replace(PL, cache=tmp_path / "labels")
    with pytest.raises(MissingInput, match="labels"):
        distill(shards, None, mirror, cached)
    distill(shards[:6], teacher, mirror, cached)
    distill(shards[:6], None, mirror, cached)
    with pytest.raises(BadData, match="has no entry of frame frame 6"):
        distill(shards, None, mirror, cached)
    with pytest.raises(BadData, match="has no entry with logits of frame frame 0"):
        distill(shards[:6], None, mirror, replace(cached, kl="reverse"))
    with pytest.raises(UsageError, match="pseudo-label needs a teacher, or its labels"):
        distill(shards, None, mirror, PL)
