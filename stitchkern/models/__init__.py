"""Taps, cuts, stitched models, and models and data by specification."""

from stitchkern.models.cut import StitchedModel, Tail, tail
from stitchkern.models.data import load_data
from stitchkern.models.spec import load_model
from stitchkern.models.taps import Taps, activations, frozen, layer_names, layer_shapes, resolve_layer

__all__ = [
    "StitchedModel",
    "Tail",
    "Taps",
    "activations",
    "frozen",
    "layer_names",
    "layer_shapes",
    "load_data",
    "load_model",
    "resolve_layer",
    "tail",
]
