"""Procedural aerial scenes with captions: the imagery of the download-free setting."""

from .captions import NAMES
from .render import SCENES, render, tiles

__all__ = ["NAMES", "SCENES", "render", "tiles"]
