"""Tokenizers and chat templates of the families, tiny but of the real kind.

A `Chat` is how a language model's text is built: its special tokens, what stands around a turn, and
so its chat template. The picture's mark and the tokens that a processor reads from its tokenizer
belong to the row of the family.

Does not expand the picture's mark: that is the processor's work.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import Any

from tests.tiny import SENTENCES

VOCABULARY = 384
"""Rows of every embedding: more than any tokenizer here has tokens, and a multiple of 64."""
TRAINED = 288
"""Tokens before the family's own: those of the text, the 256 bytes, and a few merges."""

TURNS = (
    "{{ $opening }}{% for message in messages %}"
    "{% if message.role == 'user' %}{{ $user }}"
    "{% elif message.role == 'system' %}{{ $system }}{% else %}{{ $assistant }}{% endif %}"
    "{% if message.content is string %}{{ message.content }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{{ $mark }}"
    "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{% if message.role == 'assistant' %}{{ $end_answer }}{% else %}{{ $end }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ $answer }}{% endif %}"
)
"""A chat template; `$name` is one of the texts of `Chat`."""


@dataclass(frozen=True)
class Chat:
    """Special tokens and turns of one kind of language model.

    eos: what ends an answer; more than one if generation stops at each of them.
    begins: the tokenizer itself puts `bos` before a text.
    opening: before the first turn. user, system, assistant: before a turn of theirs. end: after a
        turn. answer: behind the last turn, where the model goes on; `assistant` if None.
    special: the other special tokens.
    """

    user: str
    assistant: str
    eos: tuple[str, ...]
    pad: str
    bos: str | None = None
    unk: str | None = None
    begins: bool = False
    opening: str = ""
    end: str = ""
    system: str = ""
    answer: str | None = None
    end_answer: str | None = None
    special: tuple[str, ...] = ()

    def template(self, mark: str) -> str:
        """The chat template as Jinja, with `mark` for a picture."""
        texts = {
            "opening": self.opening,
            "user": self.user,
            "system": self.system,
            "assistant": self.assistant,
            "mark": mark,
            "end": self.end,
            "end_answer": self.end if self.end_answer is None else self.end_answer,
            "answer": self.assistant if self.answer is None else self.answer,
        }
        # Jinja reads a string as JSON writes it.
        return Template(TURNS).substitute({name: json.dumps(text) for name, text in texts.items()})


def roles(before: str, after: str, assistant: str = "assistant") -> dict[str, Any]:
    """What comes before a turn of each role: its name between two texts."""
    names = {"user": "user", "system": "system", "assistant": assistant}
    return {role: f"{before}{name}{after}" for role, name in names.items()}


LLAMA: dict[str, Any] = {
    "bos": "<s>",
    "eos": ("</s>",),
    "pad": "<pad>",
    "unk": "<unk>",
    "begins": True,
}
VICUNA = Chat(user="USER: ", assistant="ASSISTANT: ", end=" ", answer="ASSISTANT:", **LLAMA)
HUMAN = Chat(user="###Human: ", assistant="###Assistant: ", answer="###Assistant:", **LLAMA)
INSTRUCTION = Chat(user="[INST] ", end=" [/INST]", assistant=" ", answer="", **LLAMA)
IDEFICS = Chat(
    user="User:",
    assistant="Assistant: ",
    end="<end_of_utterance>\n",
    answer="Assistant:",
    **LLAMA | {"eos": ("</s>", "<end_of_utterance>")},
)
MISTRAL = Chat(
    opening="<s>",
    user="[INST]",
    system="[SYSTEM_PROMPT]",
    assistant="",
    end="[/INST]",
    end_answer="</s>",
    special=("[INST]", "[/INST]", "[SYSTEM_PROMPT]"),
    **LLAMA,
)
CHATML = Chat(
    **roles("<|im_start|>", "\n"),
    end="<|im_end|>\n",
    eos=("<|im_end|>",),
    pad="<|endoftext|>",
    special=("<|im_start|>",),
)
LFM = replace(CHATML, opening="<|startoftext|>", bos="<|startoftext|>", pad="<|pad|>", begins=True)
SMOL = Chat(
    opening="<|im_start|>",
    user="User:",
    system="System: ",
    assistant="Assistant: ",
    end="<end_of_utterance>\n",
    answer="Assistant:",
    bos="<|im_start|>",
    eos=("<end_of_utterance>",),
    pad="<|im_end|>",
)
GEMMA = Chat(
    opening="<bos>",
    user="<start_of_turn>user\n",
    assistant="<start_of_turn>model\n",
    end="<end_of_turn>\n",
    bos="<bos>",
    eos=("<eos>", "<end_of_turn>"),
    pad="<pad>",
    unk="<unk>",
    begins=True,
    special=("<start_of_turn>",),
)
GEMMA4 = replace(
    GEMMA,
    **roles("<|turn>", "\n", "model"),
    end="<turn|>\n",
    eos=("<eos>", "<turn|>"),
    special=("<|turn>",),
)
PLAIN_GEMMA = replace(GEMMA, eos=("<eos>",), special=())
AYA = Chat(
    opening="<BOS_TOKEN>",
    user="<|START_OF_TURN_TOKEN|><|USER_TOKEN|>",
    system="<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>",
    assistant="<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>",
    end="<|END_OF_TURN_TOKEN|>",
    end_answer="<|END_RESPONSE|><|END_OF_TURN_TOKEN|>",
    bos="<BOS_TOKEN>",
    eos=("<|END_OF_TURN_TOKEN|>",),
    pad="<PAD>",
    unk="<UNK>",
    begins=True,
    special=(
        "<|START_OF_TURN_TOKEN|>",
        "<|USER_TOKEN|>",
        "<|SYSTEM_TOKEN|>",
        "<|CHATBOT_TOKEN|>",
        "<|START_RESPONSE|>",
        "<|END_RESPONSE|>",
    ),
)
LLAMA3 = Chat(
    opening="<|begin_of_text|>",
    **roles("<|start_header_id|>", "<|end_header_id|>\n\n"),
    end="<|eot_id|>",
    bos="<|begin_of_text|>",
    eos=("<|end_of_text|>", "<|eot_id|>"),
    pad="<|finetune_right_pad_id|>",
    begins=True,
    special=("<|start_header_id|>", "<|end_header_id|>"),
)
DEEPSEEK = Chat(
    user="User: ",
    assistant="Assistant: ",
    end="\n\n",
    answer="Assistant:",
    end_answer="<|end_of_sentence|>",
    bos="<|begin_of_sentence|>",
    eos=("<|end_of_sentence|>",),
    pad="<|pad|>",
    begins=True,
)
JANUS = replace(
    DEEPSEEK,
    user="<|User|>: ",
    assistant="<|Assistant|>: ",
    answer="<|Assistant|>:",
    special=("<|User|>", "<|Assistant|>"),
)
GLM = Chat(
    opening="[gMASK]<sop>",
    **roles("<|", "|>\n"),
    eos=("<|endoftext|>", "<|user|>"),
    pad="<|pad|>",
    special=("[gMASK]", "<sop>", "<|system|>", "<|assistant|>"),
)
GRANITE = Chat(
    **roles("<|start_of_role|>", "<|end_of_role|>"),
    end="<|end_of_text|>\n",
    eos=("<|end_of_text|>",),
    pad="<|pad|>",
    special=("<|start_of_role|>", "<|end_of_role|>"),
)


def tokenizer(
    folder: Path, chat: Chat, mark: str | None, words: Mapping[str, str], special: tuple[str, ...]
) -> Any:
    """Save a byte-level BPE tokenizer, with its chat template, into `folder`.

    Args:
        mark: the picture in the template; None for a family without a template.
        words: tokens that the processor reads as attributes of the tokenizer.
        special: the family's other special tokens.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer
    from transformers import PreTrainedTokenizerFast

    first = [chat.pad, chat.bos, *chat.eos, chat.unk, *chat.special]
    model = Tokenizer(models.BPE(unk_token=chat.unk))
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=TRAINED,
        special_tokens=list(dict.fromkeys(token for token in first if token)),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(SENTENCES, trainer)
    # The end of a turn is often a token of the text and of the family: it is one.
    own = [AddedToken(word, special=True) for word in (*words.values(), *special)]
    model.add_special_tokens(own)
    if chat.begins:
        ends = [(chat.bos, model.token_to_id(chat.bos))]
        model.post_processor = processors.TemplateProcessing(
            single=f"{chat.bos} $A", special_tokens=ends
        )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=model,
        pad_token=chat.pad,
        bos_token=chat.bos,
        eos_token=chat.eos[0],
        unk_token=chat.unk,
        extra_special_tokens=dict(words),
        chat_template=None if mark is None else chat.template(mark),
    )
    assert len(fast) <= VOCABULARY
    fast.save_pretrained(folder)
    return fast
