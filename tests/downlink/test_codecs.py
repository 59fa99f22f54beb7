"""Every codec through its door: bit for bit as the slow reader, and nothing else than BadData."""

import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from cdcca_cli.downlink import codecs
from cdcca_cli.downlink.codecs import bitdelta, exact, nf4, ternary, usq
from cdcca_cli.downlink.codecs.payload import with_sequence
from cdcca_cli.errors import BadData, NewerFormat
from cdcca_cli.formats.update import Update
from tests.downlink import earlier, slow_decoder, worlds

DIGEST = "sha256:" + 64 * "0"
SHAPES = arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9)
DELTAS = st.lists(
    arrays.arrays(np.float32, SHAPES, elements=st.floats(-1e3, 1e3, width=32)), max_size=4
)
STEPS = st.floats(0.25, 400.0, width=32)
Deltas = Sequence[np.ndarray]


def overlay(deltas: Deltas, seed: int = 0) -> worlds.Overlay:
    """A base of these shapes, in name order."""
    source = np.random.default_rng(seed)
    return {
        f"t{place:02d}": source.standard_normal(delta.shape).astype(np.float32)
        for place, delta in enumerate(deltas)
    }


def update(codec: str, payload: bytes, base: worlds.Overlay, **coding: Any) -> Update:
    return Update(
        base=DIGEST,
        target=DIGEST,
        sequence=5,
        codec=codec,
        coding=coding,
        num_parameters=sum(value.size for value in base.values()),
        payload=payload,
    )


def values(tensors: worlds.Overlay) -> list[list[float]]:
    return [tensors[name].reshape(-1).tolist() for name in sorted(tensors)]


def assert_both_agree(made: Update, base: worlds.Overlay) -> worlds.Overlay:
    decoded = codecs.decode(made, base)
    assert slow_decoder.decode(worlds.file_of(made), values(base)) == values(decoded)
    assert {name: value.shape for name, value in decoded.items()} == {
        name: value.shape for name, value in base.items()
    }
    assert all(value.dtype == np.float32 for value in decoded.values())
    kinds = codecs.byte_kinds(made)
    assert sum(kinds.values()) == len(made.payload)
    return decoded


@settings(max_examples=200, deadline=None)
@given(DELTAS, st.data())
def test_usq(deltas: Deltas, data: st.DataObject) -> None:
    """What is restored is round(delta / step) * step; also where each tensor has its own step, as
    in updates of cdcca 0.3."""
    one = data.draw(STEPS)
    is_one = data.draw(st.booleans())
    steps = [one if is_one else data.draw(STEPS) for _ in deltas]
    base = overlay(deltas)
    payload = usq.encode(deltas, 5, one) if is_one else earlier.usq_payload(deltas, 5, steps)
    assert not is_one or usq.encode(deltas, 5, one) == payload
    made = update("usq", payload, base)
    decoded = assert_both_agree(made, base)
    for name, delta, step in zip(sorted(base), deltas, steps, strict=True):
        unit = np.float32(step)
        assert (decoded[name] == base[name] + np.rint(delta / unit) * unit).all()
    assert set(codecs.facts(made)["steps"]) <= {float(np.float32(s)) for s in steps}


@settings(max_examples=100, deadline=None)
@given(DELTAS, st.floats(0.01, 1.0))
@example([np.float32([0, 0, 2**-126])], 1.0)  # its size would be below the smallest step
def test_ternary(deltas: Deltas, density: float) -> None:
    base = overlay(deltas)
    made = update("ternary", ternary.encode(deltas, 5, density, 1.5), base)
    decoded = assert_both_agree(made, base)
    if steps := codecs.facts(made)["steps"]:
        changed = {float(v) for name in base for v in (decoded[name] - base[name]).reshape(-1)}
        assert len({abs(value) > 0.5 * steps[0] for value in changed}) <= 2


@settings(max_examples=100, deadline=None)
@given(DELTAS)
def test_sign(deltas: Deltas) -> None:
    base = overlay(deltas)
    assert_both_agree(update("sign", bitdelta.encode(deltas, 5), base), base)


@settings(max_examples=100, deadline=None)
@given(DELTAS)
def test_exact_is_exact(deltas: Deltas) -> None:
    base = overlay(deltas)
    target = dict(zip(sorted(base), deltas, strict=True))
    made = update("exact", exact.encode(target, base, 5), base)
    decoded = assert_both_agree(made, base)
    assert all(decoded[name].tobytes() == target[name].tobytes() for name in base)


@settings(max_examples=100, deadline=None)
@given(DELTAS, st.data())
def test_nf4_mixed(deltas: Deltas, data: st.DataObject) -> None:
    base = overlay(deltas)
    bits = [data.draw(st.sampled_from([0, 2, 4, 8])) if delta.size else 0 for delta in deltas]
    coded = [earlier.quantize(d, b) for d, b in zip(deltas, bits, strict=True) if b]
    assert_both_agree(update("nf4-mixed", nf4.write_payload(5, coded), base, bits=bits), base)


def test_a_large_tensor_of_each_codec() -> None:
    """More than one class, more than one block of zstd's."""
    source = np.random.default_rng(1)
    deltas = [scale * source.standard_normal(60_000, np.float32) for scale in (0.3, 1.0, 2.0)]
    base = overlay(deltas)
    for codec, payload in (
        ("usq", usq.encode(deltas, 5, 0.5)),
        ("ternary", ternary.encode(deltas, 5, 0.2, 1.5)),
        ("sign", bitdelta.encode(deltas, 5)),
        ("exact", exact.encode(overlay(deltas, 1), base, 5)),
    ):
        assert_both_agree(update(codec, payload, base), base)


def test_what_ternary_keeps() -> None:
    """Of ten values the three largest (density 0.3); sigma by hand, about zero:
    sqrt((16 + 9 + 9 + 7 * 0.01) / 10), alpha 2."""
    delta = np.array([4, -3, 3, 0.1, -0.1, 0.1, -0.1, 0.1, -0.1, 0.1], np.float32)
    base = {"t": np.zeros(10, np.float32)}
    decoded = codecs.decode(update("ternary", ternary.encode([delta], 5, 0.3, 2.0), base), base)
    unit = 2 * (34.07 / 10) ** 0.5
    assert decoded["t"] == pytest.approx([unit, -unit, unit] + 7 * [0], rel=1e-6)


def test_what_sign_restores() -> None:
    """The mean magnitude of each tensor: (1 + 2 + 6) / 3 = 3; zeros only are not sent."""
    deltas = [np.array([1, -2, 6], np.float32), np.zeros(2, np.float32)]
    base = {"a": np.zeros(3, np.float32), "b": np.ones(2, np.float32)}
    decoded = codecs.decode(update("sign", bitdelta.encode(deltas, 5), base), base)
    assert decoded["a"].tolist() == [3, -3, 3]
    assert decoded["b"] is base["b"]


BASE = {"a": np.zeros(8, np.float32), "b": np.ones((), np.float32), "c": np.ones(0, np.float32)}
CHANGE = [np.arange(8, dtype=np.float32), np.float32(2) * np.ones(()), np.ones(0)]
CHANGE = [np.asarray(one, np.float32) for one in CHANGE]
USQ = usq.encode(CHANGE, 5, 1.0)
SIGN = bitdelta.encode(CHANGE, 5)
EXACT = exact.encode(dict(zip("abc", CHANGE, strict=True)), BASE, 5)


def with_step(value: float) -> bytes:
    """The step of class 1 stands after the sequence and the number of steps."""
    return USQ[:9] + struct.pack("<f", value) + USQ[13:]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (update("usq", USQ, {"a": BASE["a"]}), "for 8 parameters; its base has 9"),
        (update("usq", USQ, BASE, step=1), "takes no 'coding'"),
        (update("sign", SIGN, BASE, step=1), "takes no 'coding'"),
        (update("exact", EXACT, BASE, step=1), "takes no 'coding'"),
        (update("nf4-mixed", b"", BASE), "list of whole numbers"),
        (update("nf4-mixed", b"", BASE, bits=[4, "4", 0]), "list of whole numbers"),
        (update("nf4-mixed", b"", BASE, bits=[4, 4]), "for 2 tensors; its base has 3"),
        (update("nf4-mixed", b"", BASE, bits=[4, 4, 4]), "4 bits for c, of 0 values"),
        (update("nf4-mixed", b"", BASE, bits=[4, 3, 0]), "3 bits for b"),
        (update("usq", usq.encode(CHANGE, 6, 1.0), BASE), "its payload 6"),
        (update("sign", bitdelta.encode(CHANGE, 6), BASE), "its payload 6"),
        (update("exact", with_sequence(6, EXACT[8:]), BASE), "its payload 6"),
        (update("usq", b"", BASE), "cut short"),
        (update("usq", USQ[:8], BASE), "cut short"),
        (update("usq", USQ[:11], BASE), "cut short"),
        (update("usq", USQ[:-1], BASE), "the parts of its payload have"),
        (update("usq", USQ + b"\0", BASE), "the parts of its payload have"),
        (update("usq", with_step(0.0), BASE), "a step of 0"),
        (update("usq", with_step(-1.0), BASE), "a step of -1"),
        (update("usq", with_step(1e-39), BASE), "a step of"),
        (update("usq", with_step(float("nan")), BASE), "a step of nan"),
        (update("usq", with_step(float("inf")), BASE), "a step of inf"),
        (update("usq", with_step(3e38), BASE), "a would not be finite"),
        (update("usq", USQ[:8] + b"\2" + 2 * USQ[9:13] + USQ[13:], BASE), "2 steps for 1 classes"),
        (update("sign", SIGN[:-1], BASE), "bytes, expected"),
        (update("sign", SIGN + b"\0", BASE), "bytes, expected"),
        (update("sign", SIGN[:12], BASE), "cut short"),
        (update("sign", SIGN[:8] + struct.pack("<f", -1) + SIGN[12:], BASE), "neither 0 nor"),
        (update("sign", SIGN[:8] + struct.pack("<f", 1e-40) + SIGN[12:], BASE), "neither 0 nor"),
        (update("exact", EXACT[:-1], BASE), "damaged planes"),
        (update("exact", EXACT[:8], BASE), "damaged planes"),
        (update("exact", EXACT[:4], BASE), "cut short"),
    ],
)
def test_an_update_that_is_not_exactly_right_is_refused(made: Update, reason: str) -> None:
    with pytest.raises(BadData, match=reason):
        codecs.decode(made, BASE)


def test_the_same_ones_untouched_are_read() -> None:
    for codec, payload in (("usq", USQ), ("sign", SIGN), ("exact", EXACT)):
        codecs.decode(update(codec, payload, BASE), BASE)


def test_a_target_that_is_not_finite_is_refused() -> None:
    target = {**BASE, "a": np.full(8, np.nan, np.float32)}
    with pytest.raises(BadData, match="a would not be finite"):
        codecs.decode(update("exact", exact.encode(target, BASE, 5), BASE), BASE)


def test_a_codec_of_the_future() -> None:
    made = replace(update("usq", USQ, BASE), codec="trellis")
    for door in (lambda: codecs.decode(made, BASE), lambda: codecs.byte_kinds(made)):
        with pytest.raises(NewerFormat, match="'trellis'; this cdcca reads usq, nf4-mixed"):
            door()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_damage_gives_bad_data_or_an_overlay(data: st.DataObject) -> None:
    """Behind hash and signature: nothing but BadData comes out, whatever the payload is."""
    source: tuple[str, bytes] = data.draw(
        st.sampled_from([("usq", USQ), ("sign", SIGN), ("exact", EXACT)])
    )
    codec, payload = source[0], bytearray(source[1])
    for _ in range(data.draw(st.integers(1, 3))):
        payload[data.draw(st.integers(8, len(payload) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 3))
    made = update(codec, bytes(payload[: len(payload) - cut]), BASE)
    checked: Callable[[], worlds.Overlay] = lambda: codecs.decode(made, BASE)  # noqa: E731
    try:
        decoded = checked()
    except BadData:
        return
    assert all(np.isfinite(value).all() for value in decoded.values())


@pytest.mark.parametrize("bits", [0.5, 1.25, 2.2])
@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.0, 2.0)])
def test_usq_is_within_two_percent_of_the_entropy(bits: float, scales: tuple[float, ...]) -> None:
    """Order 0, over all codes; below it where tensors differ, for classes have tables of their
    own. 300 bytes are for what does not grow."""
    from cdcca_cli.numerics.uniform import entropy_bits, quantize, step_for_bits

    source = np.random.default_rng(3)
    deltas = [s * source.standard_normal((50, 1000), np.float32) for s in scales for _ in range(4)]
    every = np.concatenate([delta.reshape(-1) for delta in deltas])
    step = float(step_for_bits(every, bits))
    entropy = entropy_bits(quantize(every, step))
    num_bits = 8 * len(usq.encode(deltas, 5, step))
    assert num_bits <= 1.02 * entropy * every.size + 8 * 300
    if len(scales) > 1:
        assert num_bits < entropy * every.size
