"""The pictures of a run."""

from pathlib import Path

import pyro.distributions as dist
import torch

from pyrovae import plots
from pyrovae.data import Table
from pyrovae.distributions import center
from pyrovae.fit import History
from pyrovae.models import Model

__all__ = ["draw", "mean_samples"]


def draw(directory: Path, model: Model, history: History, x: torch.Tensor, table: Table) -> None:
    """Loss curve, samples, reconstructions and, where the latent space has two dimensions, its picture."""
    plots.loss_curve(history.rows, directory / "loss.png")
    image = plots.is_image(x)
    grey = _Grey(x) if image else lambda values: values
    reconstructed = model.reconstruct(x[:32]).cpu()
    plots.reconstructions(grey(x[:32]), grey(reconstructed), directory / "reconstructions.png")
    if image:
        title = "samples from the prior, decoded"
        plots.images(grey(mean_samples(model, 64)), directory / "samples.png", title=title)
    else:
        title = "data and samples, as the model sees them"
        samples = model.sample(max(1000, len(x))).cpu()
        plots.marginals(x, samples, directory / "samples.png", names=table.columns, title=title)
    z = model.encode(x[:5000]).mean.cpu()
    if z.shape[1:] == (2,):
        plots.latent(z, None if table.y is None else table.y[:5000], directory / "latent.png")
        if image:
            plots.manifold(grey(_decoded_grid(model)), directory / "manifold.png")


def mean_samples(model: Model, n: int, seed: int = 0) -> torch.Tensor:
    """Latents drawn from the prior, decoded to the likelihood's mean."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        prior = model.get_submodule("prior")
        return center(model.decode(prior().expand((n,)).sample())).cpu()


def _decoded_grid(model: Model, side: int = 20) -> torch.Tensor:
    """Quantiles of the standard normal in both directions, the second coordinate upwards."""
    quantiles = dist.Normal(0.0, 1.0).icdf(torch.linspace(0.025, 0.975, side))
    down, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return center(model.decode(torch.stack([right, down], -1))).cpu()


class _Grey:
    """Values as they run in the data, brought to [0, 1] where they are not already there."""

    def __init__(self, x: torch.Tensor) -> None:
        low, high = x.min().item(), x.max().item()
        self.low, self.high = (0.0, 1.0) if low >= 0 and high <= 1 else (low, max(high, low + 1e-6))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.low) / (self.high - self.low)
