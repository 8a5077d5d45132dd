"""Functions of tensors as graphs of their operations: captured, simplified, run or compiled, with the same numbers."""

from pyrovae.graphs.capture import Refused
from pyrovae.graphs.function import Function
from pyrovae.graphs.half import half_products, warn_if_emulated
from pyrovae.graphs.inductor import CompilerFailed, compiler
from pyrovae.graphs.keeping import cuda_devices, kept

LEVELS = ("auto", "compiled", "replay", "eager")
"""How a captured function is run."""
PRECISIONS = ("float32", "bf16")
"""Of its matrix products."""

__all__ = [
    "LEVELS",
    "PRECISIONS",
    "CompilerFailed",
    "Function",
    "Refused",
    "compiler",
    "cuda_devices",
    "half_products",
    "kept",
    "warn_if_emulated",
]
