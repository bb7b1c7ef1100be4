"""The fleet lab: real machines in miniature, with real SSH servers, on one Linux machine. For tests, benchmarks and demonstrations."""

from orchestra.testing.lab.lab import Lab
from orchestra.testing.lab.machine import LabFailed
from orchestra.testing.lab.node import LabNode

__all__ = ["Lab", "LabFailed", "LabNode"]
