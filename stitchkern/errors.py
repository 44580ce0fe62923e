"""Every error that stitchkern raises on purpose, by what was wrong."""


class StitchkernError(Exception):
    """Base of all errors that stitchkern raises on purpose."""


class NotFiniteError(StitchkernError, ValueError):
    """The data holds NaN or Inf, or a sample weight is negative; nothing was updated."""


class ShapeError(StitchkernError, ValueError):
    """A tensor has another shape, channel count or spatial size than expected."""


class LayerError(StitchkernError, ValueError):
    """A layer does not exist, did not run, ran more than once, or cannot be tapped."""


class SpecError(StitchkernError, ValueError):
    """A model, weights or data specification cannot be used as given."""


class StatisticsError(StitchkernError, ValueError):
    """Statistics that cannot be used: a damaged file, too few samples, sides that do not fit."""


class SampleMismatchError(StitchkernError, ValueError):
    """The two sides hold different samples, or the same ones in another order."""


class NotConvergedWarning(UserWarning):
    """An iteration ended before its tolerance; the result says how far it came."""
