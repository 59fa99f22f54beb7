"""The loop's own part: running means, patience, batches in parts, what is frozen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cdcca_cli import distributed
from cdcca_cli.distillation import trainer
from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.methods import taught
from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from tests.distillation.conftest import a_trainer, assert_near

QUICK = DistillSettings(method="akd", epochs=3, batch_size=8, holdout=0.3)


# ---- a running mean


@pytest.mark.parametrize("decay", [0.0, 0.6])
def test_ema_writes_the_running_mean(
    decay: float,
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """m <- d m + (1 - d) v after each step, in float64, from the values that each step left."""
    settings = replace(QUICK, ema=decay, lr=1e-4)
    slow: list[np.ndarray] = []
    after_epoch: list[np.ndarray] = []
    inner = trainer.Trainer.step

    def step(this: trainer.Trainer, *rest: Any) -> Any:
        if not slow:
            slow.append(this.overlay.values.double().numpy().copy())
        made = inner(this, *rest)
        slow.append(decay * slow[-1] + (1 - decay) * this.overlay.values.double().numpy())
        if len(slow) % 3 == 1:  # three steps an epoch
            after_epoch.append(slow[-1])
        return made

    monkeypatch.setattr(trainer.Trainer, "step", step)
    made = distill(shards, teacher, mirror, settings)
    assert made.report["ema"] == decay
    best = made.report["best_epoch"]
    assert best > 0
    ours = np.concatenate([made.overlay[name].ravel() for name in sorted(made.overlay)])
    np.testing.assert_allclose(ours, after_epoch[best - 1], rtol=0, atol=3e-7)
    monkeypatch.undo()
    plain = distill(shards, teacher, mirror, replace(settings, ema=None))
    same = overlay_digest(plain.overlay) == overlay_digest(made.overlay)
    assert same == (decay == 0)


def test_the_mean_is_what_is_judged(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """A mean that all but stays has all but the start's loss, whatever the steps do."""
    curve = distill(shards, teacher, mirror, replace(QUICK, ema=0.999999)).report["curves"]
    assert curve["held_out"] == pytest.approx([curve["held_out"][0]] * 4, abs=1e-4)
    assert curve["loss"][2] < curve["loss"][0]


# ---- patience


def test_patience_stops_and_says_so(
    teacher: LoadedModel,
    mirror: Device,
    shards: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """With a step size that spoils the student, the start is best: two epochs without a gain."""
    settings = replace(QUICK, epochs=5, lr=3.0, patience=2, choose="best", work=tmp_path)
    made = distill(shards, teacher, mirror, settings)
    said = capsys.readouterr().err
    assert said.endswith("no gain on the held-out part since epoch 0: stopped after 2 of 5\n")
    assert said.count("\n") == 1
    assert (made.report["epochs_done"], made.report["best_epoch"]) == (2, 0)
    assert len(made.report["curves"]["held_out"]) == 3
    again = distill(shards, teacher, mirror, settings)
    assert again.report == made.report


def test_patience_waits_while_there_is_a_gain(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], capsys: pytest.CaptureFixture[str]
) -> None:
    made = distill(shards, teacher, mirror, replace(QUICK, patience=1, choose="best"))
    assert np.diff(made.report["curves"]["held_out"]).max() < 0
    assert made.report["epochs_done"] == 3
    alone = replace(QUICK, lr=0.5, patience=1, choose="best")
    spoiled = distill(shards[1:2], teacher, mirror, alone)
    assert spoiled.report["epochs_done"] == 3  # nothing is held out: nothing can tell
    assert capsys.readouterr().err == ""


# ---- a batch in parts


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("kl", ["none", "reverse"])
def test_parts_have_the_gradients_of_the_whole(
    kl: str, size: int, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Of the overlay and of phi; the means of each term, too. Confidence: each has its weight."""
    whole = replace(QUICK, kl=kl, confidence=True, query_weight=1.0, repr_weight=1.0)
    runs = [
        a_trainer(shards, teacher, mirror, settings)
        for settings in (whole, replace(whole, micro_batch_size=size))
    ]
    gradients, means = [], []
    for one in runs:
        assert one.method is not None
        one.method.weights = {"query": 2.0, "repr": 0.5, "ce": 1.0, "kl": 3.0}
        if kl == "none":
            del one.method.weights["kl"]
        means.append(one.backward(one.dataset.train[:8]))
        gradients.append([flat.gradient.clone() for flat in (one.overlay, *one.method.flats)])
    for ours, theirs in zip(*gradients, strict=True):
        assert theirs.abs().max() > 1e-3
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * float(theirs.abs().max()) * 10)
    torch.testing.assert_close(*means, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["akd", "pseudo-label", "tent"])
def test_a_run_in_parts_ends_where_the_whole_does(
    method: str, teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    settings = replace(QUICK, method=method)
    whole = distill(shards, teacher, mirror, settings)
    parts = distill(shards, teacher, mirror, replace(settings, micro_batch_size=4))
    assert_near(parts.overlay, whole.overlay, whole.report["lr"])
    base = mirror.read_overlay()
    assert max(np.abs(whole.overlay[n] - base[n]).max() for n in base) > 1e-3


def test_no_more_questions_than_a_part_have_gradients_at_once(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While phi and weights are made, too: that is what parts are for."""
    inner, sizes = taught.Taught._features, set()

    def features(this: taught.Taught, batch: list[int]) -> Any:
        sizes.add(len(batch))
        return inner(this, batch)

    monkeypatch.setattr(taught.Taught, "_features", features)
    distill(shards, teacher, mirror, replace(QUICK, epochs=1, micro_batch_size=3))
    assert max(sizes) == 3


# ---- with what the connector gives kept


# ---- several processes, from within one


def test_all_processes_go_by_the_of_first_judgement(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another card may judge otherwise in the last digit: all must stop at the same epoch."""
    one = a_trainer(shards, teacher, mirror, QUICK)
    own = one.evaluate()
    monkeypatch.setattr(distributed, "broadcast", lambda values: values.fill_(0.25))
    held = one.evaluate()
    assert own.cross_entropy != 0.25 == held.cross_entropy
    assert len(held) == len(own)


def test_only_the_first_keeps_states(
    teacher: LoadedModel, mirror: Device, shards: list[Shard], tmp_path: Path
) -> None:
    """Of the epochs and of the rate-aware steps."""
    ready = replace(QUICK, epochs=1, rate_aware=2, labels=(str(tmp_path / "labels"),))
    for is_first, count in ((True, 2), (False, 0)):
        settings = replace(ready, work=tmp_path / str(is_first))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(distributed, "is_first", lambda value=is_first: value)
            distill(shards, teacher, mirror, settings)
        assert len(list((tmp_path / str(is_first)).glob("training-*"))) == count


def test_pseudo_labels_alone_have_no_phi(
    teacher: LoadedModel, mirror: Device, shards: list[Shard]
) -> None:
    """Not even an empty one, which would lie on the CPU and which no card can add up."""
    one = a_trainer(shards, teacher, mirror, replace(QUICK, method="pseudo-label"))
    assert one.method is not None
    assert one.method.flats == []


def test_cotta_needs_no_teacher_in_parts(mirror: Device, shards: list[Shard]) -> None:
    """Each part has views and a confidence of its own; parts are counted."""
    settings = replace(
        QUICK,
        method="cotta",
        epochs=1,
        micro_batch_size=4,
        cotta_views=1,
        cotta_threshold=1.0,
    )
    report = distill(shards, None, mirror, settings).report["cotta"]
    assert (report["batches"], report["augmented"]) == (
        5,
        5,
    )  # 20 questions in batches of 8, 8 and 4


def test_settings_that_cannot_be() -> None:
    for wrong in ({"ema": 1.0}, {"ema": -0.1}, {"patience": 0}, {"micro_batch_size": 0}):
        with pytest.raises(UsageError):
            DistillSettings(**wrong)  # type: ignore[arg-type]
    for method in ("cotta", "none"):
        with pytest.raises(UsageError, match=f"`ema`: does nothing with `method` {method}"):
            DistillSettings(method=method, ema=0.5)
