"""What is learnt of the teacher's answers: distributions, confidence; labels without a teacher."""

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.distillation import losses
from cdcca_cli.distillation.distill import distill, summary
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import BadData, MissingInput, SettingError, UsageError
from cdcca_cli.formats import label_stream
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest, short
from cdcca_cli.formats.labels import Entry, Label, Source, payload_digest, question_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import encode
from cdcca_cli.teachers.settings import LabelSettings
from tests.distillation.conftest import a_trainer

PL = DistillSettings(method="pseudo-label", epochs=1, batch_size=8, holdout=0.3)


# ---- distributions


def shares(logits: list[float], named: list[int]) -> list[float]:
    """The probabilities of some tokens, and of all others together."""
    weights = [math.exp(value - max(logits)) for value in logits]
    own = [weights[number] / sum(weights) for number in named]
    return [*own, 1 - sum(own)]


def tempered(shares: list[float], tau: float) -> list[float]:
    weights = [share ** (1 / tau) for share in shares]
    return [weight / sum(weights) for weight in weights]


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_kl_is_that_of_the_likeliest_tokens(
    direction: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """tau^2 sum p ln(p/q) in float64 loops, from the logits of both, one by one.

    Of a teacher token's 7 likeliest of 320, and of all others together; labels have 16 bits.
    """
    settings = replace(PL, kl=direction, kl_temperature=1.7)
    run = a_trainer(shards, teacher, mirror, settings, asking=LabelSettings(top=7))
    assert run.method is not None
    batch = run.dataset.train[:6]
    with torch.no_grad():
        found_B = run.method.losses(batch)["kl"].tolist()
    for number, found in zip(batch, found_B, strict=True):
        example = run.dataset.examples[number]
        with torch.no_grad():
            rows = []
            for model in (teacher, run.student):
                ids = model.answer_ids([run.dataset.answers[number]])
                rows.append(model.forward(encode(model, [example]).spliced, ids).logits[0])
        tokens = []
        for theirs, ours in zip(rows[0].tolist(), rows[1].tolist(), strict=True):
            named = sorted(range(len(theirs)), key=theirs.__getitem__)[-7:]
            p, q = (tempered(shares(row, named), 1.7) for row in (theirs, ours))
            if direction == "reverse":
                p, q = q, p
            tokens.append(1.7**2 * sum(x * math.log(x / y) for x, y in zip(p, q, strict=True)))
        assert found == pytest.approx(sum(tokens) / len(tokens), rel=2e-2)


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
    kl = replace(PL, kl="forward", labels=(str(tmp_path / "labels"),))
    with pytest.raises(UsageError, match="`kl` forward: the vocabularies differ"):
        distill(shards, foreign, mirror, replace(kl, labels=()))
    assert distill(shards, foreign, mirror, PL).report["epochs_done"] == 1
    distill(shards, teacher, mirror, kl)
    theirs = short(teacher.vocabulary_digest)
    monkeypatch.setattr(LoadedModel, "vocabulary_digest", foreign.vocabulary_digest)
    with pytest.raises(UsageError, match=f"`kl`: the voc.* labels' is {theirs}, the"):
        distill(shards, None, mirror, kl)


# ---- kd


def test_kd_is_pseudo_label_and_forward_kl(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Bit for bit, with weight 1 each; without the divergence it is pseudo-label."""
    kd = replace(PL, method="kd")
    assert kd.weights() == {"ce": 1.0, "kl": 1.0}
    for own, same in ((kd, replace(PL, kl="forward")), (replace(kd, kl="none"), PL)):
        made, expected = (distill(shards, teacher, mirror, how) for how in (own, same))
        assert overlay_digest(made.overlay) == overlay_digest(expected.overlay)
        assert made.report["effective_weights"] == expected.report["effective_weights"]
    assert made.method == "kd"


@pytest.mark.parametrize(
    ("method", "weights"),
    [
        ("akd", {"query": 0.03, "repr": 0.1, "ce": 1.0}),
        ("pseudo-label", {"ce": 1.0}),
        ("pkd", {"query": 6.0, "repr": 6.0, "ce": 1.0}),
        ("cwd", {"query": 3.0, "repr": 3.0, "ce": 1.0}),
    ],
)
def test_the_other_methods_learn_distributions_only_if_asked(
    method: str, weights: dict[str, float]
) -> None:
    """So akd is Eq. 6 to the letter."""
    assert DistillSettings(method=method).weights() == weights
    assert DistillSettings(method=method, kl="none").weights() == weights
    asked = DistillSettings(method=method, kl="reverse", kl_weight=2.0)
    assert asked.weights() == weights | {"kl": 2.0}


@pytest.mark.parametrize("why", ["vocabulary", "labels"])
def test_kd_without_distributions_learns_the_answers_and_says_so(
    why: str,
    teacher: LoadedModel,
    foreign: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, and the bits of pseudo-label; what was asked for by name is refused instead."""
    asking = LabelSettings(top=0) if why == "labels" else LabelSettings()
    large = teacher if why == "labels" else foreign
    kd = replace(PL, method="kd")
    made = distill(shards, large, mirror, kd, asking=asking)
    said = capsys.readouterr().err
    expected = distill(shards, large, mirror, PL, asking=asking)
    assert overlay_digest(made.overlay) == overlay_digest(expected.overlay)
    assert made.report["effective_weights"] == {"ce": 1.0}
    assert "kl" not in made.report["curves"]
    assert said.count("\n") == 1
    assert "kl` is left out: " in said
    fault = {"vocabulary": "the vocabularies differ", "labels": "the labels have no distributions"}
    assert fault[why] in said and "leave" not in said
    for asked in (replace(kd, kl="forward"), replace(kd, ce_weight=0.0)):
        with pytest.raises(SettingError, match=fault[why]):
            distill(shards, large, mirror, asked, asking=asking)


def test_settings_of_kd_that_cannot_be() -> None:
    with pytest.raises(SettingError, match="kd has no query or repr term: use akd"):
        DistillSettings(method="kd", query_weight=1.0)
    with pytest.raises(SettingError, match="`kl_weight`: give `kl` forward"):
        DistillSettings(method="kd", kl="none", kl_weight=1.0)
    with pytest.raises(SettingError, match="`kl_temperature`: give `kl` forward"):
        DistillSettings(method="akd", kl_temperature=2.0)
    assert DistillSettings(method="kd", kl_weight=0.5).weights() == {"ce": 1.0, "kl": 0.5}


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

KEPT = [
    DistillSettings(method="akd", epochs=1, batch_size=8, holdout=0.3, kl="forward"),
    replace(PL, method="cwd"),
    replace(PL, method="tent"),
]


@pytest.mark.parametrize("settings", KEPT, ids=lambda settings: settings.method)
def test_the_labels_alone_give_the_same_bits(
    settings: DistillSettings,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    never: Callable[..., None],
) -> None:
    """As the run that filled the file, as one with the teacher beside it, as one without a file.

    Of 8 bits for one method.
    """
    asking = LabelSettings(label_bits=8 if settings.method == "cwd" else 16)
    cached = replace(settings, labels=(str(tmp_path / "labels"),))
    unkept = distill(shards, teacher, mirror, settings, asking=asking)
    filling = distill(shards, teacher, mirror, cached, asking=asking)
    stored = (tmp_path / "labels").read_bytes()
    monkeypatch.setattr(teacher, "generate", never)
    monkeypatch.setattr(teacher, "queries", never)
    beside = distill(shards, teacher, mirror, cached, asking=asking)
    alone = distill(shards, None, mirror, cached)
    for made in (filling, beside, alone):
        assert overlay_digest(made.overlay) == overlay_digest(unkept.overlay)
        assert made.report == unkept.report
    assert alone.report["teacher"] == teacher.digest
    assert (tmp_path / "labels").read_bytes() == stored


def test_what_the_labels_lack_is_said(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Some questions: they are left out. All: there is nothing to learn."""
    cached = replace(PL, labels=(str(tmp_path / "labels"),))
    with pytest.raises(MissingInput, match="labels"):
        distill(shards, None, mirror, cached)
    distill(shards[:6], teacher, mirror, cached)
    distill(shards[:6], None, mirror, cached)
    assert "have no label" not in capsys.readouterr().err
    made = distill(shards, None, mirror, cached)
    assert "labels: 14 of 28 questions have no label, and are left out" in capsys.readouterr().err
    assert (made.report["num_asks"], made.report["num_unlabelled"]) == (14, 14)
    assert "14 left out without a label" in summary(made)[-1]
    with pytest.raises(BadData, match=r"labels: 14 of 14 questions have no label: were they samp"):
        distill(shards[6:], None, mirror, cached)
    with pytest.raises(UsageError, match="pseudo-label needs a teacher, or its labels"):
        distill(shards, None, mirror, PL)


@pytest.mark.parametrize("method", ["akd", "pkd", "cwd"])
def test_labels_without_features_are_refused_by_a_method_that_compares_them(
    method: str, teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """And taught from by the others; one question without them is enough."""
    bare, file = LabelSettings(features=False), (str(tmp_path / "labels"),)
    told = replace(PL, labels=file, holdout=0)
    distill(shards[:2], teacher, mirror, told, asking=bare)
    assert distill(shards[:2], None, mirror, told).report["num_trained"] == 5
    compared = replace(told, method=method)
    with pytest.raises(
        SettingError,
        match=rf"`method` {method}: the labels have no queries, .* use `method` kd",
    ):
        distill(shards[:2], None, mirror, compared)
    distill(shards[2:4], teacher, mirror, told)
    with pytest.raises(SettingError, match="the labels have no queries"):
        distill(shards[:4], None, mirror, compared)
    weights = replace(compared, query_weight=0.0, repr_weight=0.0)
    assert distill(shards[:4], None, mirror, weights).report["num_trained"] == 10


def test_confidence_without_the_teachers_probability_is_refused(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    path = tmp_path / "labels"
    with label_stream.writing(path, 16) as write:
        for shard in shards[:2]:
            labels = {question_digest(one): Label("red") for one in shard.questions}
            write(Entry(shard.frame, payload_digest(shard), Source("someone"), labels))
    how = replace(PL, labels=(str(path),), holdout=0)
    assert distill(shards[:2], None, mirror, how).report["teacher"] == "someone"
    with pytest.raises(SettingError, match="`confidence`: the teacher gave no probability"):
        distill(shards[:2], None, mirror, replace(how, confidence=True))
