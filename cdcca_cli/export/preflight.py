"""Whether a runtime's files are those of the device's frozen model, without that runtime.

What is compared is what `formats.profile` keeps of the checkpoint: the sizes of the language model,
the moments of its norms, and corners of some weights, which also show in which order a file has its
rows. A server takes a file of another model with the same shapes, or rows in another order, without
a word, and on a quantised base neither its logits nor the gain of an update tells.

What cannot be compared is said, and listed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import BadData, MissingInput, SettingError, WrongBase
from cdcca_cli.export import architectures
from cdcca_cli.export.architectures import ARCHITECTURES, Architecture
from cdcca_cli.families import family_named
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.gguf import Gguf, Tensor
from cdcca_cli.formats.profile import Profile, Sample
from cdcca_cli.numerics import ggml

_NEAR = {"F32": 0.01, "F16": 0.01, "BF16": 0.02, "Q8_0": 0.03, "Q6_K": 0.06}
_NEAR |= {"Q5_0": 0.12, "Q5_1": 0.12, "Q5_K": 0.12, "Q4_0": 0.25, "Q4_1": 0.25, "Q4_K": 0.25}
"""The largest relative difference of two weights that are the same but for the type's rounding.

Some three times what the type usually does: 0.1 with four bits. Rows in another order, or weights
of a model that was trained apart, give 1.2 to 1.5; a fine-tuned model 0.01 to 0.05, which four bits
hide.
"""
_EXACT, _ROUNDED = 1e-4, 1e-2
_CLASS_TOKEN = "v.class_embd"
_SHOWN = 3


@dataclass(frozen=True)
class Base:
    """The file of a language model that has been checked.

    path: of the language model's modules in the device's overlay.
    unchecked: what could not be compared, in words.
    """

    file: Gguf
    architecture: Architecture
    heads: int
    kv_heads: int
    path: str
    profile: Profile | None
    unchecked: list[str] = field(default_factory=list)

    def named(self, module: str) -> str | None:
        """GGUF's name of a module of the device's model; None if the file cannot have it."""
        prefix = f"{self.path}."
        if not module.startswith(prefix):
            return None
        return self.architecture.named(module.removeprefix(prefix))

    def reordered(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """Rows of a linear, by GGUF's name, in the file's order. Raises: WrongBase."""
        self._check_heads(name, len(rows))
        return self.architecture.reordered(name, rows, self.heads, self.kv_heads)

    def restored(self, name: str, rows: NDArray[Any]) -> NDArray[Any]:
        """The file's rows of a linear in transformers' order. Raises: WrongBase."""
        self._check_heads(name, len(rows))
        return self.architecture.restored(name, rows, self.heads, self.kv_heads)

    def _check_heads(self, name: str, num_rows: int) -> None:
        heads = self.architecture.num_reordered(name, self.heads, self.kv_heads)
        if heads and num_rows % (2 * heads):
            raise WrongBase(f"{self.file.path}: {heads} heads do not fit {num_rows} rows of {name}")


def check_base(device: Device, file: Gguf) -> Base:
    """Compare the file of a language model with the device's.

    Raises: BadData; SettingError for one that cannot be exported to; WrongBase.
    """
    settings = device.settings
    if settings.family in architectures.NO_EXPORT:
        reason = architectures.NO_EXPORT[settings.family]
        raise SettingError("to", f"{settings.family} cannot be exported: {reason}", "gguf")
    row = family_named(settings.family)
    if row is None:
        raise BadData(f"{device.path}: is of a family that cdcca does not know, {settings.family}")
    try:
        profile = device.profile()
    except MissingInput as error:
        profile = None
        unchecked = [f"whether the base is this device's: {error}"]
    else:
        unchecked = []
    architecture = _architecture(file, profile)
    heads = _heads(file, f"{architecture.name}.attention.head_count")
    kv_heads = _heads(file, f"{architecture.name}.attention.head_count_kv", heads)
    found = Base(file, architecture, heads, kv_heads, row.language_path, profile, unchecked)
    if profile is not None:
        faults = [*_sizes(found, profile), *_norms(found, profile), *_rows(found, profile)]
        if faults:
            raise WrongBase(f"{file.path}: is not this device's language model: {_words(faults)}")
    return found


def _heads(file: Gguf, key: str, usual: int | None = None) -> int:
    """A number of heads. Args: usual: where the file does not say it. Raises: BadData."""
    found = file.number(key) if key in file.keys else usual
    if found is None or not found >= 1 or found % 1:  # of infinity that is NaN, too
        raise BadData(f"{file.path}: {key} is no number of heads")
    return int(found)


def _architecture(file: Gguf, profile: Profile | None) -> Architecture:
    name = file.text("general.architecture")
    if name is None:
        raise BadData(f"{file.path}: does not say its architecture")
    kind = file.text("general.type")
    if name == "clip" or kind in ("adapter", "mmproj"):
        what = "an adapter" if kind == "adapter" else "a vision tower"
        raise WrongBase(f"{file.path}: is {what}: name the file of the language model")
    parts = file.number("split.count")
    if parts is not None and parts > 1:
        reason = f"is one of {parts:.0f} parts: merge them with llama-gguf-split"
        raise SettingError("base", reason, file.path)
    language = None if profile is None else profile.language.type
    usable = [row for row in ARCHITECTURES.values() if language in (None, *row.types)]
    if not usable:
        known = ", ".join(sorted({one for row in ARCHITECTURES.values() for one in row.types}))
        reason = f"a language model of type {language} cannot be exported, only one of {known}"
        raise SettingError("to", reason, "gguf")
    for row in usable:
        if row.name == name:
            return row
    names = ", ".join(row.name for row in usable)
    if name in ARCHITECTURES:
        raise WrongBase(f"{file.path}: is of architecture {name}, the device's model is {names}")
    reason = f"is of architecture {name}; cdcca knows {names}"
    raise SettingError("base", reason, file.path)


def _sizes(base: Base, profile: Profile) -> list[str]:
    """What the file says otherwise of its sizes."""
    file, prefix, language = base.file, base.architecture.name, profile.language
    width = file.number(f"{prefix}.embedding_length")
    epsilon = file.number(f"{prefix}.attention.layer_norm_rms_epsilon")
    if epsilon is None:
        epsilon = file.number(f"{prefix}.attention.layer_norm_epsilon")
    head_width = file.number(f"{prefix}.attention.key_length")
    if head_width is None and width is not None:
        head_width = width // base.heads
    theta = f"{prefix}.rope.freq_base"
    rows = [
        ("blocks", file.number(f"{prefix}.block_count"), language.blocks),
        ("width", width, language.width),
        ("heads", base.heads, language.heads),
        ("kv heads", base.kv_heads, language.kv_heads),
        ("width of a head", head_width, language.head_width),
        ("inner width", file.number(f"{prefix}.feed_forward_length"), language.inner_width),
        ("epsilon of the norms", epsilon, language.epsilon),
        ("rope theta", file.number(theta) if theta in file.keys else 10_000.0, language.rope_theta),
    ]
    faults = []
    for what, found, wanted in rows:
        if found is None or wanted is None:
            base.unchecked.append(what)
        elif not abs(found - wanted) <= 1e-5 * abs(wanted):
            faults.append(f"{what} {found:g}, expected {wanted:g}")
    words = file.tensors.get("token_embd.weight")
    if words is None:
        return [*faults, "no embedding of words"]
    most, last = language.vocabulary, max(profile.end, default=0)
    # The head of a checkpoint may have rows for a picture's places, or to fill it up.
    if not last < words.shape[0] <= most:
        faults.append(f"{words.shape[0]:,} words, expected at most {most:,} and more than {last:,}")
    return faults


def _norms(base: Base, profile: Profile) -> list[str]:
    """The norms that differ, by their moments."""
    faults = []
    for name, (mean, root) in profile.norms.items():
        module, _, own = name.rpartition(".")
        named = base.named(module)
        tensor = base.file.tensors.get(f"{named}.{own}")
        if named is None:
            base.unchecked.append(f"norm {name}")
            continue
        values = None if tensor is None else base.file.values(tensor)
        if values is None or tensor is None:
            faults.append(f"no {named}.{own}")
            continue
        offset = base.architecture.norm_offset if own == "weight" else 0.0
        wide = values.astype(np.float64) - offset
        near = (_EXACT if tensor.kind == ggml.F32 else _ROUNDED) * (root + offset)
        with np.errstate(invalid="ignore"):  # infinities of both signs
            moments = float(wide.mean()), float(np.sqrt(np.square(wide).mean()))
        if not max(abs(moments[0] - mean), abs(moments[1] - root)) <= near:
            faults.append(f"other values in {named}.{own}")
    return faults


def _rows(base: Base, profile: Profile) -> list[str]:
    """The weights that differ, or have their rows in another order."""
    faults = []
    for name, sample in profile.samples.items():
        named = base.named(name)
        if named is None:
            continue  # the connector's
        tensor = base.file.tensors.get(f"{named}.weight")
        if tensor is None or tensor.shape != sample.shape:
            faults.append(f"no {named}.weight of {list(sample.shape)}")
            continue
        found = _corner(base.file, tensor, sample)
        if found is None:
            kind = ggml.NAMES[tensor.kind]
            base.unchecked.append(f"values and row order of {named}: cdcca does not read {kind}")
            continue
        head_width = profile.language.head_width or 0
        is_headed = head_width > 0 and head_width % 2 == 0 and len(found) % head_width == 0
        right, other = sample.values, sample.values
        if is_headed and named.endswith(("attn_q", "attn_k")):
            other = architectures.in_pairs(sample.values, len(found) // head_width)
            if base.architecture.is_permuted:
                right, other = other, right
        distance, swapped = _distance(found, right), _distance(found, other)
        near = _NEAR[ggml.NAMES[tensor.kind]]
        if not distance <= near:
            is_swapped = swapped <= near
            faults.append(
                f"rows of {named} in another order than {base.architecture.name} has"
                if is_swapped
                else f"other weights in {named} (relative difference {distance:.2f})"
            )
    return faults


def check_mmproj(device: Device, file: Gguf, base: Base, linears: Sequence[str]) -> dict[str, str]:
    """Compare the file of a vision tower and connector with the device's.

    Args: linears: of the connector that the device trains, by their names in its model. All that
        the profile knows are compared.
    Returns: the tensor (without .weight) of each linear that has one in the file.
    Raises: BadData, WrongBase.
    """
    if file.text("general.architecture") != "clip":
        raise WrongBase(f"{file.path}: is no mmproj, the file of a vision tower and connector")
    projector = file.text("clip.projector_type") or file.text("clip.vision.projector_type") or ""
    tensors = [name.removesuffix(".weight") for name in file.tensors]
    samples = {} if base.profile is None else base.profile.samples
    known = {name for name in samples if base.named(name) is None}
    named = architectures.connector_names(projector, sorted({*linears, *known}), tensors)
    base.unchecked.append("whether the mmproj's vision tower is the device's")
    faults = []
    for linear, name in named.items():
        tensor, sample = file.tensors.get(f"{name}.weight"), samples.get(linear)
        if tensor is None or (sample is not None and tensor.shape != sample.shape):
            shown = "" if sample is None else f" of {list(sample.shape)}"
            faults.append(f"no {name}.weight{shown}")
            continue
        found = None if sample is None else _corner(file, tensor, sample)
        if sample is None or found is None:
            base.unchecked.append(f"values of {name}")
        elif not (distance := _distance(found, sample.values)) <= _NEAR[ggml.NAMES[tensor.kind]]:
            faults.append(f"other weights in {name} (relative difference {distance:.2f})")
    if faults:
        raise WrongBase(f"{file.path}: is not this device's connector: {_words(faults)}")
    return named


def has_class_token(base: Base, mmproj: Gguf | None) -> bool:
    """Whether the vision tower has a token beside its patches."""
    is_known = base.profile is not None and base.profile.has_class_token
    return is_known or (mmproj is not None and _CLASS_TOKEN in mmproj.tensors)


def _corner(file: Gguf, tensor: Tensor, sample: Sample) -> NDArray[np.float32] | None:
    rows = file.values(tensor, len(sample.values))
    return None if rows is None else rows[: len(sample.values), : sample.values.shape[1]]


def _distance(found: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """|found - wanted| / |wanted|; NaN where a value is none."""
    wide = wanted.astype(np.float64)  # squares of float32 may overflow
    return float(np.linalg.norm(found - wide)) / max(float(np.linalg.norm(wide)), 1e-30)


def _words(faults: Sequence[str]) -> str:
    more = f", and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return "; ".join(faults[:_SHOWN]) + more
