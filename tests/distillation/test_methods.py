"""What all methods have in common: one seed one result, stopped and gone on with, what is moved."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from cdcca_cli.distillation.distill import distill
from cdcca_cli.distillation.settings import METHODS, DistillSettings
from cdcca_cli.errors import UsageError
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.names import LORA_PARTS, split_groups
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from tests.distillation.conftest import Stopped, stopped_at_step

QUICK = DistillSettings(
    epochs=2,
    batch_size=8,
    holdout=0.3,
    cotta_ema=0.8,
    cotta_restore=0.1,
    cotta_threshold=0.12,
    cotta_views=2,
)
STEPS = 2
"""Of an epoch: 11 questions in batches of 8."""
VARIANTS: dict[str, DistillSettings] = {
    **{method: replace(QUICK, method=method) for method in METHODS},
    "akd, ema": replace(QUICK, ema=0.8),
    "pseudo-label, kl": replace(QUICK, method="pseudo-label", kl="reverse", confidence=True),
}
MOVING = [name for name in VARIANTS if name != "none"]

Train = Callable[..., Adaptation]


@pytest.fixture(scope="module")
def few(shards: list[Shard]) -> list[Shard]:
    return shards[:7]


@pytest.fixture(scope="module")
def train(teacher: LoadedModel, mirror: Device, few: list[Shard]) -> Train:
    """An adaptation by these settings, made once."""
    return cache(lambda settings: distill(few, teacher, mirror, settings))


def test_every_method_is_here() -> None:
    assert set(METHODS) == {"akd", "pseudo-label", "kd", "pkd", "cwd", "tent", "cotta", "none"}


@pytest.mark.parametrize("name", VARIANTS)
def test_one_seed_one_result(
    name: str, train: Train, teacher: LoadedModel, mirror: Device, few: list[Shard]
) -> None:
    """The overlay and all that the file says; another seed takes the questions in another order."""
    made = train(VARIANTS[name])
    again = distill(few, teacher, mirror, VARIANTS[name])
    assert overlay_digest(again.overlay) == overlay_digest(made.overlay)
    assert again.report == made.report
    other = train(replace(VARIANTS[name], seed=1))
    is_same = overlay_digest(other.overlay) == overlay_digest(made.overlay)
    assert is_same == (name == "none")


@pytest.mark.parametrize("name", MOVING)
def test_stopped_in_the_second_epoch_and_gone_on_with(
    name: str,
    train: Train,
    teacher: LoadedModel,
    mirror: Device,
    few: list[Shard],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The same bits and the same report; what was done is not done again."""
    settings = replace(VARIANTS[name], work=tmp_path)
    with stopped_at_step(STEPS + 2), pytest.raises(Stopped):
        distill(few, teacher, mirror, settings)
    with stopped_at_step(10 * STEPS) as taken:
        made = distill(few, teacher, mirror, settings)
    assert taken == [STEPS]
    assert "resumed after epoch 1 of 2" in capsys.readouterr().err
    unbroken = train(VARIANTS[name])
    assert overlay_digest(made.overlay) == overlay_digest(unbroken.overlay)
    assert made.report == unbroken.report
    read = distill(few, teacher, mirror, settings)  # and once more, with nothing left to do
    assert overlay_digest(read.overlay) == overlay_digest(unbroken.overlay)
    assert read.report == unbroken.report


def test_none_leaves_the_overlay_bit_for_bit(
    train: Train, mirror: Device, few: list[Shard]
) -> None:
    """The mirror's, and where training goes on, the adaptation's; nobody need be asked."""
    settings = replace(QUICK, method="none")
    made = train(settings)
    assert overlay_digest(made.overlay) == mirror.digest
    held = made.report["held_out"]
    assert held["cross_entropy"]["before"] == held["cross_entropy"]["after"]
    assert (made.report["num_trained"], made.report["epochs_done"]) == (0, 0)
    learnt = train(QUICK)
    again = distill(few, None, mirror, settings, resume=learnt)
    assert overlay_digest(again.overlay) == overlay_digest(learnt.overlay)
    assert (again.base, again.report["held_out"]) == (mirror.digest, None)


def moved_groups(made: Adaptation, mirror: Device, student: LoadedModel) -> set[str]:
    """The groups of which anything is not as the mirror has it."""
    base, found = mirror.read_overlay(), set()
    for group, names in student.trainable_groups().items():
        stems = [name + ".lora_" if group in LORA_PARTS else name for name in names]
        own = [name for name in base if any(name.startswith(stem) for stem in stems)]
        assert own, group
        if any(not np.array_equal(made.overlay[name], base[name]) for name in own):
            found.add(group)
    return found


@pytest.mark.parametrize("method", ["akd", "pseudo-label", "pkd", "cwd", "cotta"])
def test_the_others_train_all_groups(
    method: str, train: Train, mirror: Device, student: LoadedModel
) -> None:
    made = train(VARIANTS[method])
    assert moved_groups(made, mirror, student) == {"norm", "bias", "query", *LORA_PARTS}


@pytest.mark.parametrize(
    ("method", "groups"),
    [
        ("akd", ("lora",)),
        ("akd", ("lora.language",)),
        ("akd", ("norm", "lora.connector")),
        ("tent", ("lora",)),
        ("cotta", ("query", "bias")),
    ],
)
def test_train_names_what_moves(
    method: str, groups: tuple[str, ...], train: Train, mirror: Device, student: LoadedModel
) -> None:
    made = train(replace(QUICK, method=method, train=groups))
    assert moved_groups(made, mirror, student) == set(split_groups(groups))
    assert made.report["groups"] == list(groups)
    assert set(made.overlay) == set(mirror.read_overlay())


def test_the_order_of_the_groups_does_not_matter(train: Train) -> None:
    one = train(replace(QUICK, train=("norm", "query")))
    other = train(replace(QUICK, train=("query", "norm")))
    assert overlay_digest(one.overlay) == overlay_digest(other.overlay)


def test_a_group_that_the_student_lacks_is_refused(
    teacher: LoadedModel,
    mirror: Device,
    few: list[Shard],
    tiny_pair: tuple[Path, Path],
    tmp_path: Path,
) -> None:
    from cdcca_cli.models.initial import create_device
    from cdcca_cli.models.settings import InitSettings

    norms = create_device(tmp_path / "norms", str(tiny_pair[1]), InitSettings(groups=("norm",)))
    with pytest.raises(UsageError, match="nothing of lora, bias: make it"):
        distill(few, teacher, norms, replace(QUICK, train=("lora", "bias")))
