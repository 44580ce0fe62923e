"""The stitch: an affine map over channels, dense, sparse or through a bottleneck, as a module between two networks."""

from stitchkern.nn.channel_map import RESIZE_MODES, ChannelMap, check_resize, resize_to
from stitchkern.nn.dense import Stitch
from stitchkern.nn.low_rank import LowRankStitch
from stitchkern.nn.sparse import SparseStitch

__all__ = ["RESIZE_MODES", "ChannelMap", "LowRankStitch", "SparseStitch", "Stitch", "check_resize", "resize_to"]
