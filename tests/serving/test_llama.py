"""llama.cpp's own server: prompts as tokens and with pictures, log-probabilities, forced tokens."""

import io
import math
from collections.abc import Iterator

import numpy as np
import pytest

from cdcca_cli.errors import BadData
from cdcca_cli.serving.address import Address
from cdcca_cli.serving.llama import EVERY, LlamaServer, Prompt

pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
pytest.importorskip("gguf", reason="its files cannot be written: pip install gguf")
from tests.teachers import llama
from tests.teachers.server import Hashed, answering

END = llama.END
TEXT = Prompt(ids=(72, 101, 108))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaServer]:
    files = llama.write_tiny(tmp_path_factory.mktemp("tiny"))
    with llama.serving(*files) as address:
        found = LlamaServer.open(Address.parse(address))
        assert found is not None
        yield found
        found.close()


def seen(server: LlamaServer, seed: int = 3) -> Prompt:
    from PIL import Image

    out = io.BytesIO()
    noise = np.random.default_rng(seed).integers(0, 256, (llama.SIDE, llama.SIDE, 3), np.uint8)
    Image.fromarray(noise).save(out, "PNG")
    return Prompt(f"A{server.props.marker}B:", (out.getvalue(),))


def test_it_is_found_out(server: LlamaServer) -> None:
    assert server.props.sees and server.props.num_slots == 1
    assert server.props.file == "model.gguf" and server.props.marker
    assert server.adapters() == []


def test_words_of_special_tokens_are_text_unless_asked_for(server: LlamaServer) -> None:
    assert server.tokenize("H</s>") == [72, 60, 47, 115, 62]
    assert server.tokenize("H</s>", special=True) == [72, END]
    assert server.tokenize("H", begin=True) == [72]
    assert server.detokenize([72, END]) == "H</s>"


def test_log_probabilities_of_the_whole_vocabulary_are_a_distribution(server: LlamaServer) -> None:
    for prompt in (TEXT, seen(server)):
        every = server.logprobs(prompt, EVERY, end=END)
        assert len(every) == 258
        assert math.fsum(map(math.exp, every.values())) == pytest.approx(1, abs=1e-4)
        first = server.logprobs(prompt, 20, end=END)
        assert [*first] == [*every][:20]
        assert server.complete(prompt, 1).ids[0] == next(iter(every))


def test_forced_tokens_have_the_log_probabilities_of_one_token_at_a_time(
    server: LlamaServer,
) -> None:
    for prompt in (TEXT, seen(server)):
        values = server.scores(prompt, [65, 66], end=END)
        slow = [
            server.logprobs(prompt, EVERY, end=END, after=[65, 66][:place])[one]
            for place, one in enumerate([65, 66, END])
        ]
        assert values == pytest.approx(slow, abs=1e-3)
        assert server.score(prompt, [65, 66], end=END) == pytest.approx(sum(slow), abs=1e-3)


def test_the_picture_counts(server: LlamaServer) -> None:
    one, other = (server.logprobs(seen(server, seed), EVERY, end=END) for seed in (3, 4))
    assert max(abs(one[key] - other[key]) for key in one) > 0.1


def test_a_suppressed_token_is_never_taken(server: LlamaServer) -> None:
    (first, *_) = server.complete(TEXT, 3).ids
    assert first not in server.complete(TEXT, 3, biases={first: False}).ids


def test_half_a_character_has_no_step_and_cannot_be_forced(server: LlamaServer) -> None:
    """As llama.cpp does: its grammars and its log-probabilities are of whole characters."""
    found = server.complete(TEXT, 3, biases={195: 1000})
    assert found.ids == (195,) * 3 and found.steps == (None,) * 3
    with pytest.raises(BadData, match="500"):
        server.scores(TEXT, [195, 169], end=END)


def test_an_end_token_among_the_forced_ones_is_refused(server: LlamaServer) -> None:
    with pytest.raises(BadData):
        server.complete(TEXT, 2, ids=[END])


def test_what_the_server_refuses_is_said_as_it_came(server: LlamaServer) -> None:
    with pytest.raises(BadData, match=r"HTTP 400: Failed to load image or audio file"):
        server.complete(Prompt(f"A{server.props.marker}", (b"no picture",)), 1)
    with pytest.raises(BadData, match=r"HTTP 400: .*context"):
        server.complete(Prompt(ids=(65,) * (llama.CONTEXT + 1)), 1)


def test_another_server_is_none() -> None:
    with answering(Hashed()) as served:
        assert LlamaServer.open(Address.parse(served.address)) is None
