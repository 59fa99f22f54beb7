"""CoTTA against a slow second form of three steps, and what each of its settings does."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.methods import cotta
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.initial import start_of
from tests.distillation.conftest import a_trainer, train_epochs
from tests.distillation.slow_cotta import Slow

ONE = DistillSettings(method="cotta", epochs=1, batch_size=8, holdout=0.3, seed=5)
NEVER, ALWAYS = 0.0, 1.0


def with_(**how: float) -> DistillSettings:
    """One epoch, three steps; two views where there are any."""
    given: dict[str, Any] = {f"cotta_{name}": value for name, value in ({"views": 2} | how).items()}
    return replace(ONE, **given)


@pytest.fixture(scope="module")
def elsewhere(teacher: LoadedModel, mirror: Device, shards: list[Shard]) -> Adaptation:
    """A round before: where this one starts is not the source any more."""
    return distill(shards, teacher, mirror, DistillSettings(epochs=2, batch_size=8))


# ---- three steps


@pytest.mark.parametrize("threshold", [NEVER, ALWAYS])
def test_three_steps_equal_the_slow_form(
    threshold: float, elsewhere: Adaptation, mirror: Device, shards: list[Shard]
) -> None:
    """Student and mean teacher, parameter by parameter, to a hundredth of what they moved.

    The mean teacher begins elsewhere than the student: of its own answers the student has no
    gradient but rounding, which Adam would blow up.
    """
    settings = with_(ema=0.7, restore=0.2, threshold=threshold)
    run = a_trainer(shards, None, mirror, settings, elsewhere.overlay)
    assert isinstance(run.method, cotta.Cotta)
    slow = Slow(mirror, elsewhere.overlay, settings)
    behind = {name: 0.9 * a + 0.1 * slow.source[name] for name, a in elsewhere.overlay.items()}
    slow.mean = dict(behind)
    run.method.mean_P.copy_(run.overlay.laid_out(behind))  # type: ignore[union-attr]
    batches = run.batches(0)
    assert len(batches) == 3
    for number, batch in enumerate(batches):
        examples = [run.dataset.examples[place] for place in batch]
        views = list(run.method._views(batch)) if threshold else []
        lr = run.lr * [1, 1, 0.75][number]  # one step of warm-up, then 0.5 (1 + cos(0, pi/3))
        assert slow.step(number, examples, views, lr, settings.seed) == (threshold == ALWAYS)
    train_epochs(run, mirror)
    for ours, theirs in (
        (run.overlay.values, slow.student),
        (run.method.mean_P, slow.mean),  # type: ignore[union-attr]
    ):
        for name, array in run.overlay.arrays(ours).items():
            moved = np.abs(theirs[name] - elsewhere.overlay[name]).max()
            assert moved > 1e-5, name
            gap = np.abs(array - theirs[name])
            assert np.quantile(gap, 0.99) < 0.01 * moved, name


# ---- what is written, and what the settings do


def test_the_mean_teacher_is_judged_and_written(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    settings = with_(ema=0.7)
    run = a_trainer(shards, teacher, mirror, settings)
    train_epochs(run, mirror)
    made = distill(shards, teacher, mirror, settings)
    assert run.method is not None and run.method.mean_P is not None
    assert not torch.equal(run.method.mean_P, run.overlay.values)
    means = run.overlay.arrays(run.method.mean_P)
    assert overlay_digest(made.overlay) == overlay_digest(means)
    run.overlay.values.copy_(run.method.mean_P)
    after = run.evaluator.evaluate().cross_entropy
    assert made.report["held_out"]["cross_entropy"]["after"] == after


def test_a_mean_that_never_moves_writes_the_start(
    elsewhere: Adaptation, mirror: Device, shards: list[Shard]
) -> None:
    made = distill(shards, None, mirror, with_(ema=1.0), resume=elsewhere)
    assert overlay_digest(made.overlay) == overlay_digest(elsewhere.overlay)


@pytest.mark.parametrize(("share", "back"), [(1.0, 1.0), (0.3, 0.3), (0.0, 0.0)])
def test_restore_puts_a_share_back_to_the_source(
    share: float, back: float, elsewhere: Adaptation, mirror: Device, shards: list[Shard]
) -> None:
    """To sequence 0, not to where this round started; another share after each step."""
    run = a_trainer(shards, None, mirror, with_(restore=share), elsewhere.overlay)
    source_P = run.overlay.laid_out(start_of(mirror))
    moved_P = source_P != run.overlay.values
    assert moved_P.float().mean() > 0.9
    assert run.method is not None
    masks = []
    for number in range(2):
        run.overlay.values.copy_(run.overlay.laid_out(elsewhere.overlay))
        run.method.after_step(number)
        masks.append((run.overlay.values == source_P)[moved_P])
        assert float(masks[-1].float().mean()) == pytest.approx(back, abs=0.02)
    assert torch.equal(*masks) == (share in (0.0, 1.0))


@pytest.mark.parametrize(("threshold", "augmented"), [(NEVER, 0), (ALWAYS, 3)])
def test_the_threshold_decides_whether_views_are_averaged(
    threshold: float,
    augmented: int,
    mirror: Device,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inner, seen = cotta.augmented, []
    monkeypatch.setattr(cotta, "augmented", lambda *args: seen.append(1) or inner(*args))
    report = distill(shards, None, mirror, with_(threshold=threshold)).report["cotta"]
    assert (report["batches"], report["augmented"]) == (3, augmented)
    assert bool(seen) == bool(augmented)


@torch.no_grad()
def test_it_is_the_source_models_confidence(
    elsewhere: Adaptation, mirror: Device, shards: list[Shard]
) -> None:
    """Of the mean teacher's answers, just above the threshold and just below; not the teacher's."""
    source = start_of(mirror)
    far = {name: source[name] + 9 * (a - source[name]) for name, a in elsewhere.overlay.items()}
    run = a_trainer(shards, None, mirror, with_(), far)
    assert isinstance(run.method, cotta.Cotta)
    slow = Slow(mirror, far, with_())
    batch = run.dataset.train[:6]
    examples = [run.dataset.examples[number] for number in batch]
    slow.put_on(far)
    answers = [slow.answer(example) for example in examples]
    teachers, sources = (
        slow.confidence(overlay, examples, answers) for overlay in (slow.mean, slow.source)
    )
    assert abs(teachers / sources - 1) > 0.002
    for threshold, unsure in ((0.999 * sources, 0), (1.001 * sources, 1)):
        run.method.settings = with_(threshold=threshold, views=1)
        run.method._now_2.zero_()
        run.method.losses(batch)
        assert run.method._now_2.tolist() == [1, unsure]


def test_more_views_are_another_target(mirror: Device, shards: list[Shard]) -> None:
    made = [distill(shards, None, mirror, with_(threshold=1.0, views=v)).overlay for v in (1, 2)]
    assert overlay_digest(made[0]) != overlay_digest(made[1])


@pytest.mark.parametrize(
    "wrong", [{"ema": 1.1}, {"restore": -0.1}, {"threshold": 2.0}, {"views": 0}]
)
def test_settings_that_cannot_be(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=f"`cotta_{next(iter(wrong))}`"):
        with_(**wrong)


# ---- views


def rows(shard: Shard) -> dict[int, np.ndarray]:
    """Each token by the place where it stands."""
    return dict(zip(shard.positions.tolist(), shard.tokens, strict=True))


def test_a_view_is_nearly_the_picture_with_a_tenth_left_out(shards: list[Shard]) -> None:
    """Each token that is left stands where it stood: nothing is mirrored, nothing moved."""
    shard = replace(
        shards[0],
        tokens=np.random.default_rng(0).normal(1, 2, (40, 32)).astype(np.float32),
        positions=np.arange(3, 83, 2, dtype=np.int32),
        scores=np.arange(40, dtype=np.float32),
    )
    source, scales = np.random.default_rng(1), []
    for _ in range(20):
        view = cotta.augmented(shard, source)
        assert len(view.positions) == len(view.tokens) == len(view.scores) == 36
        assert (np.diff(view.positions) > 0).all()
        assert ((view.positions - 3) // 2 == view.scores).all()
        assert (view.tokens.dtype, view.questions, view.frame) == (
            np.float32,
            shard.questions,
            shard.frame,
        )
        before, after = rows(shard), rows(view)
        assert set(after) < set(before)
        x, y = (np.stack([side[place] for place in sorted(after)]) for side in (before, after))
        scales.append(float((x * y).sum() / (x * x).sum()))
        noise = y - scales[-1] * x
        assert noise.std() == pytest.approx(0.1 * shard.tokens.std(0).mean(), rel=0.1)
        assert abs(np.corrcoef(noise.ravel(), x.ravel())[0, 1]) < 0.1
    assert 0.88 < min(scales) < 0.95 < 1.05 < max(scales) < 1.12


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_view_keeps_a_token_at_least(count: int, shards: list[Shard]) -> None:
    few = replace(
        shards[0],
        tokens=shards[0].tokens[:count],
        positions=shards[0].positions[:count],
        scores=shards[0].scores[:count],
    )
    for seed in range(5):
        view = cotta.augmented(few, np.random.default_rng(seed))
        assert 1 <= len(view.tokens) <= count
        assert np.isfinite(view.tokens).all()


def test_views_hang_on_seed_examples_and_number_alone(mirror: Device, shards: list[Shard]) -> None:
    """The questions of a frame share its view; another view, another seed: other numbers."""
    run = a_trainer(shards, None, mirror, with_())
    assert isinstance(run.method, cotta.Cotta)
    batch = [number for number in run.dataset.train if number < 9]
    first, again = (list(run.method._views(batch)) for _ in range(2))
    assert len(first) == 2
    for view, same in zip(first, again, strict=True):
        for one, other, number in zip(view, same, batch, strict=True):
            assert np.array_equal(one.shard.tokens, other.shard.tokens)
            assert one.question is run.dataset.examples[number].question
            assert one.shard.frame == run.dataset.examples[number].shard.frame
    assert first[0][0].shard is first[0][1].shard
    assert not np.array_equal(first[0][0].shard.tokens, first[1][0].shard.tokens)
    other = a_trainer(shards, None, mirror, replace(with_(), seed=6))
    (view, _) = other.method._views(batch)  # type: ignore[union-attr]
    assert not np.array_equal(first[0][0].shard.tokens, view[0].shard.tokens)
