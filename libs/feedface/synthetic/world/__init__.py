"""A small world of procedural portraits: ground truth for everything this project does with faces."""

from importlib import import_module

# Where each name is. Loaded when it is asked for: all of it brings in torch, which `--help` need not wait for.
_MODULES = {
    "dataset": ("PortraitSet", "make_portraits", "read_world", "write_world"),
    "identity": ("Identities", "sample_identities"),
    "renderer": ("Portraits", "render"),
    "scene": ("ATTRIBUTES", "Scenes", "attributes", "sample_scenes"),
}
__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str):
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
