"""What training keeps of a forward pass, and whether it is rather computed again.

Gradients are the same bits either way on a CPU; computing the layers again takes a third more time.
"""

from collections.abc import Sequence

import torch
from torch import nn

from cdcca_cli.distillation.settings import DistillSettings
from cdcca_cli.memory import main_memory
from cdcca_cli.models import LoadedModel
from cdcca_cli.models.encoding import Example, num_positions, passes

KEPT_OF_LINEARS = 1.5
"""Values that are kept of a position, for each input and output of the language model's linears:
1.1 measured in float32, 1.4 under autocast."""
LARGEST_SHARE = 0.25
"""Of the memory that is free: the backward pass takes as much again at its peak."""


def is_recomputed(
    student: LoadedModel, settings: DistillSettings, examples: Sequence[Example]
) -> bool:
    """Whether to keep the layers' inputs alone. Args: examples: that are trained on."""
    if settings.checkpointing != "auto" or not examples:
        return settings.checkpointing == "always"
    longest_first = sorted((num_positions(student, one) for one in examples), reverse=True)
    runs = passes(longest_first, *settings.pass_limits())
    most = max(len(each) * longest_first[each.start] for each in runs)
    return most * bytes_a_position(student) > LARGEST_SHARE * _free_bytes(student.device)


def bytes_a_position(model: LoadedModel) -> float:
    """What the layers keep of one position for the gradients, estimated."""
    language, head = f"{model.row.language_path}.", model.module.get_output_embeddings()
    widths = sum(
        part.in_features + part.out_features
        for name, part in model.module.named_modules()
        if isinstance(part, nn.Linear) and name.startswith(language) and part is not head
    )
    return KEPT_OF_LINEARS * widths * model.dtype.itemsize


def _free_bytes(device: torch.device) -> int:
    if device.type != "cuda":
        return main_memory().free
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + unused
