"""Estimators for scikit-learn, over VAEs of tables; imported where they are asked for, not with ``pyrovae``."""

from pyrovae.estimators.base import VAEEstimator
from pyrovae.estimators.classifier import SemiSupervisedVAEClassifier
from pyrovae.estimators.imputer import VAEImputer
from pyrovae.estimators.outliers import VAEOutlierDetector
from pyrovae.estimators.transformer import VAETransformer

__all__ = ["SemiSupervisedVAEClassifier", "VAEEstimator", "VAEImputer", "VAEOutlierDetector", "VAETransformer"]
