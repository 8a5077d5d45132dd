"""What makes q(y|x) work with few labels: losses of the guide's classifier, to be added to the ELBO."""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from torch import Tensor

from pyrovae.distributions.given import split
from pyrovae.errors import ConfigError
from pyrovae.handlers import reach, statistics_kept
from pyrovae.objectives.objective import Objective, average, rows, scaled
from pyrovae.objectives.schedules import Schedule

__all__ = ["Classification", "LabelEntropy", "LabelMarginal", "VirtualAdversarial"]


class Classification(Objective):
    r"""``-alpha mean_i log q(y_i|x_i)`` over the rows of the batch whose label is there; 0 where there is none.

    The ELBO of labelled rows does not contain q(y|x) at all, so that without this term only unlabelled rows would
    train it. The paper's ``alpha sum_i -log q(y_i|x_i)`` beside a sum of ELBOs over N rows, with ``alpha = 0.1 N`` for
    a labelled row, is ``0.1 N_labelled`` here, where everything is per row: with few labels, most of what works is a
    fixed alpha of 10 to 100.

    Labels are as the model takes them. Of classes, soft labels do as well, rows of probabilities: the loss is then the
    cross-entropy. Real-valued targets are scored by their density.

    Args:
        alpha: weight, a number or a schedule.
        site: name of the labels' site in the guide.

    Raises:
        ConfigError: without labels as the data's second entry.

    References:
        Semi-supervised learning with deep generative models (Kingma, Rezende, Mohamed and Welling, 2014)
    """

    scheduled: ClassVar[tuple[str, ...]] = ("alpha",)

    def __init__(self, alpha: float | Schedule = 1.0, site: str = "y") -> None:
        self.alpha, self.site = alpha, site

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """The weighted loss, nats per labelled row."""
        x, y = _labelled(data)
        q = _site(reach(model.guide, self.site, x), self.site)
        value, given = split(q, y)
        log_q = torch.where(given, q.log_prob(value), 0.0)
        share = given.to(log_q.dtype).mean()
        # of what rows there are: weights multiply their losses, not their number
        return scaled(self.alpha, -average(log_q, weights) / share.clamp(min=1 / len(given)))


class VirtualAdversarial(Objective):
    r"""``mean_i KL(q(y|x_i) || q(y|x_i + r_i))`` for the r_i of length ``radius`` that changes q(y|x_i) most.

    It makes q(y|x) smooth around every row, labelled or not, so that classes part where there are no rows. ``steps``
    power iterations find the direction from a random one. q(y|x) on the left is a constant.

    Args:
        radius: Euclidean length of r, in the units of x, a number or a schedule.
        probe: length of the step by which the direction is found.
        steps: power iterations.
        site: name of the labels' site in the guide.

    References:
        Virtual adversarial training: a regularization method for supervised and semi-supervised learning
        (Miyato, Maeda, Koyama and Ishii, 2018)
    """

    scheduled: ClassVar[tuple[str, ...]] = ("radius",)

    def __init__(self, radius: float | Schedule = 2.0, probe: float = 0.1, steps: int = 1, site: str = "y") -> None:
        self.radius, self.probe, self.steps, self.site = radius, probe, steps, site

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Nats per row."""
        rows(data)
        x: Any = data[0]
        clean = reach(model.guide, self.site, x)
        log_p = _log_probs(clean, self.site).detach()
        with statistics_kept(model):
            direction = _unit(torch.randn_like(x))
            for _ in range(self.steps):
                direction = self._steepest(model, x, direction, clean, log_p)
            moved = x + scaled(self.radius, direction)
            return average(self._distance(model, moved, clean, log_p), weights)

    def _steepest(self, model: Any, x: Tensor, direction: Tensor, clean: poutine.Trace, log_p: Tensor) -> Tensor:
        with torch.enable_grad():
            step = (self.probe * direction).requires_grad_()
            distance = self._distance(model, x + step, clean, log_p).sum()
            (gradient,) = torch.autograd.grad(distance, step)
        return _unit(gradient)

    def _distance(self, model: Any, x: Tensor, clean: poutine.Trace, log_p: Tensor) -> Tensor:
        """KL of every row; sites before the labels' keep the values they had."""
        log_q = _log_probs(reach(model.guide, self.site, x, replay=_without(clean, self.site)), self.site)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


class LabelEntropy(Objective):
    r"""``mean_i H(q(y|x_i))`` over the rows whose label is missing: unlabelled rows should have one clear class.

    It moves boundaries between classes to where rows are few; it also fixes a wrong label on a whole cluster, early
    and for good. Start it late, or from a good classifier.

    Args:
        site: name of the labels' site in the guide.

    References:
        Semi-supervised learning by entropy minimization (Grandvalet and Bengio, 2005)
    """

    def __init__(self, site: str = "y") -> None:
        self.site = site

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Nats per unlabelled row."""
        rows(data)
        trace = reach(model.guide, self.site, data[0])
        log_q = _log_probs(trace, self.site)
        missing = _missing(_site(trace, self.site), data, log_q)
        entropy = -(log_q.exp() * log_q).sum(-1)
        return average(missing * entropy, weights) / missing.mean().clamp(min=1 / len(missing))


class LabelMarginal(Objective):
    r"""``KL(mean_i q(y|x_i) || p(y))`` over the rows whose label is missing: all classes should be there.

    A statistic of the batch, which fluctuates with it: a batch of n rows of K classes is off by about ``K / (2 n)``
    nats by itself.

    Args:
        prior: the classes' probabilities; None for equal ones.
        site: name of the labels' site in the guide.

    Raises:
        ConfigError: for a prior that is no distribution, or of another number of classes.

    References:
        Discriminative clustering by regularized information maximization (Gomes, Krause and Perona, 2010)
    """

    def __init__(self, prior: Sequence[float] | None = None, site: str = "y") -> None:
        if prior is not None and not (min(prior) > 0 and math.isclose(sum(prior), 1, abs_tol=1e-4)):
            raise ConfigError(f"prior: expected positive probabilities that sum to 1, received {prior!r}")
        self.prior, self.site = prior, site

    def __call__(self, model: Any, *data: Tensor | None, weights: Tensor | None = None) -> Tensor:
        """Nats."""
        rows(data)
        trace = reach(model.guide, self.site, data[0])
        log_q = _log_probs(trace, self.site)
        missing = _missing(_site(trace, self.site), data, log_q)
        own = missing if weights is None else missing * weights
        mass = own.mean()
        mean = (own[:, None] * log_q.exp()).mean(0) / (mass + (mass == 0))  # which has finite gradients at 0
        divergence = (mean * (mean.clamp(min=1e-30).log() - self._log_prior(mean))).sum()
        return divergence if weights is None else divergence * mass

    def _log_prior(self, like: Tensor) -> Tensor | float:
        if self.prior is None:
            return -math.log(len(like))
        if len(self.prior) != len(like):
            raise ConfigError(f"prior: expected {len(like)} classes, received {len(self.prior)}")
        return like.new_tensor(self.prior).log()


def _labelled(data: tuple[Tensor | None, ...]) -> tuple[Tensor, Tensor]:
    rows(data)
    if len(data) < 2 or data[1] is None:
        raise ConfigError("y: Classification needs labels, -1 where one is missing: fit(model, x, y, ...)")
    return data[0], data[1]  # pyright: ignore[reportReturnType]


def _site(trace: poutine.Trace, site: str) -> TorchDistribution:
    if site not in trace.nodes:
        found = ", ".join(repr(name) for name in trace.stochastic_nodes) or "none"
        raise ConfigError(f"site {site!r}: expected in the guide, which has {found}")
    return trace.nodes[site]["fn"]  # pyright: ignore


def _log_probs(trace: poutine.Trace, site: str) -> Tensor:
    """Of the classes, shape ``(batch, classes)``."""
    logits = getattr(_site(trace, site), "logits", None)
    if logits is None:
        raise ConfigError(f"site {site!r}: expected classes, such as OneHotCategorical, in the guide")
    return logits.log_softmax(-1)


def _missing(q: TorchDistribution, data: tuple[Tensor | None, ...], like: Tensor) -> Tensor:
    """1 for rows without a label, 0 for the others."""
    if len(data) < 2 or data[1] is None:
        return like.new_ones(like.shape[0])
    return (~split(q, data[1])[1]).to(like.dtype)


def _without(trace: poutine.Trace, site: str) -> poutine.Trace:
    before = trace.copy()
    before.remove_node(site)
    return before


def _unit(direction: Tensor) -> Tensor:
    """Rows of length 1."""
    flat = direction.flatten(1)
    tiny = torch.finfo(flat.dtype).tiny ** 0.5
    return (flat / flat.norm(dim=1, keepdim=True).clamp(min=tiny)).reshape(direction.shape)
