"""What every model is: two Pyro programs, and what can be asked of them."""

import abc
import copy
import itertools
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import TorchDistribution
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyrovae.distributions import center
from pyrovae.errors import ConfigError
from pyrovae.evaluation import Rows, as_tensor, log_marginal
from pyrovae.handlers import frozen

__all__ = ["Model"]

_serial = itertools.count()


class _ModelMeta(type(PyroModule), abc.ABCMeta):
    """PyroModule builds its classes itself; abstract methods need ABCMeta as well."""


class Model(PyroModule, abc.ABC, metaclass=_ModelMeta):
    """A generative program and its guide, both true Pyro programs over one plate ``"batch"`` at dimension -1.

    SVI, Predictive, ``poutine.trace``, ``pyro.condition``, ``pyro.render_model`` and MCMC work on ``model`` and
    ``guide``. Sites have public names: ``"x"`` for data, ``"z"`` (then ``"z1"``, ``"z2"``, ...) for latents.

    To write one: call ``super().__init__()``, keep the parts as attributes, decorate ``model`` and ``guide`` with
    ``pyro.nn.pyro_method`` (without it SVI silently trains nothing), and write ``encode`` and ``decode``. Each instance
    gets a root name of its own, so that several train in one process.

    Attributes:
        guide_parts: names of the attributes that hold the guide's parts, such as ``("posterior",)``, for objectives
            that train the guide otherwise than the model.
        enumerated: names of the guide's discrete sites that are marked ``infer={"enumerate": "parallel"}``; ``ELBO()``
            then sums over all their values instead of drawing one.
    """

    guide_parts: ClassVar[tuple[str, ...]] = ()
    enumerated: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__(f"{type(self).__name__}_{next(_serial)}")

    @abc.abstractmethod
    def model(self, x: Tensor | None = None, c: Tensor | None = None, /, *, n: int = 1) -> Tensor:
        """The generative program p(x, z | c).

        Args:
            x: data, shape ``(batch, *x)``; None draws it.
            c: context, shape ``(batch, *c)``, or None.
            n: rows to draw where ``x`` is None.

        Returns:
            x, given or drawn.
        """

    @abc.abstractmethod
    def guide(self, x: Tensor, c: Tensor | None = None, /) -> Any:
        """The inference program q(z | x, c); arguments as in ``model``."""

    @abc.abstractmethod
    def encode(self, x: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution q(z | x, c), without gradients.

        Args:
            x: data, shape ``(batch, *x)``.
            c: context, or None.
        """

    @abc.abstractmethod
    def decode(self, z: Rows, c: Rows | None = None) -> TorchDistribution:
        """The distribution p(x | z, c), without gradients.

        Args:
            z: latents, shape ``(*batch, *z)``.
            c: context, or None.
        """

    def guide_parameters(self) -> list[nn.Parameter]:
        """The parameters of the guide's parts; one that the model shares, as under a VampPrior, is among them.

        Raises:
            ConfigError: for a class that does not say what these parts are.
        """
        if not self.guide_parts:
            raise ConfigError(
                f"guide_parts: expected the names of the guide's parts as a class attribute of {type(self).__name__}, "
                'such as guide_parts = ("posterior",)'
            )
        parts = (getattr(self, name) for name in self.guide_parts)
        return list({id(p): p for part in parts for p in part.parameters()}.values())

    @torch.no_grad()
    def sample(self, n: int = 1, c: Rows | None = None) -> Tensor:
        """Draw ``n`` rows from p(x | c), noise of the likelihood included.

        Args:
            n: rows.
            c: context, shape ``(n, *c)``, or None.

        Returns:
            Tensor of shape ``(n, *x)``.
        """
        with frozen(self), pyro.get_param_store().scope():
            return self.model(None, None if c is None else as_tensor(self, c), n=n)

    def reconstruct(self, x: Rows, c: Rows | None = None) -> Tensor:
        """Decode the mean of q(z | x, c): the likelihood's mean, or its mode where it has no mean (classes).

        Args:
            x: data, shape ``(batch, *x)``.
            c: context, or None.

        Returns:
            Tensor of shape ``(batch, *x)``.
        """
        return center(self.decode(self.encode(x, c).mean, c))

    def log_prob(self, x: Rows, c: Rows | None = None, *, k: int = 5000, seed: int = 0) -> Tensor:
        """Estimates of log p(x | c) with k importance draws per row; :func:`pyrovae.log_marginal` adds their error.

        Args:
            x: data, shape ``(batch, *x)``.
            c: context, or None.
            k: draws per row.
            seed: of the draws.

        Returns:
            Nats per row, shape ``(batch,)``.
        """
        return log_marginal(self, x, c, k=k, seed=seed).values

    def interpolate(self, a: Rows, b: Rows, steps: int = 10, c: Rows | None = None) -> Tensor:
        """Decode the straight line between the mean codes of ``a`` and ``b``.

        Args:
            a: rows, shape ``(batch, *x)``.
            b: rows, same shape.
            steps: points on the line, both ends among them.
            c: context of each row, or None.

        Returns:
            Tensor of shape ``(steps, batch, *x)``.
        """
        start, end = self.encode(a, c).mean, self.encode(b, c).mean
        t = torch.linspace(0, 1, steps, dtype=start.dtype, device=start.device)
        line = torch.stack([torch.lerp(start, end, weight) for weight in t])
        return center(self.decode(line, c))

    def __deepcopy__(self, memo: dict[int, Any]) -> "Model":
        """A copy with a root name of its own: under the old one Pyro would train the original instead."""
        twin = self.__class__.__new__(self.__class__)
        memo[id(self)] = twin
        vars(twin).update(copy.deepcopy(vars(self), memo))
        twin._pyro_set_supermodule(f"{type(self).__name__}_{next(_serial)}", twin._pyro_context)
        return twin
