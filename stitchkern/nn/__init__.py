"""The stitch: an affine map over the channels, dense or through a bottleneck, as a module between two networks."""

from stitchkern.nn.channel_map import RESIZE_MODES, ChannelMap, check_resize, resize_to
from stitchkern.nn.dense import Stitch
from stitchkern.nn.low_rank import LowRankStitch

__all__ = ["RESIZE_MODES", "ChannelMap", "LowRankStitch", "Stitch", "check_resize", "resize_to"]
