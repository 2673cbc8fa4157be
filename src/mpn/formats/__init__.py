"""Formats of other programs: masks in, results out."""

from __future__ import annotations

from mpn.formats.frames import FrameNames, VideoFacts
from mpn.formats.objects import ObjectIds
from mpn.formats.read import read_masks
from mpn.formats.regions import GivenMasks

__all__ = ["FrameNames", "GivenMasks", "ObjectIds", "VideoFacts", "read_masks"]
