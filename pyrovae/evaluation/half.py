"""Matrix products in bfloat16 around a program that runs as it is."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["half_products"]

_aten = torch.ops.aten
_PRODUCTS = {  # which arguments are multiplied
    _aten.mm.default: (0, 1),
    _aten.bmm.default: (0, 1),
    _aten.addmm.default: (1, 2),
    _aten.baddbmm.default: (1, 2),
    _aten.convolution.default: (0, 1),
}
_WITHOUT_ADDED = {_aten.addmm.default: _aten.mm.default, _aten.baddbmm.default: _aten.bmm.default}


@contextlib.contextmanager
def half_products() -> Iterator[None]:
    """Inference mode would show linear layers instead of their products."""
    with torch.inference_mode(mode=False), torch.no_grad(), _HalfProducts():
        yield


class _HalfProducts(TorchDispatchMode):
    """Products of float32 tensors in bfloat16: factors rounded, results once more; what is added stays in float32."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = _PRODUCTS.get(func)
        if factors is None or kwargs or args[factors[0]].dtype is not torch.float32:
            return func(*args, **(kwargs or {}))
        args = [a.bfloat16() if i in factors else a for i, a in enumerate(args)]
        if func in _WITHOUT_ADDED:
            return _WITHOUT_ADDED[func](*args[1:]).float().add_(args[0])
        if func is not _aten.convolution.default or args[2] is None:
            return func(*args).float()
        bias, args[2] = args[2], None
        result = func(*args).float()
        return result.add_(bias.view(-1, *[1] * (result.dim() - 2)))
