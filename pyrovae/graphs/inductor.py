"""From a captured graph to machine code, by torch's own compiler. It is imported only when it is used."""

import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

__all__ = ["CompilerFailed", "compile_graph", "compiler"]


class CompilerFailed(Exception):
    """Inductor could not make code of a graph."""


def compiler(device: torch.device) -> str | None:
    """What inductor would use on this device, or None."""
    if device.type == "cuda":
        return "triton"
    named = os.environ.get("CXX")
    return next((c for c in ([named] if named else ["g++", "clang++", "c++"]) if shutil.which(c)), None)


def compile_graph(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
    """The graph as one function of machine code, with the noise that torch's own operations would draw.

    What was compiled once is kept on disk by inductor (``TORCHINDUCTOR_CACHE_DIR``) and found again.

    Args:
        graph: changed in place.
        inputs: examples; shapes, strides and types are fixed.

    Raises:
        CompilerFailed: in the compiler's words.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's own, about itself
        import torch._inductor.config as config
        from torch._inductor.compile_fx import compile_fx

        try:
            # shapes and strides are checked by who calls, once for all inputs
            with config.patch(fallback_random=True, size_asserts=False, alignment_asserts=False):
                function: Any = compile_fx(graph, list(inputs))
                with torch.random.fork_rng([]):
                    function(*(t.detach().clone() for t in inputs))  # on copies, because it may write into buffers
        except Exception as error:
            raise CompilerFailed(" ".join(str(error).split())[:300]) from error
    return function
