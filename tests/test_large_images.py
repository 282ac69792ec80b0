"""Large pictures end to end: the ImageNet-Subset and Food-101 configs on small prepared data sets."""

import json

import numpy as np
import pytest
from ml_collections.config_flags import config_flags  # noqa: F401
