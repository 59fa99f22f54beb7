"""The same checkpoints through transformers alone: its processor, its forward, its generate.

What `cdcca_cli.models` computes from stored tokens is compared with what these give from pixels.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from PIL import Image
from torch import Tensor

from cdcca_cli.models import LoadedModel, Spliced, decoding
from cdcca_cli.models.decoding import Generated
from tests import tiny


class Reference:
    """One checkpoint as transformers loads it by itself."""

    def __init__(self, folder: Path, dtype: torch.dtype | None = None) -> None:
        config = tf.AutoConfig.from_pretrained(folder)
        self.kind = config.model_type
        words = tf.AutoTokenizer.from_pretrained(folder)
        pictures = tf.AutoImageProcessor.from_pretrained(folder, backend="pil")
        if self.kind == "llava":
            self.model: Any = tf.LlavaForConditionalGeneration.from_pretrained(folder)
            self.processor: Any = tf.LlavaProcessor(
                pictures,
                words,
                patch_size=tiny.PATCH_SIZE,
                vision_feature_select_strategy="default",
                num_additional_image_tokens=1,
            )
        elif self.kind == "instructblip":
            former = tf.AutoTokenizer.from_pretrained(folder, subfolder="qformer_tokenizer")
            self.model = tf.InstructBlipForConditionalGeneration.from_pretrained(folder)
            self.processor = tf.InstructBlipProcessor(
                pictures, words, former, num_query_tokens=config.num_query_tokens
            )
        else:
            self.model = tf.Blip2ForConditionalGeneration.from_pretrained(folder)
            self.processor = tf.Blip2Processor(
                pictures, words, num_query_tokens=config.num_query_tokens
            )
        self.model.eval()
        if dtype is not None:
            self.model.to(dtype)

    def inputs(self, image: Image.Image, prompt: str) -> Any:
        return self.processor(images=image, text=prompt, return_tensors="pt")

    @torch.no_grad()
    def answer_logits(self, image: Image.Image, prompt: str, answer: list[int]) -> Tensor:
        """(A, V): logits that predict each token of `answer`, from pixels."""
        inputs = self.inputs(image, prompt)
        given = torch.tensor([answer])
        if self.model.config.text_config.is_encoder_decoder:
            start = torch.tensor([[self.model.config.text_config.decoder_start_token_id]])
            fed = torch.cat([start, given[:, :-1]], dim=1)
            return self.model(**inputs, decoder_input_ids=fed).logits[0]
        fed = given[:, :-1]
        inputs["input_ids"] = torch.cat([inputs["input_ids"], fed], dim=1)
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
        return self.model(**inputs).logits[0, -len(answer) :]

    @torch.no_grad()
    def greedy(self, image: Image.Image, prompt: str, count: int) -> tuple[list[int], Tensor]:
        """New tokens and their logits (steps, V), by transformers' own generate."""
        inputs = self.inputs(image, prompt)
        out = self.model.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        logits = torch.cat(out.logits)
        return out.sequences[0, -len(logits) :].tolist(), logits


def generate_with_logits(
    model: LoadedModel, spliced: Spliced, max_new_tokens: int
) -> tuple[Generated, list[Tensor]]:
    """Greedy answers, and the logits (B, V) of each step."""
    logits: list[Tensor] = []
    entropy = decoding.step_entropy

    def record(logits_BV: Tensor) -> Tensor:
        logits.append(logits_BV.float())
        return entropy(logits_BV)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "step_entropy", record)
        return model.generate(spliced, max_new_tokens), logits
