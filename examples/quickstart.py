"""Can the front of one network drive the end of another? Two seeds of a small network on handwritten digits."""

import torch

import stitchkern as sk
from stitchkern.studies import digits

train, test = digits.digits()
front, end = digits.train(0, train), digits.train(1, train)

maps = sk.match_direct(front, end, digits.LAYERS, train)  # all layers in one pass over the data
for layer, affine in maps.items():
    stitched = sk.StitchedModel(front, end, layer, layer, affine.to_module())
    with torch.no_grad():
        right = sum(int((stitched(inputs).argmax(1) == labels).sum()) for inputs, labels in test)
    print(f"{layer}  R² {affine.r2:.3f}  accuracy {right / len(test.labels):.3f}")
