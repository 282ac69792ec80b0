"""From files to arrays on the device: sources, decoding, cache, augmentation, transfer."""
