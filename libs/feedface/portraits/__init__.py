"""A small world of procedural portraits: ground truth for everything this project does with faces."""

from feedface.portraits.captions import captions
from feedface.portraits.identity import Identities, sample_identities
from feedface.portraits.renderer import Portraits, render
from feedface.portraits.scene import ATTRIBUTES, Scenes, attributes, sample_scenes
from feedface.portraits.world import PortraitSet, make_portraits, read_world, write_world

__all__ = [
    "ATTRIBUTES", "Identities", "PortraitSet", "Portraits", "Scenes", "attributes", "captions", "make_portraits",
    "read_world", "render", "sample_identities", "sample_scenes", "write_world",
]  # fmt: skip
