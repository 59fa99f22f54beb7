"""The language model in 4 or 8 bits through bitsandbytes, on a CPU and on CUDA.

Only the language model is quantised: tower and connector stay as they are, so that the cloud gets
the same tokens from every device. On a CPU with AVX512-BF16, bitsandbytes repacks each weight at
its first forward in eval mode, which needs these precautions:

- a 4-bit linear whose outputs are not a multiple of 32 or inputs not a multiple of 64 fails in an
  assertion at the first answer. `config` leaves such a linear as it is, on every machine, since
  device and mirror must hold the same weights. `check_shapes` refuses one that a checkpoint brings;
- gradients through a linear in eval mode are wrong: `training_mode` unpacks the linears and holds
  them in train mode, and everything else, dropout too, in eval mode;
- after the repack, `weight.data` must not be read and LoRA must not be merged;
- `state_dict()` undoes the repack, but leaves the scales of a weight without double quantisation
  transposed (seen in 0.50.2): use `unpack`, which puts them in order;
- a forward casts a bias in place to the type it computes in, so the first answer would round an
  overlay's float32 bias: `guard_biases` makes it work on a copy.
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cdcca_cli.errors import SettingError, Unavailable
from cdcca_cli.families import Family
from cdcca_cli.formats.names import QUANTIZATIONS

INPUT_MULTIPLE = 64
OUTPUT_MULTIPLE = 32


def config(quantize: str, row: Family, model_config: Any, dtype: torch.dtype) -> Any:
    """The quantisation config for `from_pretrained`, or None for `none`.

    Args: model_config: of the whole model. dtype: what a 4-bit linear computes in.
    Raises: SettingError for an unknown name, or 4 bits that no linear can have; Unavailable if
        bitsandbytes is not installed.
    """
    if quantize not in QUANTIZATIONS:
        raise SettingError("quantize", f"expected one of {', '.join(QUANTIZATIONS)}", quantize)
    if quantize == "none":
        return None
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs advice when imported
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"`quantize` {quantize}: bitsandbytes is not installed: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    keep = list(row.full_precision)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    keep += left_out(row, model_config)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=keep,
    )


def left_out(row: Family, model_config: Any) -> list[str]:
    """The linears of the language model that 4 bits cannot hold, found before any is loaded.

    Raises: SettingError if it has no others.
    """
    import transformers

    with torch.device("meta"):
        module = getattr(transformers, row.architecture)(copy.deepcopy(model_config))
    head, inside = module.get_output_embeddings(), f"{row.language_path}."
    linears = {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and part is not head and name.startswith(inside)
    }
    small = {name: part for name, part in linears.items() if _is_small(part)}
    if len(small) == len(linears):
        name, part = next(iter(small.items()))
        raise SettingError(
            "quantize",
            f"no linear of the language model has multiples of {INPUT_MULTIPLE} inputs and "
            f"{OUTPUT_MULTIPLE} outputs, as 4 bits need ({name}: {part.in_features} and "
            f"{part.out_features}): use int8 or none",
            "nf4",
        )
    return list(small)


def _is_small(linear: nn.Linear) -> bool:
    return linear.in_features % INPUT_MULTIPLE != 0 or linear.out_features % OUTPUT_MULTIPLE != 0


def check_shapes(module: nn.Module, compute: str) -> None:
    """Raises: Unavailable for a stored 4-bit linear that bitsandbytes cannot run on a CPU."""
    for name, linear in module.named_modules() if compute == "cpu" else ():
        if type(linear).__name__ == "Linear4bit" and _is_small(linear):
            raise Unavailable(
                f"{name} is stored in 4 bits with {linear.in_features} inputs and "
                f"{linear.out_features} outputs; a CPU needs multiples of {INPUT_MULTIPLE} and "
                f"{OUTPUT_MULTIPLE}: use `compute` cuda, or a checkpoint that is not quantised"
            )


def quantized_linears(module: nn.Module) -> list[nn.Module]:
    """The 4-bit and 8-bit linears in `module`."""
    return [part for part in module.modules() if type(part).__module__.startswith("bitsandbytes.")]


def unpack(module: nn.Module) -> None:
    """Undo the repack of bitsandbytes on a CPU; the next answer repeats it."""
    for linear in quantized_linears(module):
        state: Any = getattr(linear.weight, "quant_state", None)
        if not getattr(state, "packing_format_for_cpu", False):
            continue
        linear.state_dict()
        if not state.nested and state.absmax.ndim == 2:
            state.absmax = state.absmax.T.reshape(-1).float()


def guard_biases(module: nn.Module) -> None:
    """Keep float32 biases of quantised linears as they are; gradients still reach them."""
    for linear in quantized_linears(module):
        bias = linear._parameters.get("bias")
        if bias is not None and bias.dtype == torch.float32 and not hasattr(linear, "_guarded"):
            linear.__dict__["_guarded"] = True
            linear.register_forward_pre_hook(_lend_copy)
            linear.register_forward_hook(_take_back, always_call=True)


def _lend_copy(linear: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
    bias = linear._parameters["bias"]
    assert bias is not None
    dtype = getattr(linear, "compute_dtype", None) or args[0].dtype
    linear.__dict__["_lent"] = bias
    linear._parameters["bias"] = bias.to(dtype)  # type: ignore[assignment]


def _take_back(linear: nn.Module, args: Any, output: Any) -> None:
    linear._parameters["bias"] = linear.__dict__.pop("_lent")


@contextmanager
def training_mode(module: nn.Module) -> Iterator[None]:
    """Inside, gradients are right: quantised linears are in train mode, all else in eval mode."""
    module.eval()
    unpack(module)
    linears = quantized_linears(module)
    handles = [linear.train().register_forward_hook(_whole) for linear in linears]
    try:
        yield
    finally:
        module.eval()
        for handle in handles:
            handle.remove()


def _whole(linear: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
    """No view, since Gemma 3n multiplies what a linear without LoRA gives in place."""
    return output.clone() if output.requires_grad and output._is_view() else output
