"""The posterior of each row, improved at test time from where the encoder puts it."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.conditional import Head
from pyrovae.errors import ConfigError
from pyrovae.evaluation import Rows, chunks, log_weights
from pyrovae.handlers import frozen, mode, sample_sites, stream

__all__ = ["Refined", "refine"]


@dataclass(frozen=True)
class Refined:
    """What refinement found: the last point of every row, whether or not it is better than the first.

    Before and after are estimated with the same fresh noise, which refinement has not seen. Taking the better of the
    two row by row would report noise as gain; ``lost`` counts the rows whose estimate fell.

    Attributes:
        posterior: the refined q(z|x), batch shape ``(rows,)``.
        before: the ELBO at the encoder's parameters, nats, shape ``(rows,)``.
        after: the ELBO at the refined ones.
        standard_errors: of ``after - before`` through the finite k, shape ``(rows,)``.
        k: draws per row behind both.
    """

    posterior: TorchDistribution
    before: Tensor
    after: Tensor
    standard_errors: Tensor
    k: int

    @property
    def gain(self) -> float:
        """Mean of ``after - before``, nats per row: the part of the amortisation gap that was closed."""
        return (self.after - self.before).double().mean().item()

    @property
    def standard_error(self) -> float:
        """Of the gain on these rows, through the finite k; nan for k = 1."""
        return self.standard_errors.double().square().sum().sqrt().item() / len(self.before)

    @property
    def lost(self) -> int:
        """Rows whose estimated ELBO fell."""
        return int((self.after < self.before).sum())

    def __str__(self) -> str:
        return (
            f"ELBO {self.before.double().mean():.2f} -> {self.after.double().mean():.2f} nats per row, gain "
            f"{self.gain:.3f} (standard error {self.standard_error:.2g} from k = {self.k} draws; "
            f"{self.lost:,} of {len(self.before):,} rows lost)"
        )


def refine(
    model: Any,
    x: Rows,
    c: Rows | None = None,
    *,
    steps: int = 50,
    lr: float = 0.03,
    draws: int = 8,
    k: int = 100,
    seed: int = 0,
    chunk_size: int = 5000,
) -> Refined:
    r"""Semi-amortised inference: Adam on each row's own variational parameters, from where the encoder puts them.

    ``lambda_i <- argmax E_q(z; lambda_i) [log p(x_i, z) - log q(z; lambda_i)]``, the model being frozen. What the ELBO
    gains is the amortisation gap, as far as the steps close it; the family's own gap stays. The model, noise
    generators and param store are left as they were.

    Args:
        model: a :class:`Model` whose ``posterior`` is a head and its guide's only latent site.
        x: rows, shape ``(rows, *x)``.
        c: context of each row, or None.
        steps: of Adam.
        lr: step size at first; it falls linearly to zero.
        draws: per row and step.
        k: draws per row for the two ELBOs that are reported.
        seed: of the noise.
        chunk_size: rows times draws handled at once; bounds the memory.

    Raises:
        ConfigError: for a model whose posterior is no head given x, other latent sites, or a number out of range.

    References:
        Semi-amortized variational autoencoders (Kim, Wiseman, Miller, Sontag and Rush, 2018);
        Inference suboptimality in variational autoencoders (Cremer, Li and Duvenaud, 2018)

    Example:
        >>> import pyrovae as pv
        >>> vae = pv.VAE(pv.StandardNormal(2), pv.Bernoulli(6, context=2), pv.Normal(2, context=6))
        >>> found = refine(vae, torch.ones(5, 6), steps=20)
        >>> found.posterior.batch_shape, found.gain > 0
        (torch.Size([5]), True)
    """
    _check(model, steps=steps, lr=lr, draws=draws, k=k, chunk_size=chunk_size)
    with mode(model, training=False):
        parts = list(_refined(model, x, c, steps, lr, draws, k, seed, max(1, chunk_size // draws)))
    params, before, difference = (torch.cat(p, -1 if i else 0) for i, p in enumerate(zip(*parts, strict=True)))
    errors = difference.std(0) / math.sqrt(k) if k > 1 else torch.full_like(difference[0], math.nan)
    with frozen(model):
        posterior = model.posterior.at(params)
    return Refined(posterior, before.mean(0), before.mean(0) + difference.mean(0), errors, k)


def _refined(
    model: Any, x: Rows, c: Rows | None, steps: int, lr: float, draws: int, k: int, seed: int, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Of chunks of rows the refined parameters, and of k draws the weights before and what they gain."""
    seeds = torch.Generator().manual_seed(seed)
    for batch in chunks(model, size, x, c):
        training, fresh = torch.randint(2**62, (2,), generator=seeds).tolist()
        with torch.no_grad():
            guided = _Guided(model, model.posterior.params(*batch), _site(model, batch))
            with stream(model, fresh):
                before = guided.weights(batch, k, draws)
        with stream(model, training), pyro.validation_enabled(False), torch.enable_grad():
            guided.params = _ascend(guided, batch, steps, lr, draws)
        with torch.no_grad(), stream(model, fresh):
            after = guided.weights(batch, k, draws)
        yield guided.params, before.cpu(), (after - before).cpu()


def _ascend(guided: "_Guided", batch: tuple[Tensor, ...], steps: int, lr: float, draws: int) -> Tensor:
    guided.params = guided.params.clone().requires_grad_()
    # Far from the optimum gradients are large; what Adam remembers of their size must fade within few steps.
    adam = torch.optim.Adam([guided.params], lr, betas=(0.9, 0.95))
    for step in range(steps):
        adam.param_groups[0]["lr"] = lr * (1 - step / steps)
        loss = -log_weights(guided, *batch, k=draws).mean(0).sum()
        (guided.params.grad,) = torch.autograd.grad(loss, [guided.params])
        adam.step()
    return guided.params.detach()


class _Guided:
    """A model with a guide of one distribution: its posterior head's at given parameters."""

    def __init__(self, model: Any, params: Tensor, site: str) -> None:
        self.model, self.posterior, self.params, self.site = model.model, model.posterior, params, site

    def guide(self, x: Tensor, *_: Tensor) -> None:
        with pyro.plate("batch", len(x)):
            pyro.sample(self.site, self.posterior.at(self.params))

    def weights(self, batch: tuple[Tensor, ...], k: int, draws: int) -> Tensor:
        """``log p(x, z) - log q(z)``, shape ``(k, rows)``, in passes of some draws."""
        passes = [log_weights(self, *batch, k=min(draws, k - done)) for done in range(0, k, draws)]
        return torch.cat(passes)


def _site(model: Any, batch: tuple[Tensor, ...]) -> str:
    with frozen(model, seed=0), pyro.get_param_store().scope():
        names = [name for name, _ in sample_sites(pyro.poutine.trace(model.guide).get_trace(*batch))]
    if len(names) != 1:
        raise ConfigError(f"refine: expected a guide with one latent site, received {', '.join(names) or 'none'}")
    return names[0]


def _check(model: Any, lr: float, **counts: int) -> None:
    posterior = getattr(model, "posterior", None)
    if not isinstance(posterior, Head) or posterior.join is None:
        raise ConfigError(
            "refine: expected a model whose posterior is a Head given x, such as Normal(16, context=784), for its "
            f"parameters are what is refined; received {type(posterior).__name__}"
        )
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"{name}: expected a positive int, received {count!r}")
    if not 0 < lr < math.inf:
        raise ConfigError(f"lr: expected a positive number, received {lr!r}")
