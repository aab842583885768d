"""Procedural aerial scenes with captions: the imagery of the download-free setting."""

from .captions import SCENE_NAMES
from .render import SCENES, render, render_tiles

__all__ = ["SCENE_NAMES", "SCENES", "render", "render_tiles"]
