"""pythae: ``BaseTrainer`` with its default loader, the same networks, stopped between epochs by a callback."""

import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

from contenders.rows import begin


def epoch(setup, link):
    """One epoch of training, all rows."""
    x = begin(setup)
    columns, hidden, latent = setup.columns, setup.hidden, setup.latent

    class Encoder(BaseEncoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(columns, hidden), nn.Softplus(), nn.Linear(hidden, 2 * latent))

        def forward(self, x):
            loc, log_variance = self.layers(x).chunk(2, -1)
            return ModelOutput(embedding=loc, log_covariance=log_variance)

    class Decoder(BaseDecoder):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(latent, hidden), nn.Softplus(), nn.Linear(hidden, columns))

        def forward(self, z):
            return ModelOutput(reconstruction=self.layers(z).sigmoid())  # its loss takes probabilities

    class Lap(TrainingCallback):
        def on_epoch_end(self, training_config, **kwargs):
            link.lap()

    model = VAE(VAEConfig((columns,), latent, reconstruction_loss="bce"), Encoder(), Decoder())
    with tempfile.TemporaryDirectory() as directory:
        config = BaseTrainerConfig(
            output_dir=directory,
            num_epochs=100_000,
            per_device_train_batch_size=setup.batch,
            learning_rate=1e-3,
            no_cuda=True,
        )
        dataset = BaseDataset(x, torch.zeros(len(x)))
        BaseTrainer(model, dataset, training_config=config, callbacks=[Lap()]).train()
