"""Limits that no manifest can raise: tolerances, ranges of numbers."""

MAX_GOLDEN_IMAGES = 32

# Largest difference of a probability that a manifest may allow, by the precision of its file. float32 sums in another
# order differ by about 1e-6. fp16 keeps 11 bits: up to 3e-3 was measured on networks of up to 152 layers. int8's sums
# are exact, but a float that lands on the other side of a rounding step moves a value by a 255th of its tensor's range.
TOLERANCES = {"fp32": 1e-4, "fp16": 1e-2, "int8": 1e-2}
# The same for the logarithm of a probability. Noise of 4.4e-6 was measured in fp32. Between two correct ways to compute
# EfficientNet-Lite0, ResNet-18 and LeNet-5 with fewer bits it was up to 0.1 in fp16 and TF32, and up to 0.31 in int8
# (bench/reduced_precision.py), so the limits are 2.5 and 1.6 times that.
LOG_TOLERANCES = {"fp32": 1e-3, "fp16": 0.25, "int8": 0.5}

MAX_BATCH_SIZE = 1 << 16
MAX_SIDE = 1 << 16
MAX_CLASSES = 1 << 24
# Pixels and their statistics. The network multiplies by 1/std in float32, where less than the smallest normal number
# becomes 0.
LARGEST_VALUE = 1e6
SMALLEST_FACTOR = 2.0**-126
