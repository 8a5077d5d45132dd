"""Rows with missing cells, NaN: a likelihood that skips them, and a network that reads them."""

import torch
from torch import Tensor, nn

from pyrovae.conditional import Conditional, as_shape
from pyrovae.distributions.masked import MaskedCells
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP, NetBuilder, Shape, dims

__all__ = ["MaskAware", "Masked"]


class Masked(Conditional):
    r"""A likelihood of the observed cells alone: ``log p(x_observed|z)``, where a missing cell is NaN.

    What stands in a missing cell changes neither loss nor gradients by a single bit, a row without any observed cell
    scores 0, and ``E_q log p(x_observed|z) - KL(q(z|x_observed) || p(z))`` bounds ``log p(x_observed)``. That is right
    where the reason why a cell is missing does not depend on what it would hold (missing at random). Draws have all
    cells; :func:`pyrovae.impute` fills those that are missing.

    The encoder sees the same rows: give it ``net=MaskAware``.

    Args:
        likelihood: any whose cells are independent given z, or a Gaussian with covariances.

    References:
        MIWAE: deep generative modelling and imputation of incomplete data sets (Mattei and Frellsen, 2019)

    Example:
        >>> import pyrovae as pv
        >>> likelihood = Masked(pv.Normal(20, context=8))
        >>> vae = pv.VAE(pv.StandardNormal(8), likelihood, pv.Normal(8, context=20, net=MaskAware))
        >>> x = torch.randn(64, 20)
        >>> x[torch.rand(64, 20) < 0.3] = torch.nan
        >>> history = pv.fit(vae, x, epochs=1)
        >>> vae.reconstruct(x).isfinite().all()
        tensor(True)
    """

    def __init__(self, likelihood: Conditional) -> None:
        super().__init__()
        if not isinstance(likelihood, Conditional):
            raise ConfigError(f"likelihood: expected one that is built, such as Normal(20, 8), received {likelihood!r}")
        self.likelihood = likelihood

    def forward(self, *context: Tensor | None) -> MaskedCells:
        """The likelihood's distribution, of the cells that are not NaN.

        Args:
            *context: as the likelihood takes it.
        """
        return MaskedCells(self.likelihood(*context))


class MaskAware(nn.Module):
    """A network for rows with missing cells: NaN becomes 0, and beside the cells comes which of them are there.

    It is called as every builder is, ``MaskAware(in_shape, out_shape)``, and builds ``net`` for an input whose first
    dimension is twice as long: 2 D numbers for a vector, 2 C channels for an image. Standardise columns first: 0 is
    then their mean.

    Args:
        in_shape: of one input, in which any cell may be NaN.
        out_shape: of one output.
        net: builder of the network that reads cells and mask.

    Example:
        >>> network = MaskAware(3, 2)
        >>> network(torch.full((5, 3), torch.nan)).isfinite().all()
        tensor(True)
    """

    def __init__(self, in_shape: Shape, out_shape: Shape, net: NetBuilder = MLP) -> None:
        super().__init__()
        self.in_shape, self.out_shape, self.net = in_shape, out_shape, net
        first, *rest = dims(in_shape, "in_shape")
        self.axis = -1 - len(rest)
        self.network = net(as_shape((2 * first, *rest)), out_shape)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(rows, *in_shape)``, NaN where a cell is missing, to ``(rows, *out_shape)``."""
        missing = x.isnan()
        return self.network(torch.cat([torch.where(missing, 0.0, x), (~missing).to(x.dtype)], self.axis))
