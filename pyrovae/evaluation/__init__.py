"""What a model is worth: functions of anything with Pyro programs ``model`` and ``guide``; none sees an optimizer."""

from pyrovae.evaluation.imputation import Imputation, cell_log_prob, conditional_log_prob, impute
from pyrovae.evaluation.measures import (
    ActiveUnits,
    ELBOTerms,
    LogMarginal,
    active_units,
    elbo_terms,
    log_marginal,
    log_marginal_by_sampling,
    log_weights,
)
from pyrovae.evaluation.passes import Rows, as_tensor, chunks

__all__ = [
    "ActiveUnits",
    "ELBOTerms",
    "Imputation",
    "LogMarginal",
    "Rows",
    "active_units",
    "as_tensor",
    "cell_log_prob",
    "chunks",
    "conditional_log_prob",
    "elbo_terms",
    "impute",
    "log_marginal",
    "log_marginal_by_sampling",
    "log_weights",
]
