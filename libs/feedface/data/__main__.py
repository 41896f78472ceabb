"""Records and their pictures into shards: a few large tar files, as object stores and network disks like them.

python -m feedface.data shards data/records.jsonl --to shards
python train.py --config=… --config.data.records="('shards/shard-{00000..00099}.tar',)"
"""

from pathlib import Path

from feedface.common.command_line import Parser
from feedface.common.errors import path_flag, run_cli


def main() -> None:
    parser = Parser("python -m feedface.data", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser("shards", help="records.jsonl -> shard-00000.tar, …")
    command.add_argument("records", nargs="+", help="files of records")
    command.add_argument("--to", type=path_flag("--to"), required=True, help="folder to write")
    command.add_argument("--shard_mb", type=int, default=1024, help="size of a shard (default: %(default)s)")
    args = parser.parse_args()
    from feedface.common.errors import UserError
    from feedface.data.record_table import open_records
    from feedface.data.shard_writer import write_shards

    if args.shard_mb < 1:
        raise UserError(f"--shard_mb {args.shard_mb}: use 1 or more")
    written = write_shards(open_records(args.records), Path(args.to), args.shard_mb << 20)
    print(f"{len(written)} shard(s) in {args.to}")


if __name__ == "__main__":
    run_cli(main)
