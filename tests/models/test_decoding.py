"""Greedy decoding and entropy, apart from any checkpoint's numbers."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.models import decoding
from cdcca_cli.models.language import Language
from tests import tiny
from tests.models.reference import generate_with_logits


def test_entropy_in_nats() -> None:
    """Uniform over 4: ln 4. One certain: 0, with -inf beside it. (1/2, 1/4, 1/4): 1.5 ln 2."""
    inf = float("inf")
    logits = torch.tensor(
        [
            [0.0, 0.0, 0.0, 0.0],
            [3.0, -inf, -inf, -inf],
            [math.log(2), 0.0, 0.0, -inf],
        ]
    )
    expected = [math.log(4), 0.0, 1.5 * math.log(2)]
    assert decoding.step_entropy(logits).tolist() == pytest.approx(expected, abs=1e-6)


class _Script(Language):
    """A language model that follows a script: row r answers script[r][step]."""

    def __init__(self, script: list[list[int]]) -> None:
        self.script = script
        self.max_positions = None
        self.steps = 0

    def _attentions(self) -> list[torch.nn.Module]:
        raise NotImplementedError

    def answer_logits(self, spliced: object, answer_BA: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def continuation_logits(self, *args: object) -> torch.Tensor:
        raise NotImplementedError

    def _say(self) -> torch.Tensor:
        logits = torch.zeros(len(self.script), 10)
        for row, tokens in enumerate(self.script):
            logits[row, tokens[self.steps]] = 5
        self.steps += 1
        return logits

    def begin(self, spliced: object, max_new_tokens: int) -> tuple[torch.Tensor, None]:
        return self._say(), None

    def advance(self, state: None, ids_B: torch.Tensor) -> torch.Tensor:
        return self._say()


def test_stops_when_every_row_has_ended_and_cuts_each_row_at_its_end() -> None:
    language = _Script([[7, 2, 5, 5], [2, 5, 5, 5], [7, 7, 2, 5]])
    made = decoding.greedy(language, [None] * 3, 4, (2,))  # type: ignore[arg-type]
    assert made.ids == [[7, 2], [2], [7, 7, 2]]
    assert [len(row) for row in made.entropies] == [2, 1, 3]
    assert language.steps == 3, "one pass for each token of the longest answer, no more"


def test_stops_at_the_limit() -> None:
    language = _Script([[7, 7, 7, 7]])
    made = decoding.greedy(language, [None], 2, (2, 3))  # type: ignore[arg-type]
    assert made.ids == [[7, 7]]
    assert language.steps == 2


def test_an_end_token_that_a_config_lists(tmp_path: Path) -> None:
    """generation_config's end tokens are used as transformers uses them: any of a list."""
    folder = tiny.q_checkpoint(tmp_path / "c", seed=1)
    import json

    path = folder / "config.json"
    table = json.loads(path.read_text())
    table["text_config"]["eos_token_id"] = [214, 2]
    path.write_text(json.dumps(table))
    model = models.load(folder, compute="cpu")
    assert model.answer_ids(["red"])[0, -1].item() == 214
    spliced = model.read(model.see(model.prepare(tiny.images(1))), ["Question: red? Answer:"])
    _, logits = generate_with_logits(model, spliced, 1)
    first = int(logits[0].argmax())
    table["text_config"]["eos_token_id"] = [2, first]
    path.write_text(json.dumps(table))
    ended = models.load(folder, compute="cpu").generate(spliced, 8)
    assert ended.ids == [[first]]


def test_special_ids() -> None:
    assert decoding.special_ids(None, 2, [5, 2]) == (2, 5)
    assert decoding.special_ids(None) == ()


def test_no_choices_at_all(blip2_llama: Path) -> None:
    model = models.load(blip2_llama, compute="cpu")
    spliced = model.read(model.see(model.prepare(tiny.images(2))), ["a", "b"])
    assert model.score_choices(spliced, [[], []]) == [[], []]
    scores = model.score_choices(spliced, [[], ["red"]])
    assert scores[0] == []
    assert scores[1][0] < 0


def test_an_answer_past_the_last_position_is_refused(blip2_opt: Path) -> None:
    """OPT's positions are learned and end at 256: one line, not an IndexError."""
    model = models.load(blip2_opt)
    spliced = model.read(model.see(model.prepare(tiny.images(1))), ["what?"])
    room = 256 - int(spliced.position_ids.max()) - 1
    model.forward(spliced, torch.ones(1, room + 1, dtype=torch.long))
    with pytest.raises(models.PromptTooLong, match="positions"):
        model.forward(spliced, torch.ones(1, room + 2, dtype=torch.long))
    with pytest.raises(models.PromptTooLong, match="positions"):
        model.score_choices(spliced, [["a " * 300]])


def test_end_ids_are_of_the_first_source_that_has_any() -> None:
    one, other, none = (SimpleNamespace(eos_token_id=value) for value in (2, [5, 7], None))
    assert decoding.end_ids(None, none, other, one) == (5, 7)
    assert decoding.end_ids(none, object()) == ()
