"""README's table of families is the one that `doctor` makes of checkpoints of published sizes."""

import pytest

from cdcca_cli.families import FAMILIES
from cdcca_cli.payloads import pictures
from tests.zoo import published, table

TEXT = table.README.read_text(encoding="utf-8")
LINES = TEXT.split(table.MARKS[0])[1].split(table.MARKS[1])[0].removeprefix(table.HEAD).splitlines()
ROWS = dict(zip([row.examples[0] for row in table.rows()], table.rows(), strict=True))
QUICK = {
    "Salesforce/blip2-opt-2.7b",
    "llava-hf/llava-1.5-7b-hf",
    "google/gemma-3-4b-it",
    "google/gemma-4-E2B-it",
    "Qwen/Qwen3.5-2B",
}
"""One of each kind of count; the others take a minute and a half together."""
_WIDE = 34 * 60  # 1920 x 1088, cells of 32 pixels
_WIDER = 39 * 69  # 1932 x 1092, cells of 28 pixels
TOKENS_AND_CHANNELS = {
    "Salesforce/blip2-opt-2.7b": (16 * 16 + 1, 1408),  # the class token is read as well
    "llava-hf/llava-1.5-7b-hf": (24 * 24, 1024),
    "llava-hf/vip-llava-7b-hf": (24 * 24, 5 * 1024),  # five layers
    # One tile, and of 2 x 2 tiles the rows with the picture, each with a newline.
    "llava-hf/llava-v1.6-mistral-7b-hf": (24 * 24 + 28 * (48 + 1), 1024),
    # One tile, and of 2 x 4 tiles the columns with the picture.
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": (27 * 27 + 54 * (96 + 1), 1152),
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": ((3 * 4 + 1) * 8 * 8, 16 * 768),
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": ((3 * 5 + 1) * 9 * 9, 9 * 1152),
    "HuggingFaceM4/Idefics3-8B-Llama3": ((3 * 4 + 1) * 13 * 13, 4 * 1152),
    "HuggingFaceM4/idefics2-8b": (39 * 70, 1152),
    "OpenGVLab/InternVL3-1B-hf": ((2 * 4 + 1) * 16 * 16, 4 * 1024),
    "CohereLabs/aya-vision-8b": ((2 * 4 + 1) * 13 * 13, 4 * 1152),
    "mistral-community/pixtral-12b": (36 * 64, 1024),  # 1024 x 576
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": (31 * 55, 4 * 1024),
    "google/gemma-3-4b-it": (16 * 16, 1152),
    "google/gemma-4-E2B-it": (12 * 22, 768),
    "google/gemma-4-31B-it": (12 * 22, 1152),
    "google/paligemma2-3b-mix-224": (16 * 16, 1152),
    "Qwen/Qwen2-VL-2B-Instruct": (_WIDER, 4 * 1280),
    "Qwen/Qwen2.5-VL-3B-Instruct": (_WIDER, 4 * 1280),
    "Qwen/Qwen3-VL-2B-Instruct": (_WIDE, 4 * 4 * 1024),  # of the last layer and three more
    "Qwen/Qwen3-VL-8B-Instruct": (_WIDE, 4 * 4 * 1152),
    "Qwen/Qwen3.5-2B": (_WIDE, 4 * 1024),
    "deepseek-community/deepseek-vl-1.3b-chat": (24 * 24, 1024),
    "deepseek-community/Janus-Pro-1B": (24 * 24, 1024),
    "stepfun-ai/GOT-OCR-2.0-hf": (16 * 16, 1024),
    "zai-org/GLM-4.1V-9B-Thinking": (_WIDER, 4 * 1536),
}


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def of(example: str) -> list[str]:
    """The cells of README's line with this checkpoint first."""
    (found,) = [row for line in LINES if (row := cells(line))[1].split(", ")[0] == example]
    return found


def test_every_family_has_its_lines_in_order() -> None:
    assert {row.family for row in published.ROWS} == {row.name for row in FAMILIES.values()}
    assert len(LINES) == len(ROWS)
    for line, row in zip(LINES, ROWS.values(), strict=True):
        family, examples, *_, exceptions = cells(line)
        made = table.without_counts(row)
        assert family == f"`{made.family}`"
        assert examples == ", ".join(row.examples)
        assert exceptions == "; ".join(made.exceptions)


@pytest.mark.parametrize("example", TOKENS_AND_CHANNELS)
def test_counts_derived_by_hand(example: str) -> None:
    """In 8 bits a token takes a byte a channel and the four of its scale."""
    tokens, channels = TOKENS_AND_CHANNELS[example]
    _, _, _, counted, kilobytes, *_ = of(example)
    assert counted == f"{tokens:,}"
    assert kilobytes == f"{tokens * (channels + 4) / 1000:,.0f}"


@pytest.mark.parametrize(
    "example",
    [pytest.param(example, marks=() if example in QUICK else pytest.mark.slow) for example in ROWS],
)
def test_the_line_is_the_one_that_is_made(example: str) -> None:
    """To the character; but another libavif may write a slightly smaller or larger picture."""
    row = ROWS[example]
    if not table.is_made_here(row):
        pytest.skip(f"{row.family} needs packages that are not here")
    if not pictures.can_encode(pictures.AVIF):
        pytest.skip("this Pillow writes no AVIF")
    shown, made = of(example), cells(str(table.line(row)))
    if shown[3] == "-":
        pytest.skip("README's line was made where a package was missing")
    assert shown[:5] == made[:5] and shown[6] == made[6]
    assert float(shown[5]) == pytest.approx(float(made[5]), rel=0.1, abs=1)
