"""Variational autoencoders as Pyro programs: prior, likelihood and posterior, each swapped by one argument."""

from pyrovae import compiled, data, distributions, errors, plots, recipes
from pyrovae._version import __version__
from pyrovae.compiled import Step, compile_step
from pyrovae.conditional import Conditional, Head
from pyrovae.config import Run, load
from pyrovae.data.preprocess import Binarize, Identity, Preprocess, Rescale, Standardize, Threshold
from pyrovae.errors import ConfigError, DataError, ModelFileError, PyrovaeError, ResourceError, TrainingDiverged
from pyrovae.evaluation import ActiveUnits, ELBOTerms, LogMarginal, active_units, elbo_terms, log_marginal, log_weights
from pyrovae.families import (
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    FixedScale,
    Laplace,
    LearnedScale,
    NetworkScale,
    Normal,
    OptimalScale,
    Scale,
    SharedScale,
    StudentT,
)
from pyrovae.fit import Callback, EarlyStopping, History, Progress, State, fit
from pyrovae.flows import IAF, MAF, Flow, FlowTransform, Householder, NeuralSpline, Planar, RealNVP, Sylvester
from pyrovae.handlers import temper
from pyrovae.models import VAE, Model
from pyrovae.nn import MLP, ConvNet, GatedMLP, ResNet
from pyrovae.objectives import ELBO, IWAE, Cyclical, Objective, Warmup
from pyrovae.priors import ExemplarPrior, Mixture, StandardNormal, VampPrior
from pyrovae.refinement import Refined, refine

__all__ = [
    "ELBO",
    "IAF",
    "IWAE",
    "MAF",
    "MLP",
    "VAE",
    "ActiveUnits",
    "Bernoulli",
    "Binarize",
    "Callback",
    "Categorical",
    "Conditional",
    "ConfigError",
    "ContinuousBernoulli",
    "ConvNet",
    "Cyclical",
    "DataError",
    "ELBOTerms",
    "EarlyStopping",
    "ExemplarPrior",
    "FixedScale",
    "Flow",
    "FlowTransform",
    "GatedMLP",
    "Head",
    "History",
    "Householder",
    "Identity",
    "Laplace",
    "LearnedScale",
    "LogMarginal",
    "Mixture",
    "Model",
    "ModelFileError",
    "NetworkScale",
    "NeuralSpline",
    "Normal",
    "Objective",
    "OptimalScale",
    "Planar",
    "Preprocess",
    "Progress",
    "PyrovaeError",
    "RealNVP",
    "Refined",
    "ResNet",
    "Rescale",
    "ResourceError",
    "Run",
    "Scale",
    "SharedScale",
    "StandardNormal",
    "Standardize",
    "State",
    "Step",
    "StudentT",
    "Sylvester",
    "Threshold",
    "TrainingDiverged",
    "VampPrior",
    "Warmup",
    "__version__",
    "active_units",
    "compile_step",
    "compiled",
    "data",
    "distributions",
    "elbo_terms",
    "errors",
    "fit",
    "load",
    "log_marginal",
    "log_weights",
    "plots",
    "recipes",
    "refine",
    "temper",
]
