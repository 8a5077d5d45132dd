"""The graphs: each model is a pair of short Pyro programs over conditional distributions."""

from pyrovae.models.auxiliary import AuxiliaryVAE, SkipVAE
from pyrovae.models.clusters import GaussianMixtureVAE, VaDE
from pyrovae.models.labelled import Labelled
from pyrovae.models.model import Model
from pyrovae.models.semi_supervised import SemiSupervisedVAE
from pyrovae.models.vae import VAE

__all__ = ["VAE", "AuxiliaryVAE", "GaussianMixtureVAE", "Labelled", "Model", "SemiSupervisedVAE", "SkipVAE", "VaDE"]
