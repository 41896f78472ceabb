"""Which device and which number format to use: a GPU when there is one, never assumed."""

import os

import torch

from feedface.common.bfloat16 import EMULATED, faster_in_bfloat16
from feedface.common.errors import UserError
from feedface.common.opencv import import_cv2

KINDS = ("cpu", "cuda", "mps")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str | torch.device | None = None) -> torch.device:
    """`None` or "auto": cuda, else mps, else cpu. A name that this machine does not have is a `UserError`."""
    if name in (None, "auto"):
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError):
        device = None
    # PyTorch knows more kinds (xpu, hip, vulkan, meta, …) than anything here was tried on.
    if device is None or device.type not in KINDS or (device.type != "cuda" and device.index):
        raise UserError(f"--device {name}: not a device; use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: this PyTorch sees no CUDA GPU; use --device cpu or auto")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA GPU(s)")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError(f"--device {name}: MPS is not available here; use --device cpu or auto")
    return device


def pick_devices(name: str, local_index: int) -> tuple[str, str]:
    """Devices of onnxruntime (a face detector) and of PyTorch. "auto" and "cuda" spread processes over the GPUs.

    Asked for by name, a GPU has to be used by both; "auto" detects on the CPU where onnxruntime has no GPU.
    """
    device = str(pick_device(name))
    if device == "cuda":
        device = f"cuda:{local_index % torch.cuda.device_count()}"
    if name != "auto" or not device.startswith("cuda"):
        return device, device
    import onnxruntime

    return device if "CUDAExecutionProvider" in onnxruntime.get_available_providers() else "cpu", device


def pick_dtype(name: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """`None` or "auto": fp16 on a GPU; on a CPU bf16 where that is faster, else fp32. Otherwise fp32, bf16, fp16, or
    the dtype itself."""
    if name in (None, "auto"):
        if device.type == "cpu":
            return torch.bfloat16 if faster_in_bfloat16() else torch.float32
        return torch.float16
    if name in DTYPES.values():
        return name
    if name not in DTYPES:
        raise UserError(f"--dtype {name}: not a number format; use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is not slower than float32 there: on a CPU without AVX-512 it is, a hundredfold."""
    return device.type != "cpu" or torch.backends.cpu.get_cpu_capability() not in EMULATED


def limit_threads(processes: int) -> int:
    """Keep this process to its share of the cores (or to OMP_NUM_THREADS); returns how many threads that is."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(wanted) if wanted.isdigit() and int(wanted) else max(1, cores // processes)
    torch.set_num_threads(threads)
    import_cv2().setNumThreads(threads)
    return threads
