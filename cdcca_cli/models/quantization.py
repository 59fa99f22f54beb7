"""The language model in 4 or 8 bits through bitsandbytes, on a CPU and on CUDA.

Only the language model is quantised: tower and connector stay as they are, so that the cloud gets
the same tokens from every device. What bitsandbytes does on a CPU with AVX512-BF16 and has to be
kept away from (all of it from the lazy repack at the first forward in eval mode):

- a linear whose outputs are no multiple of 32 or inputs no multiple of 64 stops in an assertion at
  the first answer: `check_shapes` refuses it at load, by name;
- gradients through a linear in eval mode are wrong: `training_mode` unpacks the linears and holds
  them in train mode while everything else, dropout too, stays in eval mode;
- after the repack `weight.data` is no longer what its name says, and LoRA must not be merged into
  it: nothing in this package does either;
- bitsandbytes undoes the repack in `state_dict()`, but leaves the scales of a weight without double
  quantisation transposed, so that every later use of it is wrong by 2 % (seen in 0.50.2): `unpack`
  puts them in order. What remains is their rounding to bfloat16, 0.1 %. Do not call `state_dict()`
  of a model that has answered in eval mode without it;
- a forward casts a bias in place to what it computes in, so an overlay's float32 bias would be
  rounded by the first answer: `guard_biases` has it work on a copy.

Does not quantise what is sent (`downlink`).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from cdcca_cli.errors import SettingError, Unavailable
from cdcca_cli.formats.names import QUANTIZATIONS

INPUT_MULTIPLE = 64
OUTPUT_MULTIPLE = 32


def check_name(quantize: str) -> None:
    """Raises: SettingError for a quantisation that does not exist."""
    if quantize not in QUANTIZATIONS:
        raise SettingError("quantize", f"expected one of {', '.join(QUANTIZATIONS)}", quantize)


def config(quantize: str, keep: list[str], dtype: torch.dtype) -> Any:
    """The quantisation config for `from_pretrained`, or None for `none`.

    Args:
        keep: names of the modules that stay as they are.
        dtype: what a 4-bit linear computes in.
    Raises: Unavailable if bitsandbytes is not installed.
    """
    check_name(quantize)
    if quantize == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise Unavailable(
            f"`quantize` {quantize}: bitsandbytes is not installed: pip install bitsandbytes"
        ) from error
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if quantize == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=keep)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=keep,
    )


def check_shapes(module: Any, language: str, quantize: str, compute: str) -> None:
    """Refuse linears that bitsandbytes cannot run in 4 bits on a CPU.

    Raises: SettingError naming the linear and its numbers.
    """
    if quantize != "nf4" or compute != "cpu":
        return
    head = module.get_output_embeddings()
    for name, part in module.named_modules():
        if not name.startswith(language + ".") or not isinstance(part, nn.Linear) or part is head:
            continue
        if part.in_features % INPUT_MULTIPLE or part.out_features % OUTPUT_MULTIPLE:
            raise SettingError(
                "quantize",
                f"{name} has {part.in_features} inputs and {part.out_features} outputs; 4 bits on "
                f"a CPU need multiples of {INPUT_MULTIPLE} and {OUTPUT_MULTIPLE}: use int8 or "
                "none, or `compute` cuda",
                "nf4",
            )


def quantized_linears(module: nn.Module) -> list[nn.Module]:
    """The 4-bit and 8-bit linears in `module`."""
    return [part for part in module.modules() if type(part).__module__.startswith("bitsandbytes.")]


def unpack(module: nn.Module) -> None:
    """Undo the repack that bitsandbytes did for an answer on a CPU; the next answer redoes it."""
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
    """Gradients are right inside: quantised linears in train mode, all else in eval mode.

    Dropout stays off. Entering unpacks what an answer in eval mode has packed; leaving puts
    everything back to eval mode.
    """
    module.eval()
    unpack(module)
    for linear in quantized_linears(module):
        linear.train()
    try:
        yield
    finally:
        module.eval()
