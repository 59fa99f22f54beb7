from collections.abc import Mapping
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cdcca_cli.downlink import codecs, receiver, sender
from cdcca_cli.downlink.change import Overlay, selected
from cdcca_cli.downlink.rate import SAFE_ERROR, Loss
from cdcca_cli.downlink.settings import CODECS, CompressSettings
from cdcca_cli.errors import BadData, MissingInput, UsageError, WrongBase
from cdcca_cli.formats.adaptation import Adaptation, HeldOut, RateAware
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.digest import overlay_digest
from cdcca_cli.formats.trust import Signature
from cdcca_cli.formats.update import read_update
from cdcca_cli.numerics.uniform import entropy_bits, quantize, restore
from tests.downlink import slow_decoder, worlds

NF4 = CompressSettings(codec="nf4")
PAPER = CompressSettings(codec="nf4", select=("norm", "bias", "query"))
ALL = [
    CompressSettings(),
    CompressSettings(budget_bytes=1300),
    CompressSettings(bits=14.0),
    CompressSettings(max_error=0.01),
    CompressSettings(max_error=0.3),
    NF4,
    PAPER,
    CompressSettings(codec="ternary"),
    CompressSettings(codec="ternary", budget_bytes=1100),
    CompressSettings(codec="sign"),
    CompressSettings(codec="exact"),
    CompressSettings(codec="exact", select=("lora",)),
]


@pytest.fixture(scope="module")
def mirror(tmp_path_factory: pytest.TempPathFactory) -> Device:
    """Read only by these tests."""
    return worlds.device(tmp_path_factory.mktemp("mirror") / "mirror")


def made(mirror: Device, how: CompressSettings | None = None, **more: Any) -> sender.Compressed:
    """One round's update."""
    after = worlds.learnt(mirror.read_overlay())
    return sender.compress(worlds.adaptation(after, mirror), mirror, how, **more)


def loss_towards(wanted: Mapping[str, np.ndarray]) -> Loss:
    """0.1, and 100 times the mean squared distance from there."""

    def loss(overlay: Overlay) -> float:
        missed = sum(float(np.square(overlay[n] - wanted[n]).sum()) for n in wanted)
        return 0.1 + 100 * missed / sum(value.size for value in wanted.values())

    return loss


# ---------------------------------------------------------------- what every way has to keep


@pytest.mark.parametrize("how", ALL)
def test_the_decoder_written_from_the_docstrings_agrees_bit_for_bit(
    mirror: Device, how: CompressSettings
) -> None:
    found = made(mirror, how)
    before = mirror.read_overlay()
    data = worlds.file_of(found.update)
    slow = slow_decoder.decode(data, [before[name].reshape(-1).tolist() for name in sorted(before)])
    decoded = {
        name: np.array(values, np.float32).reshape(before[name].shape)
        for name, values in zip(sorted(before), slow, strict=True)
    }
    assert overlay_digest(decoded) == found.update.target != found.update.base
    assert overlay_digest(codecs.decode(read_update(BytesIO(data)), before)) == found.update.target
    assert found.num_bytes == len(data)
    assert worlds.file_of(made(mirror, how).update) == data


@pytest.mark.parametrize("how", ALL)
def test_the_report_is_what_the_file_is(mirror: Device, how: CompressSettings) -> None:
    """Relative error by hand: ||after' - after|| / ||after - before|| over what is selected."""
    found = made(mirror, how)
    before = mirror.read_overlay()
    after = worlds.learnt(before)
    decoded = codecs.decode(found.update, before)
    chosen = selected(before, how.select)
    missed = sum(np.square(decoded[name] - after[name]).sum() for name in chosen) ** 0.5
    change = sum(np.square(after[name] - before[name]).sum() for name in chosen) ** 0.5
    assert found.relative_error == pytest.approx(missed / change, rel=1e-3, abs=1e-6)
    assert all((decoded[name] == before[name]).all() for name in before.keys() - chosen)
    changed = [name for name in before if (decoded[name] != before[name]).any()]
    assert found.num_sent >= sum(before[name].size for name in changed)
    num_changed = sum(before[name].size for name in chosen)
    assert found.bits_per_parameter == pytest.approx(8 * found.num_bytes / num_changed)
    assert f"update 1: {found.num_bytes:,} bytes for {num_changed} of 918" in found.summary()


@pytest.mark.parametrize("codec", CODECS)
def test_no_change_gives_a_tiny_update_to_the_same_digest(mirror: Device, codec: str) -> None:
    found = sender.compress(
        worlds.adaptation(mirror.read_overlay(), mirror), mirror, CompressSettings(codec=codec)
    )
    assert found.update.target == found.update.base == mirror.digest
    if codec != "exact":
        assert (found.num_sent, found.relative_error, found.bits_per_parameter) == (0, 0, 0)
        assert "none sent" in found.summary()
    assert found.num_bytes < 1100


@pytest.mark.parametrize("codec", ["usq", "nf4"])
def test_what_did_not_change_is_not_sent(mirror: Device, codec: str) -> None:
    before = mirror.read_overlay()
    after = {name: value.copy() for name, value in before.items()}
    after["query_tokens"] += np.float32(0.5)
    after["lm.norm.weight"] += np.float32(1e-4)  # a thousandth of what NF4 rounds off
    adaptation = worlds.adaptation(after, mirror)
    found = sender.compress(adaptation, mirror, CompressSettings(codec=codec))
    assert found.num_sent == before["query_tokens"].size


@pytest.mark.parametrize("codec", ["usq", "nf4", "ternary", "sign"])
def test_scalars_and_empty_tensors_go_through(tmp_path: Path, codec: str) -> None:
    before = worlds.overlay(0, {"a.bias": (), "b.bias": (0, 4), "c.bias": (3,)})
    mirror = Device.create(tmp_path / "mirror", worlds.SETTINGS, before)
    update = worlds.next_update(mirror, settings=CompressSettings(codec=codec))
    decoded = codecs.decode(update, before)
    assert overlay_digest(decoded) == update.target != update.base
    assert decoded["a.bias"].shape == () and decoded["b.bias"].shape == (0, 4)


# ---------------------------------------------------------------- how exactly


@settings(max_examples=25, suppress_health_check=list(HealthCheck), deadline=None)
@given(st.integers(800, 3000), st.sampled_from(["usq", "ternary"]), st.integers(0, 2))
def test_a_budget_is_kept_or_its_cure_works(
    mirror: Device, budget: int, codec: str, num_signatures: int
) -> None:
    how = CompressSettings(budget_bytes=budget, codec=codec, num_signatures=num_signatures)
    try:
        found = made(mirror, how)
    except UsageError as refusal:
        needed = int(str(refusal).split("give ")[1].split()[0].replace(",", ""))
        assert needed > budget
        found = made(mirror, replace(how, budget_bytes=needed))
        budget = needed
    signed = replace(
        found.update,
        signatures=tuple(Signature(f"{one:064x}", 128 * "f") for one in range(num_signatures)),
    )
    assert len(worlds.file_of(signed)) == found.num_bytes <= budget
    assert found.num_sent


@pytest.mark.parametrize("codec", ["usq"])
def test_more_budget_means_less_error(mirror: Device, codec: str) -> None:
    errors = [
        made(mirror, CompressSettings(budget_bytes=budget, codec=codec)).relative_error
        for budget in (1200, 1400, 1800, 2400)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 3 * errors[-1]


def test_bits_are_a_budget(mirror: Device) -> None:
    """918 parameters at 14 bits, whole file: 1606 bytes."""
    assert worlds.file_of(made(mirror, CompressSettings(bits=14.0)).update) == worlds.file_of(
        made(mirror, CompressSettings(budget_bytes=918 * 14 // 8)).update
    )


def test_the_paper_sends_everything_but_lora_in_nf4(mirror: Device) -> None:
    update = made(mirror, PAPER).update
    names = sorted(mirror.read_overlay())
    assert update.codec == "nf4-mixed"
    assert update.coding == {"bits": [0 if "lora" in name else 4 for name in names]}


@pytest.mark.parametrize("most", [0.5, 0.1, 0.02])
def test_the_largest_error_is_kept(mirror: Device, most: float) -> None:
    found = made(mirror, CompressSettings(max_error=most))
    assert most / 10 < found.relative_error <= most


def test_without_a_loss_the_error_is_a_safe_one_and_a_note_says_so(mirror: Device) -> None:
    found = made(mirror)
    assert 0.98 * SAFE_ERROR < found.relative_error <= SAFE_ERROR
    (note,) = found.notes
    assert "was not measured (no held-out frames" in note and "a relative error of 25%" in note
    assert found.measured is None


def with_questions(mirror: Device, count: int, **more: Any) -> Adaptation:
    """One round's adaptation, with so many held-out questions."""
    after = worlds.learnt(mirror.read_overlay())
    adaptation = worlds.adaptation(after, mirror)
    return replace_in(adaptation, held_out=HeldOut([], [["yes"]] * count), **more)


@pytest.mark.parametrize(("count", "is_measured"), [(1, False), (24, False), (25, True)])
def test_too_few_questions_do_not_choose_the_step(
    mirror: Device, count: int, is_measured: bool
) -> None:
    """A loss that any step keeps would choose the coarsest: 25 questions are believed, 24 are not,
    nor is the loss measured then. One line says so, and it is no warning."""
    num_measured = 0

    def loss(_: Overlay) -> float:
        nonlocal num_measured
        num_measured += 1
        return 1.0

    found = sender.compress(with_questions(mirror, count), mirror, loss=loss)
    assert (num_measured > 0) == (found.measured is not None) == is_measured
    assert (found.relative_error > 0.9) == is_measured
    if not is_measured:
        assert 0.98 * SAFE_ERROR < found.relative_error <= SAFE_ERROR
        (note,) = found.notes
        assert note == (
            f"{count} held-out questions are too few to detect a change of the loss by 1%, "
            "which takes 25: the step is chosen for a relative error of 25%"
        )


def test_a_largest_loss_that_was_asked_for_is_measured_on_few_questions_too(
    mirror: Device,
) -> None:
    """(0.05 / 0.02)^2 = 6.25: 7 questions tell 2 %."""
    loss = loss_towards(worlds.learnt(mirror.read_overlay()))
    how = CompressSettings(max_loss=0.02)
    for count, words in (
        (6, ("6 held-out questions are too few to detect a change of the loss by 2.00%",)),
        (7, ()),
    ):
        found = sender.compress(with_questions(mirror, count), mirror, how, loss=loss)
        assert found.measured is not None and found.measured.change <= 0.02
        assert len(found.notes) == len(words)
        assert all(word in note for word, note in zip(words, found.notes, strict=True))


def test_few_questions_choose_no_alpha_either(mirror: Device) -> None:
    def refused(_: Overlay) -> float:
        raise AssertionError("measured")

    for how in (CompressSettings(codec="ternary"), CompressSettings(bits=14.0)):
        sender.compress(with_questions(mirror, 8), mirror, how, loss=refused)


def test_with_a_loss_it_is_kept_to_one_percent_more(mirror: Device) -> None:
    """A step s leaves s^2 / 12 a parameter, so 100 s^2 / 12 = 0.001 at s = 0.011, 1.1 of the root
    mean square: on the grid of quarter octaves 1 is the last that passes."""
    after = worlds.learnt(mirror.read_overlay())
    loss = loss_towards(after)
    found = made(mirror, loss=loss)
    assert found.measured is not None and found.notes == ()
    assert found.measured.adaptation == pytest.approx(0.1)
    assert found.measured.base == loss(mirror.read_overlay()) == pytest.approx(0.11, rel=0.01)
    assert found.measured.coded == loss(codecs.decode(found.update, mirror.read_overlay()))
    assert found.measured.change <= 0.01
    assert found.measured.gain_kept == pytest.approx(1 - found.relative_error**2, rel=1e-3)
    assert codecs.facts(found.update)["steps"][0] == pytest.approx(0.01, rel=0.05)
    assert f"{found.measured.change:+.2%}" in found.summary()
    coarser = made(mirror, CompressSettings(max_loss=0.05), loss=loss)
    assert coarser.num_bytes < found.num_bytes


def test_a_loss_is_asked_for_only_where_it_is_needed(mirror: Device) -> None:
    def refused(_: Overlay) -> float:
        raise AssertionError("measured")

    for how in [*ALL[3:7], *ALL[9:], CompressSettings(max_error=0.1)]:
        made(mirror, how, loss=refused)


def test_a_largest_loss_without_a_loss_to_measure(mirror: Device) -> None:
    with pytest.raises(UsageError, match="no held-out frames"):
        made(mirror, CompressSettings(max_loss=0.02))


def test_a_loss_that_cannot_be_kept(mirror: Device) -> None:
    """Asked for, it is an error; by default the finest step tried and a note."""
    after = worlds.learnt(mirror.read_overlay())

    def broken(overlay: Overlay) -> float:
        return 1.0 if all((overlay[n] == after[n]).all() for n in after) else 2.0

    with pytest.raises(UsageError, match=r"`max_loss` 2.00%: cannot be reached: .*\+100.00%"):
        made(mirror, CompressSettings(max_loss=0.02), loss=broken)
    found = made(mirror, loss=broken)
    assert "+100.00%, more than 1%" in found.notes[0]
    assert found.relative_error < 0.05


def test_the_step_that_was_trained_through_is_used(mirror: Device) -> None:
    """By default, and where it fits what is asked for; then the device gets what was judged."""
    before = mirror.read_overlay()
    after = worlds.learnt(before)
    step = float(np.float32(0.02))
    adaptation = replace_in(worlds.adaptation(after, mirror), rate_aware=RateAware(step, 1.2, 50))
    judged = {n: before[n] + restore(quantize(after[n] - before[n], step), step) for n in before}
    for how in (None, CompressSettings(budget_bytes=5000), CompressSettings(bits=30.0)):
        found = sender.compress(adaptation, mirror, how)
        assert found.update.target == overlay_digest(judged)
        assert any("rate-aware" in note for note in found.notes) == (how is None)
    most = sender.compress(adaptation, mirror).num_bytes - 20
    for how in (CompressSettings(budget_bytes=most), CompressSettings(max_error=0.01)):
        assert sender.compress(adaptation, mirror, how).update.target != overlay_digest(judged)
    loss = loss_towards(after)
    found = sender.compress(adaptation, mirror, CompressSettings(max_loss=0.001), loss=loss)
    assert found.measured is not None and found.measured.change <= 0.001


def replace_in(adaptation: Adaptation, **values: Any) -> Adaptation:
    for name, value in values.items():
        setattr(adaptation, name, value)
    return adaptation


def test_ternary_takes_the_alpha_of_least_loss(mirror: Device) -> None:
    """In squares, the alpha nearest to the mean of the magnitudes that are kept: all of a Gaussian
    0.80 of its deviation, the largest fifth 1.75, the largest half 1.27."""
    before = mirror.read_overlay()
    after = worlds.learnt(before)
    every = np.sort(np.abs(np.concatenate([(after[n] - before[n]).reshape(-1) for n in after])))
    rms = float(np.sqrt(np.square(every, dtype=np.float64).mean()))
    for budget, kept in ((None, len(every) // 5), (1400, len(every))):
        how = CompressSettings(codec="ternary", budget_bytes=budget)
        found = made(mirror, how, loss=loss_towards(after))
        assert found.measured is not None
        mean = float(every[-kept:].mean())
        best = min((1.0, 1.5, 2.0, 3.0), key=lambda alpha: abs(alpha * rms - mean))
        assert codecs.facts(found.update)["steps"] == pytest.approx([best * rms], rel=1e-5)


# ---------------------------------------------------------------- what is dubious is said


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("better", None),
        ("equal", "the held-out frames show no measurable gain"),
        ("not measurable", "the held-out frames show no measurable gain"),
        ("worse", "warning: the adaptation makes the student worse"),
    ],
)
def test_an_adaptation_that_was_not_shown_to_be_better(
    mirror: Device, verdict: str, words: str | None
) -> None:
    after = worlds.learnt(mirror.read_overlay())
    report = {"held_out": {"verdict": verdict}}
    adaptation = replace_in(worlds.adaptation(after, mirror), report=report)
    notes = sender.compress(adaptation, mirror, NF4).notes
    assert len(notes) == (words is not None)
    assert words is None or notes[0].startswith(words)


def test_an_adaptation_that_is_worse_says_by_how_much_and_is_compressed(mirror: Device) -> None:
    gain = {"mean": -0.21, "low": -0.305, "high": -0.1249, "level": 0.95}
    bare = worlds.adaptation(worlds.learnt(mirror.read_overlay()), mirror)
    worse = replace_in(bare, report={"held_out": {"verdict": "worse", "gain": gain}})
    found = sender.compress(worse, mirror, NF4)
    (note,) = found.notes
    assert "(gain -0.21 nats per token, 95 % interval -0.305 to -0.125): distil again" in note
    bare = worlds.adaptation(worlds.learnt(mirror.read_overlay()), mirror)
    assert found.update == sender.compress(bare, mirror, NF4).update


@pytest.mark.parametrize(
    "held_out",
    [
        None,
        "worse",
        ["worse"],
        {"verdict": None},
        {"verdict": ["worse"]},
        {"verdict": "worse"},
        {"verdict": "worse", "gain": None},
        {"verdict": "worse", "gain": [-1, -2, -3]},
        {"verdict": "worse", "gain": {"mean": -1.0, "low": -2.0}},
        {"verdict": "worse", "gain": {"mean": "-1", "low": -2.0, "high": -0.5}},
        {"verdict": "worse", "gain": {"mean": True, "low": -2.0, "high": -0.5}},
        {"verdict": "worse", "gain": {"mean": {}, "low": [], "high": None}},
        {"verdict": "worse", "gain": {"mean": -(10**400), "low": -2.0, "high": -0.5}},
        {"verdict": "worse", "gain": {"mean": float("nan"), "low": -2.0, "high": -0.5}},
        {"verdict": "wor\nse" + 10_000 * "e", "gain": {}},
    ],
)
def test_a_report_may_hold_anything(mirror: Device, held_out: object) -> None:
    """No more than a line, and no figure that is none."""
    after = worlds.learnt(mirror.read_overlay())
    adaptation = replace_in(worlds.adaptation(after, mirror), report={"held_out": held_out})
    notes = sender.compress(adaptation, mirror, NF4).notes
    is_verdict = isinstance(held_out, dict) and isinstance(held_out["verdict"], str)
    assert len(notes) == is_verdict
    assert all("\n" not in note and len(note) < 200 and "nats" not in note for note in notes)


def test_a_budget_that_leaves_most_unsent(mirror: Device) -> None:
    bare = made(mirror, CompressSettings(budget_bytes=1200))
    assert bare.notes == ()
    least = sender.compress(
        worlds.adaptation(mirror.read_overlay(), mirror), mirror, CompressSettings()
    ).num_bytes
    small = made(mirror, CompressSettings(budget_bytes=least + 120))
    assert "of the squared change is left for later rounds" in small.notes[0]


# ---------------------------------------------------------------- for devices that missed some


@pytest.fixture
def travelled(tmp_path: Path) -> tuple[Device, list[worlds.Overlay], list[str]]:
    """A mirror that keeps four overlays after three rounds, and what it has been."""
    mirror = Device.create(tmp_path / "travelled", worlds.SETTINGS, worlds.overlay(), keep=4)
    overlays, digests = [mirror.read_overlay()], [mirror.digest]
    for seed in range(3):
        receiver.apply(mirror, worlds.next_update(mirror, seed))
        overlays.append(mirror.read_overlay())
        digests.append(mirror.digest)
    return mirror, overlays, digests


@pytest.mark.parametrize("since", [0, 1, 2])
def test_what_was_missed_comes_in_one_exact_update(
    travelled: tuple[Device, list[worlds.Overlay], list[str]], since: int
) -> None:
    mirror, overlays, digests = travelled
    how = CompressSettings(codec="exact", since=since)
    found = sender.catch_up(mirror, how, start=lambda: overlays[0])
    update = found.update
    assert (update.base, update.target) == (digests[since], digests[3])
    assert update.sequence == 3
    assert overlay_digest(codecs.decode(update, overlays[since])) == digests[3]
    assert found.num_bytes == len(worlds.file_of(update))


def test_new_learning_past_what_was_missed(
    travelled: tuple[Device, list[worlds.Overlay], list[str]],
) -> None:
    mirror, overlays, digests = travelled
    after = worlds.learnt(overlays[3], 9)
    found = sender.compress(
        worlds.adaptation(after, mirror), mirror, CompressSettings(since=2, max_error=0.01)
    )
    assert (found.update.base, found.update.sequence) == (digests[2], 4)
    decoded = codecs.decode(found.update, overlays[2])
    assert overlay_digest(decoded) == found.update.target
    whole = sum(np.square(after[n] - overlays[2][n]).sum() for n in after) ** 0.5
    missed = sum(np.square(after[n] - decoded[n]).sum() for n in after) ** 0.5
    assert missed <= 0.0101 * whole


def test_catching_up_where_that_cannot_be(
    travelled: tuple[Device, list[worlds.Overlay], list[str]],
) -> None:
    mirror, *_ = travelled
    for how, reason in (
        (CompressSettings(codec="exact"), "`since` must name"),
        (CompressSettings(since=1), "give `codec` exact"),
        (CompressSettings(codec="exact", since=1, select=("lora",)), "no `select`"),
        (CompressSettings(codec="exact", since=3), "nothing to catch up with"),
    ):
        with pytest.raises(UsageError, match=reason):
            sender.catch_up(mirror, how)
    with pytest.raises(MissingInput):
        sender.catch_up(mirror, CompressSettings(codec="exact", since=7))


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize("most", [1e-9, 0.0, 1.0, -1.0, float("nan")])
def test_an_error_that_cannot_be_is_refused(mirror: Device, most: float) -> None:
    with pytest.raises(UsageError, match="`max_error`"):
        made(mirror, CompressSettings(max_error=most))


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
        (lambda after: after.pop("query_tokens"), "only one of them has"),
        (lambda after: after.update(more=np.zeros(1, np.float32)), "only one of them has"),
        (lambda after: after.update(query_tokens=np.zeros((5, 33), np.float32)), r"\(5, 33\)"),
        (lambda after: after.update(query_tokens=np.zeros((1, 5, 33), np.float16)), "float16"),
        (lambda after: after["query_tokens"].fill(np.nan), "not finite"),
        (lambda after: after["query_tokens"].fill(np.inf), "not finite"),
    ],
)
def test_an_adaptation_that_does_not_fit_is_refused(
    mirror: Device, fault: object, reason: str
) -> None:
    after = {name: value.copy() for name, value in mirror.read_overlay().items()}
    fault(after)  # type: ignore[operator]
    with pytest.raises(BadData, match=reason):
        sender.compress(worlds.adaptation(after, mirror), mirror)


@pytest.mark.parametrize("codec", ["usq", "nf4", "ternary", "sign"])
def test_what_would_be_rounded_beyond_float32_is_refused(mirror: Device, codec: str) -> None:
    """The change is finite; the nearest code, or the block's scale, is beyond."""
    after = {name: value.copy() for name, value in mirror.read_overlay().items()}
    after["query_tokens"].reshape(-1)[0] = -3.4e38
    try:
        found = sender.compress(
            worlds.adaptation(after, mirror), mirror, CompressSettings(codec=codec)
        )
    except BadData as refusal:
        assert "finite" in str(refusal)
    else:
        decoded = codecs.decode(found.update, mirror.read_overlay())
        assert all(np.isfinite(value).all() for value in decoded.values())


def test_the_entropy_is_what_formats_uniform_says(mirror: Device) -> None:
    """The codes of `usq` are those that training through the quantiser sees."""
    before = mirror.read_overlay()
    after = worlds.learnt(before)
    found = made(mirror)
    (step,) = codecs.facts(found.update)["steps"]
    decoded = codecs.decode(found.update, before)
    codes = [quantize(after[n] - before[n], step) for n in sorted(before)]
    for name, code in zip(sorted(before), codes, strict=True):
        assert (decoded[name] == before[name] + restore(code, step)).all()
    assert 2.1 < entropy_bits(np.concatenate([one.reshape(-1) for one in codes])) < 2.4
