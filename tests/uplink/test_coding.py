"""What a picked frame is sent as: the point of each form, and that `auto` sends the smaller."""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, features

from cdcca_cli import streams
from cdcca_cli.datasets import Frame, LabelledQuestion, load_image
from cdcca_cli.errors import BadData, MissingInput, SettingError, Unavailable
from cdcca_cli.formats import records, shard_stream
from cdcca_cli.formats.codebook import Codebook, Curve
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.payloads import klt, pictures
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.coding import Coded, Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings

pytestmark = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def coder_of(model: LoadedModel, codebook: Codebook | None, **options: Any) -> Coder:
    return Coder(model, PayloadSettings(**options), codebook)


def sampled(frames: list[Frame], coder: Coder, **options: Any) -> list[Coded]:
    """Every question of the frames."""
    settings = SampleSettings(threshold=0.0, max_new_tokens=1, **options)
    return list(sample_frames(coder._model, frames, settings, None, None, coder))


def stream_of(sent: list[Coded]) -> bytes:
    out = io.BytesIO()
    with shard_stream.writer(out) as write:
        for coded in sent:
            write(coded.shard, coded.picture)
    return out.getvalue()


def read(stream: bytes) -> list[Shard]:
    return list(shard_stream.read_shards(io.BytesIO(stream)))


def own_tokens(model: LoadedModel, image: Image.Image) -> np.ndarray:
    with torch.no_grad():
        return model.see(model.prepare([image]))[0].tokens.numpy()


class TestPoint:
    """The codebook's curve, by hand: of tokens a loss of 0.1, 0.5, 2 and 8 % at 1/4, 1/2, 1 and 2,
    at 3, 2, 1 and 0.5 bits; of AVIF 3, 1 and 0.2 % at a quality of 30, 50 and 80."""

    @pytest.mark.parametrize(
        ("options", "step", "quality"),
        [
            ({}, 0.5 + 0.5 / 3, 50),  # 1 %, a third of the way from 0.5 to 2 %
            ({"max_loss": 0.02}, 1.0, 50),
            ({"max_loss": 0.03}, 1 + 1 / 6, 30),
            ({"max_loss": 0.001}, 0.25, None),
            ({"bits": 1.5}, 0.75, 50),  # which costs 1.25 %
            ({"max_loss": 0.5}, 2.0, 30),  # the coarsest that was measured
            ({"step": 0.25}, 0.25, None),
            ({"step": 0.0625}, 0.0625, None),
            ({"step": 3.0}, 3.0, 30),
            ({"quality": 7}, 0.5 + 0.5 / 3, 7),
            ({"payload": "tokens"}, 0.5 + 0.5 / 3, None),
            ({"payload": "frame"}, None, 50),
            ({"payload": "frame", "max_loss": 0.0001}, None, 80),  # the best there is
            ({"media": "webp"}, 0.5 + 0.5 / 3, 50),  # not measured: the usual quality
        ],
    )
    def test_by_the_curve(
        self,
        model: LoadedModel,
        codebook: Codebook,
        options: dict[str, Any],
        step: float | None,
        quality: int | None,
    ) -> None:
        coder = coder_of(model, codebook, **options)
        found = None if coder.token_coding is None else coder.token_coding.step
        assert found == (None if step is None else pytest.approx(step, rel=1e-6))
        assert found is None or float(np.float32(found)) == found
        assert (coder.quality, coder.note) == (quality, "")

    @pytest.mark.parametrize("most", [0.0, 0.0009])
    def test_a_loss_below_the_curve_is_refused(
        self, model: LoadedModel, codebook: Codebook, most: float
    ) -> None:
        with pytest.raises(SettingError, match=r"`max_loss`.* measured from 0.100% to 8.000%"):
            coder_of(model, codebook, max_loss=most)

    def test_without_a_limit_a_poor_codebook_is_used_as_well_as_it_can(
        self, model: LoadedModel, codebook: Codebook
    ) -> None:
        tokens = tuple(replace(point, loss=point.loss + 0.05) for point in codebook.curve.tokens)
        poor = replace(codebook, curve=Curve(tokens))
        assert coder_of(model, poor).token_coding.step == 0.25

    def test_without_a_curve_a_step_is_needed(self, model: LoadedModel, codebook: Codebook) -> None:
        plain = replace(codebook, curve=Curve())
        with pytest.raises(BadData, match="no curve: give a `step`"):
            coder_of(model, plain)
        assert coder_of(model, plain, step=0.5).token_coding.step == 0.5

    @pytest.mark.parametrize(
        ("options", "name", "reason"),
        [
            ({"codec": "klt"}, "codec", "run calibrate, and apply"),
            ({"step": 1.0}, "step", "no codebook"),
            ({"bits": 1.0}, "bits", "no codebook"),
            ({"payload": "frame", "max_loss": 0.1}, "max_loss", "give `quality`"),
        ],
    )
    def test_what_needs_a_codebook(
        self, model: LoadedModel, options: dict[str, Any], name: str, reason: str
    ) -> None:
        with pytest.raises(SettingError, match=reason) as caught:
            coder_of(model, None, **options)
        assert caught.value.name == name

    def test_without_a_codebook(self, model: LoadedModel) -> None:
        coder = coder_of(model, None)
        assert (coder.token_coding.codec, coder.quality) == ("int8", 50)
        assert coder.note.endswith("no codebook, so tokens are sent as int8 or as pictures")
        assert coder_of(model, None, payload="tokens").note.endswith("tokens are sent as int8")
        assert coder_of(model, None, payload="frame").note == ""
        assert coder_of(model, None, codec="float16").note == ""

    def test_another_towers_codebook_is_not_used(
        self, model: LoadedModel, codebook: Codebook, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        said: list[str] = []
        monkeypatch.setattr(streams, "message", said.append)
        other = replace(codebook, tower="sha256:" + "0" * 64)
        assert coder_of(model, other).token_coding.codec == "int8"
        assert len(said) == 1 and "not used" in said[0]


class TestTokens:
    @pytest.mark.parametrize("keep", ["100%", "50%"])
    def test_klt_codes_what_was_kept(
        self, model: LoadedModel, codebook: Codebook, frames: list[Frame], keep: str
    ) -> None:
        """The codes are those of the tokens that float32 sends; opened, they are what they code."""
        options = {"keep": parse_amount(keep)}
        exact = sampled(
            frames[:4], coder_of(model, None, payload="tokens", codec="float32"), **options
        )
        sent = sampled(frames[:4], coder_of(model, codebook, payload="tokens"), **options)
        opener = Opener(model, {codebook.digest: codebook}.__getitem__)
        for one, shard in zip(exact, read(stream_of(sent)), strict=True):
            step = shard.coding.step
            assert shard.coding.codebook == codebook.digest and step is not None
            assert np.array_equal(shard.positions, one.shard.positions)
            codes = klt.encode(one.shard.tokens, one.shard.positions, codebook, step)
            assert np.array_equal(shard.codes, codes)
            again = opener.open(shard).tokens
            assert np.array_equal(again, klt.decode(codes, shard.positions, codebook, step))

    def test_scores_go_up_where_asked_and_the_rule_has_them(
        self, model: LoadedModel, codebook: Codebook, frames: list[Frame]
    ) -> None:
        """Of all tokens and of half. By `tome` a score says how many were merged into a token."""
        has = {"variance": (1, 1), "norm": (1, 1), "grid": (0, 0), "tome": (0, 1)}
        coder = coder_of(model, codebook, payload="tokens", scores=True)
        for rule in has:
            for keep, expected in zip(("100%", "50%"), has[rule], strict=True):
                options = {"keep": parse_amount(keep), "by": rule}
                for shard in read(stream_of(sampled(frames[:2], coder, **options))):
                    assert (shard.scores is not None) == expected
        coder = coder_of(model, codebook, payload="tokens")
        assert all(s.scores is None for s in read(stream_of(sampled(frames[:2], coder))))


class TestAuto:
    def test_the_smaller_form_of_each_group_is_sent_and_the_others_size_kept(
        self, model: LoadedModel, codebook: Codebook, frames: list[Frame], tmp_path: Path
    ) -> None:
        """Codes of tiny tokens are small; of one flat picture the file is smaller than float32."""
        flat = tmp_path / "flat.png"
        Image.new("RGB", (60, 60), "red").save(flat)
        plain = [Frame("flat", flat, [LabelledQuestion("q", "how many?", "vqa")])]
        for given, codec in ((frames[:4], "klt"), (plain, "float32")):
            book = codebook if codec == "klt" else None
            auto, tokens, frame = (
                stream_of(sampled(given, coder_of(model, book, payload=payload, **codecs)))
                for payload, codecs in (
                    *(("auto", {"codec": codec}), ("tokens", {"codec": codec})),
                    ("frame", {}),
                )
            )
            smaller, larger = sorted((payload_of(tokens), payload_of(frame)))
            assert payload_of(auto) == smaller < larger
            assert other_of(auto) == larger and other_of(tokens) is other_of(frame) is None
            sent = {shard.coding.codec for shard in read(auto)}
            assert sent == {codec if payload_of(tokens) == smaller else "frame"}
        assert sent == {"frame"}, "both cases occur"

    def test_a_picture_that_cannot_be_made_does_not_cost_the_frame(
        self,
        model: LoadedModel,
        codebook: Codebook,
        frames: list[Frame],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def seen(*_: object) -> Image.Image:
            raise BadData("another picture of its own output: send tokens instead")

        monkeypatch.setattr(model, "seen_as_picture", seen)
        (sent,) = sampled(frames[:1], coder_of(model, codebook))
        assert sent.picture is None and sent.shard.codes is not None
        with pytest.raises(BadData, match="send tokens instead"):
            sampled(frames[:1], coder_of(model, codebook, payload="frame"))

    def test_without_an_encoder_tokens_are_sent(
        self,
        model: LoadedModel,
        codebook: Codebook,
        frames: list[Frame],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(pictures, "can_encode", lambda media: media != "image/avif")
        (sent,) = sampled(frames[:1], coder_of(model, codebook))
        assert sent.picture is None and sent.shard.codes is not None
        with pytest.raises(Unavailable, match="pip install"):
            sampled(frames[:1], coder_of(model, codebook, payload="frame"))


def payload_of(stream: bytes) -> int:
    """The bytes of its tensors."""
    source, found = io.BytesIO(stream), 0
    while record := records.read_record(source):
        found += sum(array.nbytes for array in record.tensors.values())
    return found


def other_of(stream: bytes) -> int | None:
    source = io.BytesIO(stream)
    while record := records.read_record(source):
        if record.header["kind"] == "frames":
            return record.header["other"]
    return None


class TestPictures:
    @pytest.mark.parametrize("media", ["avif", "webp", "jpeg"])
    def test_the_clouds_tokens_are_the_devices_of_the_decoded_picture(
        self, model: LoadedModel, frames: list[Frame], media: str
    ) -> None:
        """Bit for bit; the picture is the tower's 48 x 48 pixels."""
        coder = coder_of(model, None, payload="frame", media=media, quality=5)
        for shard in read(stream_of(sampled(frames[:3], coder))):
            assert shard.picture is not None
            if shard.picture.media == f"image/{media}":
                assert shard.picture.size == (48, 48)
            decoded = pictures.decode(shard.picture)
            opened = Opener(model, no_codebook).open(shard)
            assert opened.tokens.tobytes() == own_tokens(model, decoded).tobytes()

    def test_of_an_original_they_are_the_devices_own(
        self, model: LoadedModel, frames: list[Frame]
    ) -> None:
        """The frames of these tests are PNGs of a few hundred bytes, which no coded picture is."""
        coder = coder_of(model, None, payload="frame", quality=100)
        sent = sampled(frames[:3], coder)
        for frame, shard in zip(frames, read(stream_of(sent)), strict=False):
            assert shard.picture is not None and shard.picture.media == "image/png"
            opened = Opener(model, no_codebook).open(shard)
            assert opened.tokens.tobytes() == own_tokens(model, load_image(frame)).tobytes()

    def test_no_metadata_goes_up(self, model: LoadedModel, tmp_path: Path) -> None:
        """Place, maker, thumbnail, comment and profile of a JPEG that is smaller than its AVIF."""
        mark, frames = b"51.4779N-secret-place", []
        for number in range(3):
            exif = Image.Exif()
            exif[0x010F] = exif[0x010E] = mark.decode()
            exif.get_ifd(0x8825).update({1: "N", 2: (51.0, 28.0, 40.0), 29: mark.decode()})
            path = tmp_path / f"{number}.jpg"
            noise = np.random.default_rng(number).integers(0, 256, (48, 48, 3), dtype=np.uint8)
            image = Image.fromarray(noise)
            image.save(path, quality=5, exif=exif, comment=mark, icc_profile=mark * 9)
            assert path.read_bytes().count(mark) > 3
            frames.append(Frame(path.name, path, [LabelledQuestion(f"{number}", "?", "vqa")]))
        coder = coder_of(model, None, payload="frame", quality=100)
        sent = sampled(frames, coder, repeats=True)
        for payload in ("frame", "auto"):
            stream = stream_of(sampled(frames, coder_of(model, None, payload=payload, quality=100)))
            assert mark not in stream and mark[:9] not in stream and b"Exif" not in stream
        media = {shard.picture.media for shard in read(stream_of(sent)) if shard.picture}
        assert media == {"image/jpeg"}, "the file's own bytes were sent"

    def test_a_frame_without_a_file_is_coded(self, model: LoadedModel, frames: list[Frame]) -> None:
        """Of a camera, whose frame's `image` is only a name."""

        class Capture:
            def load(self, _: str) -> Image.Image:
                return load_image(frames[0])

        live = replace(frames[0], image=Path(__file__), capture=Capture())
        (coded,) = sampled([live], coder_of(model, None, payload="frame"))
        assert coded.shard.picture is not None and coded.shard.picture.media == "image/avif"

    @pytest.mark.parametrize("name", ["keep", "beta"])
    def test_tokens_are_not_chosen(
        self, model: LoadedModel, frames: list[Frame], name: str
    ) -> None:
        value = parse_amount("50%") if name == "keep" else 0.1
        with pytest.raises(SettingError, match="`payload` frame"):
            sampled(frames[:1], coder_of(model, None, payload="frame"), **{name: value})


def no_codebook(digest: str) -> Codebook:
    raise MissingInput(f"no codebook {digest}")


@pytest.mark.parametrize("payload", ["auto", "tokens", "frame"])
def test_the_same_bytes_again_and_with_another_batch_size(
    model: LoadedModel, codebook: Codebook, frames: list[Frame], payload: str
) -> None:
    coder = coder_of(model, codebook, payload=payload)
    first = stream_of(sampled(frames[:5], coder))
    assert stream_of(sampled(frames[:5], coder)) == first
    assert stream_of(sampled(frames[:5], coder, batch_size=3)) == first


@pytest.mark.parametrize("change", [lambda f: f.unlink(), lambda f: f.write_bytes(b"")])
def test_a_frame_that_is_gone_is_left_out(
    model: LoadedModel,
    codebook: Codebook,
    frames: list[Frame],
    tmp_path: Path,
    change: Callable[[Path], Any],
) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(frames[1].image.read_bytes())
    given = [frames[0], replace(frames[1], image=path)]
    change(path)
    skipped = Skipped()
    coder = coder_of(model, codebook, payload="frame")
    settings = SampleSettings(threshold=0.0, max_new_tokens=1)
    sent = list(sample_frames(model, given, settings, None, skipped, coder))
    assert [coded.shard.frame for coded in sent] == [frames[0].id] and skipped.count == 1
