"""Pure functions on a batch: augmentation, masking, decoding, colors, grids of pictures."""
