"""A small device folder, what was learnt on it, and the file of an update: what the tests share."""

from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np

from cdcca_cli.downlink import receiver, sender
from cdcca_cli.downlink.settings import CompressSettings
from cdcca_cli.formats.adaptation import Adaptation
from cdcca_cli.formats.codebook import Codebook, write_codebook
from cdcca_cli.formats.device import Device
from cdcca_cli.formats.device_state import DeviceSettings, Lora
from cdcca_cli.formats.update import Update, write_update

Overlay = dict[str, np.ndarray]

SHAPES = {
    "lm.layers.0.attn.q_proj.bias": (96,),
    "lm.layers.0.attn.q_proj.lora_A": (4, 48),
    "lm.layers.0.attn.q_proj.lora_B": (96, 4),
    "lm.layers.0.norm.bias": (40,),
    "lm.layers.0.norm.weight": (40,),
    "lm.norm.weight": (1,),
    "query_tokens": (1, 5, 33),
}
SETTINGS = DeviceSettings(
    checkpoint="shipped:student",
    family="blip_2",
    tower="sha256:" + 64 * "0",
    lora=Lora(rank=4, alpha=8.0, seed=0),
)


def overlay(seed: int = 0, shapes: Mapping[str, tuple[int, ...]] = SHAPES) -> Overlay:
    """Parameters as a model has them."""
    generator = np.random.default_rng(seed)
    return {name: generator.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def learnt(before: Mapping[str, np.ndarray], seed: int = 1, size: float = 1e-2) -> Overlay:
    """The same parameters after a round of training."""
    generator = np.random.default_rng(seed)
    return {
        name: value + np.float32(size) * generator.standard_normal(value.shape, np.float32)
        for name, value in before.items()
    }


def device(path: Path, seed: int = 0) -> Device:
    return Device.create(path, SETTINGS, overlay(seed))


def adaptation(after: Mapping[str, np.ndarray], base: Device) -> Adaptation:
    """What distill would have written, had it learnt `after` from `base`."""
    return Adaptation(after, base.digest, base.sequence, "akd", 0)


def next_update(base: Device, seed: int = 1, settings: CompressSettings | None = None) -> Update:
    """The update of one more round on this base."""
    after = learnt(base.read_overlay(), seed)
    return sender.compress(adaptation(after, base), base, settings).update


def codebook(sequence: int = 1, tower: str = SETTINGS.tower, num_tokens: int = 4) -> Codebook:
    """A sound codebook of two channels and a component; the sequence is in its content, too."""
    return Codebook(
        tower=tower,
        teacher="sha256:" + 64 * "9",
        num_frames=80,
        scale=np.array([1, 2], np.float32),
        mean=np.full((num_tokens, 2), sequence % 1000, np.float16),
        forward=np.array([[1], [0]], np.float16),
        inverse=np.array([[1, 0]], np.float16),
        positions=np.eye(num_tokens, dtype=np.float16),
        sizes=np.ones((num_tokens, 1), np.float16),
        sequence=sequence,
    )


def codebook_file(made: Codebook) -> bytes:
    out = BytesIO()
    write_codebook(out, made)
    return out.getvalue()


def file_of(update: Update) -> bytes:
    out = BytesIO()
    write_update(out, update)
    return out.getvalue()


def receive(folder: Device, data: bytes) -> receiver.Applied:
    """What `cdcca apply` does with a file."""
    return receiver.apply(folder, receiver.read(folder, BytesIO(data), where="the update"))


def bytes_of(folder: Device) -> dict[str, bytes]:
    """Every file of a device folder."""
    return {
        str(file.relative_to(folder.path)): file.read_bytes()
        for file in sorted(folder.path.rglob("*"))
        if file.is_file()
    }
