"""Peak memory of drawing one picture, each variant in a process of its own, from the start of Python to the pixels."""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from sampling_steps import Variant, Work
from sampling_time import Bench

from feedface.settings import EVERYWHERE, Settings

GIB = 2**30
SCRIPT = Path(__file__).with_name("sampling.py")


def measure_memory(args: argparse.Namespace, name: str) -> dict:
    """{"peak_gib": …, "seconds_from_files": …}, or {"out_of_memory": True} when it does not fit."""
    command = [sys.executable, str(SCRIPT), "--child", name, "--model", str(args.model), "--device", str(args.device)]
    command += ["--precision", args.precision, "--memory_steps", str(args.memory_steps)]
    command += ["--pixels", str(args.pixels)] * (args.pixels is not None)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"out_of_memory": True} if done.returncode == -9 else {"error": f"exit code {done.returncode}"}
    return json.loads(done.stdout.splitlines()[-1])


def draw_once(args: argparse.Namespace, variant: Variant) -> dict:
    """In the process of its own: load the model, show it a face, draw. Few evaluations are enough, as each needs as
    much memory as the next."""
    begun = time.perf_counter()
    try:
        bench = Bench(args.model, args.device, args.precision)
        if not bench.blueprint.settings(variant, Work()).few_step:  # which fixes their number
            few = Settings(steps=args.memory_steps, guidance_interval=EVERYWHERE, face_interval=EVERYWHERE)
            variant = replace(variant, settings=few.over(variant.settings))
        bench.pipe(variant).set_faces([np.full((64, 64, 3), 128, np.uint8)])
        bench.draw(variant, Work(size_px=args.pixels))
    except torch.OutOfMemoryError:
        return {"out_of_memory": True}
    if args.device.type == "cuda":
        peak = torch.cuda.max_memory_allocated(args.device)
    else:
        # macOS counts bytes, all others KiB.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return {"peak_gib": peak / GIB, "seconds_from_files": time.perf_counter() - begun}
