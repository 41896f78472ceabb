"""Stage `world`: the portraits that the other stages learn from, and those of other people to measure with."""

from pathlib import Path

import ml_collections

from feedface.common.progress import say
from feedface.training.fit import write_metrics


def run(config: ml_collections.ConfigDict, workdir: Path) -> None:
    """Write `<workdir>/world/train` and `<workdir>/world/held_out` (other people), see `feedface.synthetic.world`."""
    from feedface.synthetic.world import write_world

    config = config.world
    for name in ("train", "held_out"):
        part, folder = config[name], workdir / "world" / name
        write_world(folder, part.identities, part.per_identity, config.seed, config.image_size, part.first_identity)
        say(f"world: {folder} holds {part.identities} people x {part.per_identity} scenes")
    write_metrics(workdir / "world", config, None)
