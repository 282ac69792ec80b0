"""From files to arrays on the device: sources, decoded pictures, augmentation, feeding."""
