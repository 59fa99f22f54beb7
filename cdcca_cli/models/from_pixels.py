"""transformers' own call with pixels, in one step: what the steps of `LoadedModel` must equal.

Shapes: B batch, S prompt, V vocabulary.
"""

import inspect
from typing import Any

import torch
from torch import Tensor

from cdcca_cli.models.language import image_token_id
from cdcca_cli.models.model import LoadedModel
from cdcca_cli.models.pictures import Picture, Seen


@torch.no_grad()
def next_logits(model: LoadedModel, picture: Picture, seen: Seen, prompt: str) -> Tensor:
    """(V,): logits of the first token of an answer.

    Args: seen: tells how many places the picture takes in the prompt; its tokens are not read.
    """
    ids_1S = torch.tensor([model.prompt_ids(prompt, seen)], device=model.device)
    arguments: dict[str, Any] = {"input_ids": ids_1S, "attention_mask": torch.ones_like(ids_1S)}
    arguments |= picture.inputs
    takes = inspect.signature(model.module.forward).parameters
    for name in {"token_type_ids", "mm_token_type_ids"} & takes.keys():
        arguments[name] = (ids_1S == image_token_id(model.module.config)).long()
    if model.reads_prompt:
        read_1T = torch.tensor(model.instruction_ids([prompt]), device=model.device)
        arguments["qformer_input_ids"] = read_1T
        arguments["qformer_attention_mask"] = torch.ones_like(read_1T)
    config = model.module.config.get_text_config()
    if config.is_encoder_decoder:
        start = config.decoder_start_token_id
        start = config.pad_token_id if start is None else start
        arguments["decoder_input_ids"] = torch.tensor([[start]], device=model.device)
    logits: Tensor = model.module(**arguments).logits[0, -1]
    return logits
