"""What works on this machine: libraries, hardware, memory, and what they are for.

Nothing here needs a checkpoint or the network. A check never raises: what fails is its answer.
"""

import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

from cdcca_cli.errors import CdccaError, Unavailable

OK, MISSING = "ok", "missing"
REQUIRED = {
    "torch": "computes the models",
    "transformers": "loads checkpoints",
    "peft": "reads and writes adapters",
    "bitsandbytes": "quantises language models",
    "accelerate": "loads large and quantised checkpoints",
    "safetensors": "reads weights",
    "tokenizers": "reads and writes prompts",
    "huggingface_hub": "fetches checkpoints",
    "numpy": "computes updates",
    "pillow": "reads and codes pictures",
    "zstandard": "compresses streams",
    "pycocoevalcap": "scores captions",
    "cryptography": "signs updates",
}
"""Packages that are installed with cdcca, and what each does."""
_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


@dataclass(frozen=True)
class Check:
    """One thing that works here or does not. found: version or size. cure: "" if there is none."""

    name: str
    state: str
    found: str
    purpose: str
    cure: str = ""
    is_required: bool = False


@dataclass(frozen=True)
class Memory:
    """Bytes of main memory: free, and in all, both as far as a container's limit allows."""

    free: int
    total: int


def checks() -> list[Check]:
    """Everything that is looked at, in the order of the table."""
    return [*_packages(), *_hardware(), _quantization(), *_pictures(), *_extras(), *_room()]


def require(found: list[Check]) -> None:
    """Raises: Unavailable if a package that cdcca cannot do without is missing."""
    missing = [check for check in found if check.is_required and check.state == MISSING]
    if missing:
        names = ", ".join(check.name for check in missing)
        raise Unavailable(f"not installed: {names}: {missing[0].cure}")


def as_json(found: list[Check]) -> dict[str, Any]:
    memory = main_memory()
    return {
        "kind": "machine",
        "checks": [asdict(check) for check in found],
        "memory_bytes": asdict(memory),
        "cpu_threads": cpu_threads(),
        "cuda": [
            {"name": name, "free_bytes": free, "total_bytes": total}
            for name, free, total in cuda_devices()
        ],
    }


def main_memory() -> Memory:
    """What a process can take here. Without /proc (macOS) free is all that there is."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    free = total
    for line in _text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for limit_file, used_file in _CGROUPS:
        limit, used = _text(limit_file).strip(), _text(used_file).strip()
        if limit.isdigit() and used.isdigit() and int(limit) < total:
            total, free = int(limit), min(free, max(int(limit) - int(used), 0))
    return Memory(free, total)


def cpu_threads() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def cuda_devices() -> list[tuple[str, int, int]]:
    """Each device's name, and its memory in bytes: free and in all."""
    import torch

    if not torch.cuda.is_available():
        return []
    return [
        (torch.cuda.get_device_name(number), *torch.cuda.mem_get_info(number))
        for number in range(torch.cuda.device_count())
    ]


def in_units(num_bytes: float) -> str:
    """`700 B`, `1.5 MB`, `23 GB`: powers of 1000, two or three digits."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while num_bytes >= 999.5 and len(units) > 1:
        num_bytes /= 1000
        units.pop(0)
    is_short = num_bytes >= 9.95 or units[0] == "B"
    return f"{num_bytes:.0f} {units[0]}" if is_short else f"{num_bytes:.1f} {units[0]}"


def _packages() -> Iterator[Check]:
    import platform

    from cdcca_cli import __version__

    yield Check("cdcca", OK, __version__, "")
    yield Check("python", OK, platform.python_version(), "")
    for name, purpose in REQUIRED.items():
        try:
            yield Check(name, OK, metadata.version(name), purpose, is_required=True)
        except metadata.PackageNotFoundError:
            cure = f"pip install {name}"
            yield Check(name, MISSING, "", purpose, cure, is_required=True)


def _hardware() -> Iterator[Check]:
    import torch

    memory = main_memory()
    found = f"{in_units(memory.free)} free of {in_units(memory.total)}"
    yield Check("memory", OK, found, "holds a model on a CPU")
    yield Check(
        "CPU", OK, f"{cpu_threads()} cores, torch uses {torch.get_num_threads()} threads", ""
    )
    purpose = "large teachers in minutes, not hours"
    for name, free, total in cuda_devices():
        yield Check("CUDA", OK, f"{name}, {in_units(free)} free of {in_units(total)}", purpose)
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield Check("MPS", OK, "", purpose)
        return
    has_card = shutil.which("nvidia-smi") is not None
    is_built = torch.version.cuda is not None
    cures = {
        (True, False): "this torch is built without CUDA: install one from pytorch.org",
        (True, True): f"nvidia-smi: does the driver fit CUDA {torch.version.cuda}?",
    }
    yield Check(
        "CUDA", MISSING, "", purpose, cures.get((has_card, is_built), "no NVIDIA card here")
    )


def _quantization() -> Check:
    """A linear of 4 bits on the hardware that models are computed on by default."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    purpose = "language models in 4 and 8 bits"
    try:
        _try_four_bits(device)
    except Exception as error:
        words = " ".join(str(error).split())[:120] or type(error).__name__
        return Check("4 bits", MISSING, words, purpose, "pip install -U bitsandbytes")
    return Check("4 bits", OK, f"on {device}", purpose)


def _try_four_bits(device: str) -> None:
    import logging

    import torch
    from bitsandbytes.nn import Linear4bit

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    layer = Linear4bit(64, 32, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    weight_OI = layer.weight.data.clone()  # within 1/8, and 4 bits miss it by a seventh of that
    given_I = torch.ones(64)
    with torch.no_grad():
        made_O = layer.to(device).eval()(given_I[None].to(device))[0].cpu()
    error = float((made_O - weight_OI @ given_I).abs().max())
    if not error < 64 / 8 / 7:
        raise ArithmeticError(f"a linear of 4 bits is off by {error:.2g}")


def _pictures() -> Iterator[Check]:
    from cdcca_cli.payloads import pictures

    for media in pictures.CODED:
        is_ok = pictures.can_encode(media)
        purpose = "payload frame" + (", the fewest bytes" if media == pictures.AVIF else "")
        yield Check(
            f"Pillow with {media.removeprefix('image/')}",
            OK if is_ok else MISSING,
            "",
            purpose,
            "" if is_ok else pictures.CURE,
        )


def _extras() -> Iterator[Check]:
    yield _java()
    yield _video()
    for package, purpose, named in (
        ("matplotlib", "plots of eval and compress", "'cdcca[plot]'"),
        ("torchvision", "families without an image processor for PIL, such as LFM2-VL", ""),
    ):
        try:
            import_module(package)  # torchvision of another torch is found, and fails here
            yield Check(package, OK, metadata.version(package), purpose)
        except ImportError:
            yield Check(package, MISSING, "", purpose, f"pip install {named or package}")
        except Exception as error:
            words = " ".join(str(error).split())[:120]
            yield Check(package, MISSING, words, purpose, f"install the {package} of this torch")


def _java() -> Check:
    from cdcca_cli.scoring.captions import java

    purpose = "METEOR, SPICE (Java 8), the java tokenizer"
    if not java.has_java():
        return Check("Java", MISSING, "", purpose, "install Java 8")
    try:
        version = java.version()
    except CdccaError as error:
        return Check("Java", MISSING, str(error), purpose, "install Java 8")
    cure = "" if version.startswith("1.8") else "install Java 8 for SPICE"
    return Check("Java", OK, version, purpose, cure)


def _video() -> Check:
    purpose = "videos, cameras and streams"
    try:
        from cdcca_cli.datasets import video

        av = video.library("doctor")
        formats = ".".join(map(str, av.library_versions["libavformat"]))
        return Check("PyAV", OK, f"{av.__version__}, ffmpeg's libavformat {formats}", purpose)
    except CdccaError:
        return Check("PyAV", MISSING, "", purpose, "pip install 'cdcca[video]'")
    except Exception as error:
        return Check("PyAV", MISSING, " ".join(str(error).split())[:120], purpose, "reinstall av")


def _room() -> Iterator[Check]:
    """The disks of temporary files, and of checkpoints from the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, purpose, folder in (
        ("disk: temporary", "training and compress", tempfile.gettempdir()),
        ("disk: checkpoints", "checkpoints from the hub", HF_HUB_CACHE),
    ):
        path = Path(folder)
        while not path.exists() and path != path.parent:
            path = path.parent
        try:
            free = shutil.disk_usage(path).free
            yield Check(name, OK, f"{in_units(free)} free in {folder}", purpose)
        except OSError as error:
            yield Check(name, MISSING, str(error.strerror), purpose, f"make {folder} readable")


def _text(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
