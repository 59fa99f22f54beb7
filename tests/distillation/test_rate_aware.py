"""Training through the quantiser: what is written, coded, is what was judged."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cdcca_cli.distillation import rate_aware, trainer
from cdcca_cli.distillation.distill import distill, summary
from cdcca_cli.distillation.evaluation import HeldOutLoss
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.adaptation import Adaptation, read_adaptation, write_adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.initial import create_device
from cdcca_cli.models.settings import InitSettings
from cdcca_cli.numerics import uniform
from tests.distillation.conftest import Stopped, stopped_at_step

QUICK = DistillSettings(
    method="akd", choose="best", epochs=2, batch_size=8, holdout=0.3, rate_aware=12, bits=1.0
)


@pytest.fixture(scope="module")
def adapted(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    return distill(shards, teacher, mirror, QUICK)


def decoded(made: Adaptation, mirror: Device) -> dict[str, np.ndarray]:
    """The overlay that a device has after the update at the recorded step."""
    assert made.rate_aware is not None
    base, step = mirror.read_overlay(), made.rate_aware.step
    return {
        name: base[name]
        + uniform.restore(uniform.quantize(made.overlay[name] - base[name], step), step)
        for name in base
    }


def codes(made: Adaptation, mirror: Device) -> np.ndarray:
    assert made.rate_aware is not None
    base = mirror.read_overlay()
    deltas = [(made.overlay[name] - base[name]).ravel() for name in sorted(base)]
    return uniform.quantize(np.concatenate(deltas), made.rate_aware.step)


@pytest.mark.parametrize("seed", range(3))
def test_the_student_sees_what_a_device_decodes(seed: int) -> None:
    """torch's arithmetic and `uniform`'s: the same bits, halves and both zeros included."""
    source = np.random.default_rng(seed)
    base = source.standard_normal(10_000).astype(np.float32)
    base[:10] = -0.0
    step = np.float32(source.uniform(1e-4, 1e-2))
    latent = base + (source.standard_normal(10_000) * 2 * step).astype(np.float32)
    latent[10:500] = base[10:500] + step * (source.integers(-4, 5, 490) + np.float32(0.5))
    latent[:10] = -0.0
    shown = rate_aware.seen(torch.from_numpy(latent), torch.from_numpy(base), float(step)).numpy()
    expected = base + uniform.restore(uniform.quantize(latent - base, float(step)), float(step))
    assert np.array_equal(shown.view(np.uint32), expected.view(np.uint32))


def test_what_is_written_is_coded_as_it_was_judged(
    adapted: Adaptation, student: LoadedModel, mirror: Device
) -> None:
    """Quantised at the recorded step, through the file: the very loss that training reported."""
    out = io.BytesIO()
    write_adaptation(out, adapted)
    out.seek(0)
    found = read_adaptation(out)
    assert found.rate_aware == adapted.rate_aware
    assert found.held_out is not None
    loss = HeldOutLoss(student, found.held_out, mirror.lora.alpha, QUICK.batch_size)
    after = adapted.report["held_out"]["cross_entropy"]["after"]
    assert loss(decoded(found, mirror)) == after
    assert loss(found.overlay) != after


def test_it_costs_the_bits_that_were_asked_for(adapted: Adaptation, mirror: Device) -> None:
    assert adapted.rate_aware is not None
    spent = uniform.entropy_bits(codes(adapted, mirror))
    assert spent == pytest.approx(adapted.rate_aware.bits)
    assert 0.99 < spent <= 1.0


def test_the_report_says_what_was_done(adapted: Adaptation) -> None:
    report = adapted.report["rate_aware"]
    assert (report["num_steps"], report["target_bits"]) == (12, 1.0)
    assert report["best_segment"] >= 1  # the tiny student learns on
    curves = report["curves"]
    assert len(curves["held_out"]) == len(curves["bits"]) == rate_aware.NUM_SEGMENTS + 1
    assert len(curves["loss"]) == len(curves["answer"]) == rate_aware.NUM_SEGMENTS
    after = adapted.report["held_out"]["cross_entropy"]["after"]
    assert after == pytest.approx(min(curves["held_out"]), abs=1e-6)
    assert "as coded at 1.00 bits a parameter" in summary(adapted)[-1]


def test_steps_through_the_quantiser_undo_its_harm(adapted: Adaptation) -> None:
    """At few bits the epochs' result, coded, is worse than before coding; the steps mend it."""
    curves = adapted.report["rate_aware"]["curves"]
    assert min(curves["held_out"][1:]) < curves["held_out"][0]


def test_the_same_seed_gives_the_same_bits(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    again = distill(shards, teacher, mirror, QUICK)
    assert overlay_digest(again.overlay) == overlay_digest(adapted.overlay)
    assert (again.report, again.rate_aware) == (adapted.report, adapted.rate_aware)


def test_an_interrupted_run_ends_with_the_same_bits(
    adapted: Adaptation,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Stopped in the third segment: the epochs and two segments are not trained again."""
    settings = replace(QUICK, work=tmp_path)
    # Two epochs of three steps, then segments of 2, 3, 2, 3 and 2.
    with stopped_at_step(2 * 3 + 6), pytest.raises(Stopped):
        distill(shards, teacher, mirror, settings)
    with stopped_at_step(100) as taken:
        made = distill(shards, teacher, mirror, settings)
    said = capsys.readouterr().err
    assert "resumed after epoch 2 of 2" in said
    assert f"resumed after rate-aware segment 2 of {rate_aware.NUM_SEGMENTS}" in said
    assert taken == [12 - 5]
    assert overlay_digest(made.overlay) == overlay_digest(adapted.overlay)
    assert made.report == adapted.report
    monkeypatch.setattr(trainer.Trainer, "backward", None)  # nothing is left to do
    again = distill(shards, teacher, mirror, settings)
    assert overlay_digest(again.overlay) == overlay_digest(adapted.overlay)


def test_the_epochs_are_shared_by_runs_that_differ_behind_them(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """A work folder of an ordinary run serves; other steps or bits do not take up each other's."""
    ordinary = replace(QUICK, rate_aware=0, bits=DistillSettings.bits, work=tmp_path)
    plain = distill(shards, teacher, mirror, ordinary)
    assert plain.rate_aware is None and plain.report["rate_aware"] is None
    settings = [replace(QUICK, work=tmp_path, bits=bits) for bits in (1.0, 2.0)]
    both = [distill(shards, teacher, mirror, each) for each in settings]
    alone = [distill(shards, teacher, mirror, replace(each, work=None)) for each in settings]
    assert [overlay_digest(made.overlay) for made in both] == [
        overlay_digest(made.overlay) for made in alone
    ]
    assert overlay_digest(both[0].overlay) != overlay_digest(both[1].overlay)
    assert len(list(tmp_path.glob("training-*.safetensors"))) == 3


def test_the_delta_is_against_the_mirror_whatever_is_resumed(
    adapted: Adaptation, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    more = distill(shards, teacher, mirror, replace(QUICK, epochs=1), resume=adapted)
    assert more.base == mirror.digest
    assert uniform.entropy_bits(codes(more, mirror)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize("has_arrived", [False, True])
def test_what_was_judged_is_what_is_gone_on_from(
    has_arrived: bool,
    adapted: Adaptation,
    teacher: LoadedModel,
    tiny_pair: tuple[Path, Path],
    shards: list[Shard],
    tmp_path: Path,
) -> None:
    """Not the latent: the next run begins where the device is, or will be with that update."""
    mirror = create_device(tmp_path / "mirror", str(tiny_pair[1]), InitSettings(lora_rank=4))
    if has_arrived:
        mirror.install(decoded(adapted, mirror), 1)
    ordinary = replace(QUICK, epochs=1, rate_aware=0, bits=DistillSettings.bits)
    more = distill(shards, teacher, mirror, ordinary, resume=adapted)
    judged = adapted.report["held_out"]["cross_entropy"]["after"]
    assert more.report["held_out"]["cross_entropy"]["before"] == judged


def test_nothing_worse_than_the_mirror_is_sent(
    teacher: LoadedModel,
    tiny_pair: tuple[Path, Path],
    shards: list[Shard],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A mirror that has learnt, and a quantiser that spoils all: the mirror's own is written."""
    mirror = create_device(tmp_path / "mirror", str(tiny_pair[1]), InitSettings(lora_rank=4))
    learning = replace(QUICK, epochs=6, lr=0.01, rate_aware=0, bits=DistillSettings.bits)
    mirror.install(distill(shards, teacher, mirror, learning).overlay, 1)
    monkeypatch.setattr(rate_aware, "seen", lambda latent, _base, _step: latent + 1)
    made = distill(shards, teacher, mirror, replace(QUICK, epochs=1))
    report = made.report
    assert min(report["rate_aware"]["curves"]["held_out"]) > report["curves"]["held_out"][0]
    assert report["rate_aware"]["best_segment"] == rate_aware.MIRROR
    assert overlay_digest(made.overlay) == mirror.digest
    assert report["held_out"]["cross_entropy"]["after"] == pytest.approx(
        report["held_out"]["cross_entropy"]["before"]
    )
    assert report["held_out"]["verdict"] == "equal"
    assert made.rate_aware is not None and made.rate_aware.bits == 0


def test_divergence_is_said(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rate_aware, "LR_SHARE", 1e30)
    with pytest.raises(UsageError, match=r"`lr`.* diverged.*rate-aware segment 1: give a smaller"):
        distill(shards, teacher, mirror, replace(QUICK, epochs=1))


def test_without_a_held_out_part_the_last_leg_is_written(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    made = distill(
        shards, teacher, mirror, replace(QUICK, choose="last", epochs=1, holdout=0, rate_aware=3)
    )
    assert made.report["rate_aware"]["best_segment"] == rate_aware.NUM_SEGMENTS
    assert made.report["rate_aware"]["curves"]["held_out"] == []
    assert uniform.entropy_bits(codes(made, mirror)) == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"rate_aware": -1}, "`rate_aware`"),
        ({"bits": 0.0}, "`bits`"),
        ({"bits": 17.0}, "`bits`"),
        ({"bits": float("nan")}, "`bits`"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        replace(QUICK, **wrong)  # type: ignore[arg-type]
