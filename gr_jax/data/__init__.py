"""From files to arrays on the device: sources, the resident data, augmentation, preparation."""
