"""Nearly the same picture goes up once with the same question."""

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cdcca_cli
from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.formats.shard import Shard
from cdcca_cli.models import LoadedModel
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink import near
from cdcca_cli.uplink.near import NUM_KEPT, SentPictures, thumbnail
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import SampleSettings

SHARED = Path(__file__).parents[3] / "shared" / "data"


def apart(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.abs(first - second).max())


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[object]:
    """Frames of a still camera with noise, and one in which a thing of a cell's size moved."""
    rng = np.random.default_rng(0)
    still = np.kron(rng.integers(40, 200, (12, 16, 3)), np.ones((8, 8, 1)))

    def frame(name: str, *questions: LabelledQuestion, moved: bool = False) -> Frame:
        pixels = still + rng.normal(0, 6, still.shape)
        if moved:
            pixels[16:24, 32:40] = 255 - pixels[16:24, 32:40]
        path = tmp_path / f"{name}.png"
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
        return Frame(path.name, path, [*questions])

    return frame


CAPTION = LabelledQuestion("c")
RED = LabelledQuestion("r", "is it red?", "vqa")
BIG = LabelledQuestion("b", "is it big?", "vqa")


def settings(**options: object) -> SampleSettings:
    how = {"threshold": 0.0, "max_new_tokens": 2, "by": "norm", **options}
    return SampleSettings(**how)


class TestThumbnail:
    def test_by_hand(self) -> None:
        """The left half white: 8 of 16 cells of each row are 255."""
        image = Image.new("RGB", (64, 32))
        image.paste((255, 255, 255), (0, 0, 32, 32))
        assert thumbnail(image).reshape(16, 16).tolist() == [[255] * 8 + [0] * 8] * 16

    def test_the_shipped_frames_are_all_distinct(self) -> None:
        folder = Path(cdcca_cli.__file__).parent / "assets" / "frames"
        small = np.stack([thumbnail(Image.open(path)) for path in sorted(folder.rglob("*.jpg"))])
        closest = min(
            int(np.abs(small[place + 1 :] - one).max(1).min())
            for place, one in enumerate(small[:-1])
        )
        assert len(small) == 740
        assert closest > near._MOST_DIFFERENCE + 4

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
    def test_photographs_are_distinct(self) -> None:
        paths = sorted((SHARED / "coco_mini").rglob("*.jpg"))[:100]
        small = [thumbnail(Image.open(path).convert("RGB")) for path in paths]
        assert min(apart(a, b) for i, a in enumerate(small) for b in small[:i]) > 60

    @pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data")
    def test_a_still_camera_is_near_itself(self) -> None:
        """mot17's 8 frames at once: from each to the next at most 11, people walking far away."""
        import av

        with av.open(str(SHARED / "sequences/mmtracking_mot17_1920x1080_8f.mp4")) as clip:
            small = [thumbnail(frame.to_image()) for frame in clip.decode(video=0)]
        steps = [apart(a, b) for a, b in pairwise(small)]
        assert sum(step <= near._MOST_DIFFERENCE for step in steps) >= 6


class TestNew:
    def test_the_same_question_once(self, scene) -> None:
        sent = SentPictures()
        assert sent.new(scene("1", CAPTION, RED), [0, 1]) == [0, 1]
        assert sent.new(scene("2", CAPTION, RED), [0, 1]) == []
        assert sent.new(scene("3", RED, BIG), [0, 1]) == [1]
        assert sent.new(scene("4", CAPTION, RED, BIG), [0, 1, 2]) == []
        assert sent.new(scene("5", RED, moved=True), [0]) == [0]
        assert sent.num_repeats == 6
        assert str(sent) == ", 6 questions of nearly the same picture not sent again"
        assert str(SentPictures()) == ""

    def test_other_choices_are_another_question(self, scene) -> None:
        sent = SentPictures()
        assert sent.new(scene("1", replace(RED, choices=["yes", "no"])), [0]) == [0]
        assert sent.new(scene("2", replace(RED, choices=["yes", "perhaps"])), [0]) == [0]
        assert sent.new(scene("3", replace(RED, id="x", choices=["yes", "no"])), [0]) == []

    def test_a_frame_is_no_repeat_of_itself(self, scene) -> None:
        sent, frame = SentPictures(), scene("1", CAPTION, RED)
        assert sent.new(frame, [0]) == [0]
        assert sent.new(frame, [1]) == [1]

    def test_a_picture_that_cannot_be_read_is_new(self, scene) -> None:
        frame = scene("1", CAPTION)
        frame.image.write_bytes(b"")
        assert SentPictures().new(frame, [0]) == [0]

    def test_nothing_picked_reads_no_picture(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(near, "load_image", None)
        assert SentPictures().new(Frame("a", Path("a")), []) == []

    def test_memory_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rng = np.random.default_rng(0)
        monkeypatch.setattr(near, "load_image", lambda frame: None)
        monkeypatch.setattr(near, "thumbnail", lambda image: rng.integers(0, 255, 256))
        sent = SentPictures()
        for number in range(3 * NUM_KEPT):
            frame = Frame(str(number), Path("x"), [RED])
            assert sent.new(frame, [0]) == [0]
            if number % 2:
                sent.add(shard_of(frame))
        assert len(sent._sent) == NUM_KEPT >= len(sent._picked)
        assert len(json.dumps(sent.to_json())) < 120_000


def shard_of(frame: Frame) -> Shard:
    from cdcca_cli.formats.shard import Question

    questions = [Question(q.id, q.prompt, q.task, q.choices) for q in frame.questions]
    return Shard(
        frame=frame.id,
        image=frame.id,
        domain=None,
        tokens=np.zeros((1, 1), np.float32),
        positions=np.zeros(1, np.int32),
        num_tokens=1,
        tower="sha256:" + "0" * 64,
        questions=questions,
    )


class TestState:
    def test_only_what_was_sent_is_remembered(self, scene) -> None:
        sent = SentPictures()
        one, two = scene("1", RED), scene("2", BIG, moved=True)
        sent.new(one, [0]), sent.new(two, [0])
        sent.add(shard_of(two))
        again = SentPictures.from_json(json.loads(json.dumps(sent.to_json())))
        assert again.new(one, [0]) == [0]
        assert again.new(two, [0]) == []

    @pytest.mark.parametrize(
        "value",
        [
            None,
            {},
            [1],
            [{}],
            [{"picture": "", "questions": []}],
            [{"picture": "A" * 344, "questions": {}}],
            [{"picture": "A" * 344, "questions": [1]}],
            [{"picture": "?" * 344, "questions": []}],
            [{"picture": None, "questions": []}],
            [{"picture": "é", "questions": []}],
            [{"picture": "A" * 342 + "==", "questions": []}] * (NUM_KEPT + 1),
        ],
    )
    def test_what_is_damaged_is_refused(self, value: object) -> None:
        with pytest.raises((KeyError, TypeError, ValueError)):
            SentPictures.from_json(value)


@pytest.mark.parametrize(
    "rule", [{}, {"threshold": None, "top": "100%"}, {"threshold": None, "budget_bytes": 100_000}]
)
class TestSample:
    @staticmethod
    def sent_of(model: LoadedModel, frames: list[Frame], rule: dict, **more: object) -> list[str]:
        options = {**rule, **more}
        if "top" in options:
            options["top"] = parse_amount(options["top"])
        sent = options.pop("sent", None)
        found = sample_frames(model, frames, settings(**options), sent=sent)
        shards = [coded.shard for coded in found]
        return [f"{shard.frame}:{q.id}" for shard in shards for q in shard.questions]

    def test_near_copies_are_left_out(self, model: LoadedModel, scene, rule: dict) -> None:
        sent = SentPictures()
        frames = [scene("1", CAPTION), scene("2", CAPTION), scene("3", CAPTION, moved=True)]
        found = self.sent_of(model, frames, rule, sent=sent)
        assert len(found) == 2 and "3.png:c" in found
        assert sent.num_repeats == 1
        assert self.sent_of(model, frames, rule, repeats=True) == ["1.png:c", "2.png:c", "3.png:c"]

    def test_what_an_earlier_run_sent(self, model: LoadedModel, scene, rule: dict) -> None:
        sent = SentPictures()
        assert self.sent_of(model, [scene("1", CAPTION)], rule, sent=sent)
        later = SentPictures.from_json(sent.to_json())
        assert self.sent_of(model, [scene("2", CAPTION, RED)], rule, sent=later) == ["2.png:r"]
        assert self.sent_of(model, [scene("9", CAPTION, RED)], rule, sent=later) == []
