"""`train.py` with a way to spread the weights that accelerate itself chooses on GPUs only: see test_training_processes.

FORCED=fsdp torchrun --standalone --nproc_per_node 2 tests/forced_launch.py --config=… --workdir=…
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from accelerate.state import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin

from feedface.commands import train
from feedface.common.errors import run_cli
from feedface.training import setup, trainer


def make_accelerator(config, workdir):
    """The real one, with its mind changed afterwards."""
    accelerator = setup.make_accelerator(config, workdir)
    if os.environ["FORCED"] == "fsdp":
        kind = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
    else:
        import deepspeed
        from accelerate.utils import DeepSpeedPlugin

        kind = DistributedType.DEEPSPEED
        plugin = DeepSpeedPlugin(zero_stage=2, gradient_accumulation_steps=1, zero3_init_flag=False)
        deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
        plugin.set_mixed_precision("no")
        plugin.select(_from_accelerator_state=True)
        accelerator.state.deepspeed_plugins, accelerator.deepspeed_engine_wrapped = plugin, None
    accelerator.state.distributed_type = PartialState._shared_state["distributed_type"] = kind
    return accelerator


if __name__ == "__main__":
    trainer.make_accelerator = make_accelerator
    run_cli(train.main)
