"""The launch files of configs/accelerate, read by accelerate itself."""

from pathlib import Path

import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env

FOLDER = Path(__file__).parents[1] / "configs" / "accelerate"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
# Keys of `fsdp_config` that `accelerate launch` passes on although it has no flag for them.
WITHOUT_FLAG = {"fsdp_ignored_modules"}


def launched(name: str, *extra: str):
    """The arguments that `accelerate launch --config_file …` runs with, file and command line together."""
    arguments = ["--config_file", str(FOLDER / f"{name}.yaml"), *extra, "train.py", "--workdir=here"]
    return _validate_launch_command(launch_command_parser().parse_args(arguments))[0]


def test_every_way_to_launch_has_a_file():
    assert NAMES == ["deepspeed_zero2", "fsdp", "many_gpus", "many_machines", "one_gpu"]


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key_and_keeps_every_value(name):
    content = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    config = load_config_from_file(str(FOLDER / f"{name}.yaml"))  # an unknown key at the top raises
    assert isinstance(config, ClusterConfig)
    assert config.mixed_precision in ("fp16", "bf16") and config.use_cpu is False
    args = launched(name)
    flags = vars(launch_command_parser().parse_args(["train.py"])).keys() | WITHOUT_FLAG
    for key in ("num_machines", "num_processes", "mixed_precision", "use_cpu", "main_process_port"):
        assert getattr(args, key) == content.get(key, getattr(args, key))
    for part in ("fsdp_config", "deepspeed_config"):
        for key, value in content.get(part, {}).items():
            assert key in flags, f"{name}.yaml: {part}.{key} is nothing that accelerate launch knows"
            assert getattr(args, key) == value


@pytest.mark.parametrize("name", NAMES)
def test_the_header_gives_the_command(name):
    header = (FOLDER / f"{name}.yaml").read_text()
    assert f"# accelerate launch --config_file configs/accelerate/{name}.yaml" in header
    assert "train.py" in header and "--config=configs/train_config.py --workdir=" in header


def test_how_they_are_launched():
    kinds = {
        name: (args.multi_gpu, args.use_fsdp, args.use_deepspeed, args.num_machines, args.num_processes)
        for name in NAMES
        for args in [launched(name)]
    }
    assert kinds == {
        "one_gpu": (False, False, False, 1, 1),
        "many_gpus": (True, False, False, 1, 6),
        "many_machines": (True, False, False, 2, 16),
        "fsdp": (False, True, False, 1, 6),
        "deepspeed_zero2": (False, False, True, 1, 6),
    }


@pytest.mark.parametrize("name", ["many_gpus", "fsdp", "deepspeed_zero2"])
def test_another_number_of_gpus_by_flag(name):
    args = launched(name, "--num_processes", "3", "--mixed_precision", "no")
    assert (args.num_processes, args.mixed_precision) == (3, "no")


def test_many_machines_meet_at_the_first():
    args = launched("many_machines", "--main_process_ip", "first", "--machine_rank", "1")
    prepare_multi_gpu_env(args)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "8", 1)
    assert (args.rdzv_endpoint, args.rdzv_backend) == ("first:29500", "static")


def test_fsdp_shards_the_trained_part_as_one_unit(monkeypatch):
    for key, value in prepare_multi_gpu_env(launched("fsdp")).items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.auto_wrap_policy is None
    assert plugin.ignored_modules == "uvit"
    assert plugin.reshard_after_forward is False
    assert plugin.cpu_ram_efficient_loading is False
    assert plugin.activation_checkpointing is False


def test_zero_2_without_offload():
    args = launched("deepspeed_zero2")
    assert (args.zero_stage, args.offload_optimizer_device, args.offload_param_device) == (2, "none", "none")
