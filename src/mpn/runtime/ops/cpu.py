"""Keep the stable import path ``mpn.runtime.ops.cpu.warp_bilinear``."""

from mpn.runtime.host.ops import warp_bilinear as warp_bilinear
