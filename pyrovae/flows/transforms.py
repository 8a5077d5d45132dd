"""Invertible maps of vectors whose parameters are learned, or computed from what they are conditioned on."""

import abc
import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import AffineAutoregressive, AffineCoupling
from pyro.distributions.transforms.householder import ConditionedHouseholder
from pyro.nn import AutoRegressiveNN, ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import Transform
from torch.nn.functional import pad, softplus

from pyrovae.bridge import zuko
from pyrovae.errors import ConfigError
from pyrovae.nn import MLP

__all__ = ["IAF", "MAF", "FlowTransform", "Householder", "NeuralSpline", "Planar", "RealNVP", "Sylvester"]

_WITHOUT_INVERSE = (
    "{} has no inverse in closed form: a flow of it can be a posterior, not a prior; take RealNVP, MAF or NeuralSpline "
    "(draws of its own are scored where rsample made them)"
)


class FlowTransform(nn.Module, abc.ABC):
    """Abstract: the learned parameters of one invertible map of vectors.

    To write one, subclass, call this constructor, and return from ``forward`` a torch transform of event dimension 1,
    built afresh in every call with ``cache_size=1``: it must know the logarithm of its Jacobian's determinant, and its
    inverse if priors are to use it. It should start near the identity.

    Args:
        size: of the vector.
        features: of the numbers h the map depends on; 0 for learned constants.

    Raises:
        ConfigError: if the vector is too short for the kind.
    """

    least: ClassVar[int] = 1
    """The smallest size."""
    ordered: ClassVar[bool] = False
    """Whether dimensions play different parts, so that a flow reverses their order between layers."""

    def __init__(self, size: int, features: int = 0) -> None:
        super().__init__()
        if size < self.least:
            name = type(self).__name__
            raise ConfigError(f"shape: {name} needs vectors of size {self.least} or more, received {size}")
        self.size, self.features = size, features

    @abc.abstractmethod
    def forward(self, h: Tensor | None = None) -> Transform:
        """The map.

        Args:
            h: shape ``(*batch, features)``, or None where ``features`` is 0.
        """


class RealNVP(FlowTransform):
    r"""Affine coupling: ``y_a = x_a``, ``y_b = x_b exp(s(x_a, h)) + t(x_a, h)``; quick in both directions.

    ``s`` is kept within (-3, 3). The halves change places from layer to layer.

    Args:
        size: of the vector, 2 or more.
        features: of the numbers h.
        hidden: widths of the network's hidden layers.

    References:
        Density estimation using Real NVP (Dinh, Sohl-Dickstein and Bengio, 2017)

    Example:
        >>> f = RealNVP(3)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    least, ordered = 2, True

    def __init__(self, size: int, features: int = 0, hidden: Sequence[int] = (64,)) -> None:
        super().__init__(size, features)
        self.hidden = hidden
        self.network = MLP(size // 2 + features, 2 * (size - size // 2), hidden)
        _calm(self.network.layers[-1])

    def forward(self, h: Tensor | None = None) -> Transform:
        """The coupling given h, by Pyro's class."""
        return AffineCoupling(self.size // 2, lambda x: _affine(*_at(self.network, x, h).chunk(2, -1)))


class NeuralSpline(FlowTransform):
    r"""Spline coupling: ``y_a = x_a``, ``y_b = spline(x_b; x_a, h)``; quick in both directions, and very flexible.

    Each element's spline is monotonic and rational-quadratic on [-bound, bound], with ``bins`` pieces, and the identity
    beyond. The halves change places from layer to layer.

    Args:
        size: of the vector, 2 or more.
        features: of the numbers h.
        bins: pieces of a spline, 2 or more.
        bound: half the width of the interval that is bent.
        hidden: widths of the network's hidden layers.

    References:
        Neural spline flows (Durkan, Bekasov, Murray and Papamakarios, 2019)

    Example:
        >>> f = NeuralSpline(3)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    least, ordered = 2, True

    def __init__(
        self, size: int, features: int = 0, bins: int = 8, bound: float = 5.0, hidden: Sequence[int] = (64,)
    ) -> None:
        super().__init__(size, features)
        if isinstance(bins, bool) or not isinstance(bins, int) or bins < 2:
            raise ConfigError(f"bins: expected an int from 2, received {bins!r}")
        if not 0 < bound < math.inf:
            raise ConfigError(f"bound: expected a positive number, received {bound!r}")
        self.bins, self.bound, self.hidden = bins, bound, hidden
        self.network = MLP(size // 2 + features, (size - size // 2) * (3 * bins - 1), hidden)
        _calm(self.network.layers[-1])
        self._kind = functools.partial(zuko().transforms.MonotonicRQSTransform, bound=bound)

    def forward(self, h: Tensor | None = None) -> Transform:
        """The coupling given h, with zuko's splines."""
        return _Coupling(self.size // 2, functools.partial(self._spline, h))

    def _spline(self, h: Tensor | None, kept: Tensor) -> Any:
        numbers = _at(self.network, kept, h).unflatten(-1, (-1, 3 * self.bins - 1))
        return self._kind(*numbers.split([self.bins, self.bins, self.bins - 1], -1))


class _Autoregressive(FlowTransform):
    """Abstract: a masked network whose output d sees the elements before d alone."""

    least, ordered = 2, True

    def __init__(self, size: int, features: int = 0, hidden: Sequence[int] | None = None) -> None:
        super().__init__(size, features)
        self.hidden = hidden
        widths = [max(64, 2 * size)] if hidden is None else list(hidden)
        if not widths or min(widths) < size:
            raise ConfigError(f"hidden: expected widths of at least the vector's size {size}, received {hidden!r}")
        order = torch.arange(size)
        if features:
            self.network = ConditionalAutoRegressiveNN(size, features, widths, permutation=order)  # pyright: ignore
        else:
            self.network = AutoRegressiveNN(size, widths, permutation=order)  # pyright: ignore
        _calm(self.network.layers[-1])

    def _forwards(self, h: Tensor | None) -> AffineAutoregressive:
        return AffineAutoregressive(_Masked(self.network, h))


class IAF(_Autoregressive):
    r"""Inverse autoregressive flow: ``y_d = x_d exp(s_d(x_<d, h)) + t_d(x_<d, h)``.

    A draw and its density take one pass of the network, the density of a point from elsewhere as many as the vector is
    long: made for posteriors. ``s`` is kept within (-3, 3).

    Args:
        size: of the vector, 2 or more.
        features: of the numbers h.
        hidden: widths of the masked network's hidden layers, none below ``size``; None for one of ``max(64, 2 size)``.

    References:
        Improving variational inference with inverse autoregressive flow (Kingma et al., 2016)

    Example:
        >>> f = IAF(3)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def forward(self, h: Tensor | None = None) -> Transform:
        """The map given h, by Pyro's class."""
        return self._forwards(h)


class MAF(_Autoregressive):
    r"""Masked autoregressive flow: ``y_d = (x_d - t_d(y_<d, h)) exp(-s_d(y_<d, h))``.

    The density of any point takes one pass of the network, a draw as many as the vector is long: made for priors.
    ``s`` is kept within (-3, 3).

    Args:
        size: of the vector, 2 or more.
        features: of the numbers h.
        hidden: widths of the masked network's hidden layers, none below ``size``; None for one of ``max(64, 2 size)``.

    References:
        Masked autoregressive flow for density estimation (Papamakarios, Pavlakou and Murray, 2017)

    Example:
        >>> f = MAF(3)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def forward(self, h: Tensor | None = None) -> Transform:
        """The map given h: the inverse of an inverse autoregressive one."""
        return self._forwards(h).inv


class Planar(FlowTransform):
    r"""Contraction towards a plane: ``y = x + v tanh(w'x + b)``; draws only, for it has no inverse in closed form.

    ``v = u + (m(w'u) - w'u) w / |w|^2`` with ``m(a) > -1`` keeps it invertible. ``m(0) = 0``, unlike in the paper, so
    that ``u = 0`` is the identity and ``v`` has no pole at ``w = 0``.

    Args:
        size: of the vector.
        features: of the numbers h.

    References:
        Variational inference with normalizing flows (Rezende and Mohamed, 2015)

    Example:
        >>> f = Planar(3)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, size: int, features: int = 0) -> None:
        super().__init__(size, features)
        self.numbers = _Numbers(features, torch.cat([torch.randn(size) / math.sqrt(size), torch.zeros(size + 1)]))

    def forward(self, h: Tensor | None = None) -> Transform:
        """The map given h."""
        return _PlanarMap(*self.numbers(h).split([self.size, self.size, 1], -1))


class Householder(FlowTransform):
    r"""Reflections: ``y = H_T ... H_1 x`` with ``H = I - 2 v v' / |v|^2``; volumes are preserved.

    Applied to a diagonal Gaussian it makes the covariance a full one. A reflection is not near the identity, but
    orthogonal from the start.

    Args:
        size: of the vector.
        features: of the numbers h.
        reflections: T.

    References:
        Improving variational auto-encoders using Householder flow (Tomczak and Welling, 2016)

    Example:
        >>> f = Householder(3)()
        >>> x = torch.randn(5, 3)
        >>> torch.allclose(f(x).norm(dim=-1), x.norm(dim=-1))
        True
    """

    def __init__(self, size: int, features: int = 0, reflections: int = 1) -> None:
        super().__init__(size, features)
        if isinstance(reflections, bool) or not isinstance(reflections, int) or reflections < 1:
            raise ConfigError(f"reflections: expected a positive int, received {reflections!r}")
        self.reflections = reflections
        self.numbers = _Numbers(features, torch.randn(reflections * size) / math.sqrt(size))

    def forward(self, h: Tensor | None = None) -> Transform:
        """The reflections given h, by Pyro's class."""
        return ConditionedHouseholder(self.numbers(h).unflatten(-1, (self.reflections, self.size)))


class Sylvester(FlowTransform):
    r"""``y = x + Q R tanh(S Q'x + b)``: M planes at once; draws only, for it has no inverse in closed form.

    Q is D x M with orthonormal columns, the first M of M Householder reflections in a row; R and S are upper
    triangular, with diagonals in (-0.99, 0.99), so that the determinant ``prod_m (1 + tanh'_m R_mm S_mm)`` stays above
    0.01^M.

    Args:
        size: of the vector, D.
        features: of the numbers h.
        columns: M, at most D; None for D or 8, whichever is less.

    References:
        Sylvester normalizing flows for variational inference (van den Berg, Hasenclever, Tomczak and Welling, 2018)

    Example:
        >>> f = Sylvester(3, columns=2)()
        >>> x = torch.randn(5, 3)
        >>> f(x).shape, f.log_abs_det_jacobian(x, f(x)).shape
        (torch.Size([5, 3]), torch.Size([5]))
    """

    def __init__(self, size: int, features: int = 0, columns: int | None = None) -> None:
        super().__init__(size, features)
        m = min(size, 8) if columns is None else columns
        if isinstance(m, bool) or not isinstance(m, int) or not 1 <= m <= size:
            raise ConfigError(f"columns: expected an int from 1 to the vector's size {size}, received {columns!r}")
        self.columns, self._m = columns, m
        reflections, matrices, diagonal = torch.randn(m * size), torch.zeros(m * m), torch.ones(m)
        self.numbers = _Numbers(features, torch.cat([reflections, matrices, diagonal, torch.zeros(m)]))

    def forward(self, h: Tensor | None = None) -> Transform:
        """The map given h."""
        m = self._m
        reflections, matrices, diagonal, b = self.numbers(h).split([m * self.size, m * m, m, m], -1)
        both = matrices.unflatten(-1, (m, m))
        r = _triangular(both.triu(1), both.diagonal(dim1=-2, dim2=-1))
        s = _triangular(both.tril(-1).mT, diagonal)
        return _SylvesterMap(ConditionedHouseholder(reflections.unflatten(-1, (m, self.size))), r, s, b)


class _Numbers(nn.Module):
    """The parameters of a map: constants near where they start, or linear in h."""

    def __init__(self, features: int, start: Tensor) -> None:
        super().__init__()
        near = start + 0.01 * torch.randn_like(start)
        self.constant = nn.Parameter(near)
        self.linear = nn.Linear(features, len(start), bias=False) if features else None
        if self.linear is not None:
            _calm(self.linear, 0.1)

    def forward(self, h: Tensor | None) -> Tensor:
        return self.constant if self.linear is None or h is None else self.linear(h) + self.constant


class _Masked:
    """What Pyro's autoregressive transform asks of a network: ``(t, s)`` given x, and the order of the elements."""

    def __init__(self, network: ConditionalAutoRegressiveNN, h: Tensor | None) -> None:
        self.network, self.h, self.permutation = network, h, range(network.input_dim)

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.to(next(self.network.parameters()).dtype)  # an inverse starts from zeros of the default type
        return _affine(*_at(self.network, x, self.h))


class _Scored(Transform, abc.ABC):
    """A map of vectors that gives ``log |det dy/dx|`` with y, and remembers the latter of the last point."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self) -> None:
        super().__init__(cache_size=1)
        self._last: tuple[Any, Any] = None, None

    @abc.abstractmethod
    def scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``y`` of shape ``(*batch, size)`` and the log-determinant, ``(*batch,)``."""

    def _call(self, x: Tensor) -> Tensor:
        self._last = self.scored(x)
        return self._last[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        kept, log_det = self._last
        return log_det if y is kept else self.scored(x)[1]


class _Coupling(_Scored):
    """An element-wise map of the last elements that depends on the first ones."""

    def __init__(self, kept: int, given: Any) -> None:
        super().__init__()
        self.kept, self.given = kept, given

    def scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x[..., : self.kept], x[..., self.kept :]
        b, log_slopes = self.given(a).call_and_ladj(b)
        return torch.cat([a, b], -1), log_slopes.sum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        a, b = y[..., : self.kept], y[..., self.kept :]
        given = self.given(a)
        b = given.inv(b)
        self._last = y, given.call_and_ladj(b)[1].sum(-1)
        return torch.cat([a, b], -1)


class _PlanarMap(_Scored):
    """``y = x + v tanh(w'x + b)``."""

    def __init__(self, w: Tensor, u: Tensor, b: Tensor) -> None:
        super().__init__()
        self.w, self.b = w, b
        inner = (w * u).sum(-1, keepdim=True)
        self.slope = _above_minus_one(inner)
        # What is added to |w|^2 matters below |w| = 1e-5, where w'u is as good as zero and keeps well above -1.
        self.v = u + (self.slope - inner) * w / (w.square().sum(-1, keepdim=True) + 1e-12)

    def scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        t = torch.tanh((self.w * x).sum(-1, keepdim=True) + self.b)
        # 1 + (1 - t^2) w'v as a sum of positive terms
        det = t.square() + (1 - t.square()) * (1 + self.slope)
        return x + self.v * t, det.log().squeeze(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        raise ConfigError(_WITHOUT_INVERSE.format("Planar"))


class _SylvesterMap(_Scored):
    """``y = x + Q R tanh(S Q'x + b)``, with Q' the first rows of ``house``."""

    def __init__(self, house: ConditionedHouseholder, r: Tensor, s: Tensor, b: Tensor) -> None:
        super().__init__()
        self.house, self.r, self.s, self.b = house, r, s, b

    def scored(self, x: Tensor) -> tuple[Tensor, Tensor]:
        m = self.b.shape[-1]
        t = torch.tanh(_times(self.s, self.house._call(x)[..., :m]) + self.b)
        step = pad(_times(self.r, t), (0, x.shape[-1] - m))
        slopes = self.r.diagonal(dim1=-2, dim2=-1) * self.s.diagonal(dim1=-2, dim2=-1)
        return x + self.house._inverse(step), torch.log1p((1 - t.square()) * slopes).sum(-1)

    def _inverse(self, y: Tensor) -> Tensor:
        raise ConfigError(_WITHOUT_INVERSE.format("Sylvester"))


def _at(network: nn.Module, x: Tensor, h: Tensor | None) -> Tensor:
    return network(x) if h is None else network(x, h)


def _affine(t: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    """Shift and log-scale, the latter so bounded that Pyro's clamp, which has another gradient, never acts."""
    return t, 3 * torch.tanh(s / 3)


def _calm(layer: Any, factor: float = 0.01) -> None:
    """Outputs of a linear layer near zero, where a map is near the identity; not at zero, where nothing learns."""
    with torch.no_grad():
        layer.weight.mul_(factor)
        if layer.bias is not None:
            layer.bias.zero_()


_LEAST = 0.01


def _above_minus_one(a: Tensor) -> Tensor:
    """A smooth, rising number above -0.99 that is 0 at 0."""
    return softplus(a + math.log(math.expm1(1 - _LEAST))) + (_LEAST - 1)


def _triangular(strict: Tensor, diagonal: Tensor) -> Tensor:
    return strict + torch.diag_embed((1 - _LEAST) ** 0.5 * torch.tanh(diagonal))


def _times(matrix: Tensor, x: Tensor) -> Tensor:
    return (matrix @ x[..., None]).squeeze(-1)
