"""Where the files are that belong to the code and are no code: in a checkout beside it, from a wheel in the package."""

import sys
from pathlib import Path
from types import ModuleType

PACKAGE = Path(__file__).resolve().parents[1]
CHECKOUT = PACKAGE.parents[1]  # site-packages' owner where the package is installed: look before you trust it
MINI = Path("models/mini")


def default_model() -> Path:
    """`models/mini` of the checkout; of the current folder where there is no checkout (a wheel holds no weights)."""
    return CHECKOUT / MINI if (CHECKOUT / MINI).is_dir() else MINI


def config_folder() -> Path:
    """`configs/` of the checkout, or its copy that a wheel brings."""
    inside = PACKAGE / "configs"
    return inside if inside.is_dir() else CHECKOUT / "configs"


def find_config(name: str) -> str:
    """The config file that `name` names: a path, or the name of one that comes with FeedFace.

    `train_config`, `train_config.py` and `configs/train_config.py` mean the paper's wherever no such file is nearer.
    Returned as it is where there is none.
    """
    if Path(name).is_file():
        return name
    path = config_folder() / f"{Path(name).name.removesuffix('.py')}.py"
    if Path(name).parent.as_posix() in (".", "configs") and path.is_file():
        return str(path)
    return name


def make_configs_importable() -> None:
    """Let `from configs import train_config` work in a config file that changes some values of the paper's."""
    package = ModuleType("configs", "The configs that come with FeedFace.")
    package.__path__ = [str(config_folder())]
    sys.modules.setdefault("configs", package)
