"""The training step, captured: an ordinary Pyro program as one graph of tensor operations, replayed or compiled."""

from pyrovae.compiled.heap import kept_heap
from pyrovae.compiled.step import Step, compile_step

__all__ = ["Step", "compile_step", "kept_heap"]
