"""The pictures of a run."""

from pathlib import Path

import pyro.distributions as dist
import torch

from pyrovae import plots
from pyrovae.data import Table
from pyrovae.fit import History
from pyrovae.models import Model

__all__ = ["draw", "mean_samples"]


def draw(directory: Path, model: Model, history: History, x: torch.Tensor, table: Table) -> None:
    """Loss curve, samples, reconstructions and, where the latent space has two dimensions, its picture."""
    plots.loss_curve(history.rows, directory / "loss.png")
    plots.reconstructions(x[:32], model.reconstruct(x[:32]).cpu(), directory / "reconstructions.png")
    image = x.dim() == 4 and x.shape[1] in (1, 3)
    if image:
        plots.images(mean_samples(model, 64), directory / "samples.png", title="samples from the prior, decoded")
    else:
        plots.marginals(x, model.sample(len(x)).cpu(), directory / "samples.png", names=table.columns)
    z = model.encode(x[:5000]).mean.cpu()
    if z.shape[1:] == (2,):
        plots.latent(z, None if table.y is None else table.y[:5000], directory / "latent.png")
        if image:
            plots.manifold(_decoded_grid(model), directory / "manifold.png")


def mean_samples(model: Model, n: int, seed: int = 0) -> torch.Tensor:
    """Latents drawn from the prior, decoded to the likelihood's mean."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        prior = model.get_submodule("prior")
        return model.decode(prior().expand((n,)).sample()).mean.cpu()


def _decoded_grid(model: Model, side: int = 20) -> torch.Tensor:
    """Quantiles of the standard normal in both directions, the second coordinate upwards."""
    quantiles = dist.Normal(0.0, 1.0).icdf(torch.linspace(0.025, 0.975, side))
    down, right = torch.meshgrid(quantiles.flip(0), quantiles, indexing="ij")
    return model.decode(torch.stack([right, down], -1)).mean.cpu()
