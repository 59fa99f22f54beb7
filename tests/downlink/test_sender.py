from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdcca_cli.downlink import receiver, sender
from cdcca_cli.downlink.sender import CompressSettings
from cdcca_cli.errors import BadData, UsageError, WrongBase
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.update import read_update
from tests.downlink import slow_decoder, worlds


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Read only by these tests."""
    return worlds.device(tmp_path_factory.mktemp("mirror") / "mirror")


@pytest.mark.parametrize(
    "settings",
    [
        None,
        CompressSettings(budget_bytes=800),
        CompressSettings(max_error=0.01),
        CompressSettings(max_error=0.3),
        sender.PRESETS["paper"],
    ],
)
def test_the_decoder_written_from_the_docstring_agrees_bit_for_bit(
    mirror: Device, settings: CompressSettings | None
) -> None:
    update = worlds.next_update(mirror, settings=settings)
    before = mirror.read_overlay()
    slow = slow_decoder.decode(
        worlds.file_of(update), [before[name].reshape(-1).tolist() for name in sorted(before)]
    )
    decoded = {
        name: np.array(values, np.float32).reshape(before[name].shape)
        for name, values in zip(sorted(before), slow, strict=True)
    }
    assert overlay_digest(decoded) == update.target
    assert overlay_digest(receiver.decode(update, before)) == update.target
    assert any(update.bits)


def test_all_bits_occur_in_the_tests_of_the_decoder(mirror: Device) -> None:
    used = {
        bits
        for settings in (
            None,
            CompressSettings(budget_bytes=800),
            CompressSettings(max_error=0.01),
        )
        for bits in worlds.next_update(mirror, settings=settings).bits
    }
    assert used == {0, 2, 4, 8}


def test_the_same_input_gives_the_same_bytes(mirror: Device) -> None:
    files = {worlds.file_of(worlds.next_update(mirror)) for _ in range(3)}
    assert len(files) == 1


def test_the_report_is_what_the_file_is(mirror: Device) -> None:
    """Relative error by hand: ||after' - after|| / ||after - before||, of the float32 values."""
    before = mirror.read_overlay()
    after = worlds.learnt(before)
    made = sender.compress(worlds.adaptation(after, mirror), mirror)
    data = worlds.file_of(made.update)
    assert made.num_bytes == len(data)
    decoded = receiver.decode(read_update(BytesIO(data)), before)
    missed = sum(np.square(decoded[name] - after[name]).sum() for name in after) ** 0.5
    change = sum(np.square(after[name] - before[name]).sum() for name in after) ** 0.5
    assert made.relative_error == pytest.approx(missed / change, rel=1e-3)
    assert made.num_sent == sum(value.size for value in before.values())
    assert made.bits_per_parameter == pytest.approx(8 * len(data) / made.num_sent)
    assert f"update 1: {len(data):,} bytes for {made.num_sent}" in made.summary()


def test_no_change_gives_a_tiny_update_to_the_same_digest(mirror: Device) -> None:
    made = sender.compress(worlds.adaptation(mirror.read_overlay(), mirror), mirror)
    assert made.update.target == made.update.base == mirror.digest
    assert (made.num_sent, made.relative_error, made.bits_per_parameter) == (0, 0, 0)
    assert made.num_bytes < 700
    assert "none sent" in made.summary()


def test_unchanged_and_negligible_tensors_are_not_sent(mirror: Device) -> None:
    before = mirror.read_overlay()
    after = {name: value.copy() for name, value in before.items()}
    after["query_tokens"] += np.float32(0.5)
    after["lm.norm.weight"] += np.float32(1e-4)
    update = sender.compress(worlds.adaptation(after, mirror), mirror).update
    assert dict(zip(sorted(before), update.bits, strict=True)) == {
        name: 4 if name == "query_tokens" else 0 for name in before
    }


def test_the_paper_sends_everything_but_lora_in_nf4(mirror: Device) -> None:
    update = worlds.next_update(mirror, settings=sender.PRESETS["paper"])
    names = sorted(mirror.read_overlay())
    assert update.bits == [0 if "lora" in name else 4 for name in names]


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(600, 3000))
def test_a_budget_is_kept_or_its_cure_works(mirror: Device, budget: int) -> None:
    after = worlds.learnt(mirror.read_overlay())
    adaptation = worlds.adaptation(after, mirror)
    try:
        made = sender.compress(adaptation, mirror, CompressSettings(budget_bytes=budget))
    except UsageError as refusal:
        needed = int(str(refusal).split("give ")[1].split()[0].replace(",", ""))
        assert needed > budget
        made = sender.compress(adaptation, mirror, CompressSettings(budget_bytes=needed))
        budget = needed
    assert len(worlds.file_of(made.update)) == made.num_bytes <= budget
    assert any(made.update.bits)


def test_more_budget_means_less_error(mirror: Device) -> None:
    after = worlds.learnt(mirror.read_overlay())
    errors = [
        sender.compress(
            worlds.adaptation(after, mirror), mirror, CompressSettings(budget_bytes=budget)
        ).relative_error
        for budget in (900, 1200, 1600, 2400)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-1]


def test_bits_go_where_the_change_is(mirror: Device) -> None:
    """384 of 918 parameters change 100 times as much as the others: they hold 0.9998 of the squared
    change, so their step from 4 to 8 bits takes away more than all that the others have to lose.
    """
    before = mirror.read_overlay()
    after = worlds.learnt(before, size=1e-4)
    loud = "lm.layers.0.attn.q_proj.lora_B"
    after[loud] = worlds.learnt(before, size=1e-2)[loud]
    made = sender.compress(
        worlds.adaptation(after, mirror), mirror, CompressSettings(budget_bytes=980)
    )
    bits = dict(zip(sorted(before), made.update.bits, strict=True))
    assert bits.pop(loud) == 8
    assert max(bits.values()) <= 2


@pytest.mark.parametrize("most", [0.5, 0.1, 0.02])
def test_the_largest_error_is_kept(mirror: Device, most: float) -> None:
    after = worlds.learnt(mirror.read_overlay())
    made = sender.compress(
        worlds.adaptation(after, mirror), mirror, CompressSettings(max_error=most)
    )
    assert most / 10 < made.relative_error <= most


@pytest.mark.parametrize("most", [1e-9, 0.0, 1.0, -1.0, float("nan")])
def test_an_error_that_cannot_be_is_refused(mirror: Device, most: float) -> None:
    after = worlds.learnt(mirror.read_overlay())
    with pytest.raises(UsageError, match="--max-error"):
        sender.compress(worlds.adaptation(after, mirror), mirror, CompressSettings(max_error=most))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("paper", "norm", None, None), "leave out"),
        (("paper", None, 10_000, None), "leave out"),
        (("best", None, None, None), "expected paper"),
        ((None, None, 10_000, 0.1), "exclude each other"),
    ],
)
def test_options_that_contradict_each_other(
    arguments: tuple[str | None, str | None, int | None, float | None], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        sender.settings_of(*arguments)


def test_options_in_words() -> None:
    assert sender.settings_of("paper", None, None, None).select == ("norm", "bias", "query")
    assert sender.settings_of(None, "lora, query", 800, None) == CompressSettings(
        ("lora", "query"), budget_bytes=800
    )


def test_an_adaptation_from_another_base_is_refused(mirror: Device, tmp_path: Path) -> None:
    other = worlds.device(tmp_path / "other", seed=5)
    after = worlds.learnt(other.read_overlay())
    with pytest.raises(WrongBase, match="distil against this mirror"):
        sender.compress(worlds.adaptation(after, other), mirror)
    with pytest.raises(WrongBase, match="sequence 3"):
        sender.compress(Adaptation(after, mirror.digest, 3, "akd", 0), mirror)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (lambda after: after.pop("query_tokens"), "is in one only"),
        (lambda after: after.update(more=np.zeros(1, np.float32)), "is in one only"),
        (lambda after: after.update(query_tokens=np.zeros((5, 33), np.float32)), r"\(5, 33\)"),
        (lambda after: after.update(query_tokens=np.zeros((1, 5, 33), np.float16)), "float16"),
        (lambda after: after["query_tokens"].fill(np.nan), "not finite"),
        (lambda after: after["query_tokens"].fill(np.inf), "not finite"),
        (lambda after: after["query_tokens"].fill(-3.4e38), "not finite"),
    ],
)
def test_an_adaptation_that_does_not_fit_is_refused(
    mirror: Device, fault: object, reason: str
) -> None:
    """The last one is finite, but its largest scale rounds up beyond float32."""
    after = {name: value.copy() for name, value in mirror.read_overlay().items()}
    fault(after)  # type: ignore[operator]
    with pytest.raises(BadData, match=reason):
        sender.compress(worlds.adaptation(after, mirror), mirror)


def test_scalars_and_empty_tensors_go_through(tmp_path: Path) -> None:
    before = worlds.overlay(0, {"a.bias": (), "b.bias": (0, 4), "c.bias": (3,)})
    mirror = Device.create(tmp_path / "mirror", worlds.SETTINGS, before)
    update = worlds.next_update(mirror)
    assert update.bits == [4, 0, 4]
    receiver.apply(mirror, update)
    assert mirror.read_overlay()["a.bias"].shape == ()
