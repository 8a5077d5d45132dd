"""Labels for all rows of a table from a few: methods compared, the best calibrated, what it does not know said."""

from pyrovae.labelling.asking import ask_next
from pyrovae.labelling.baselines import GradientBoosting, GraphSpreading, SelfTraining
from pyrovae.labelling.calibration import Abstention, ConformalSets, Temperature
from pyrovae.labelling.comparison import Comparison, Trial, compare_labellers, label_folds
from pyrovae.labelling.density import Density, Neighbourhood
from pyrovae.labelling.features import Features, Pixels, TableFeatures, as_rows, infer_features
from pyrovae.labelling.front import METHODS, candidates, label
from pyrovae.labelling.hidden import StudyRows, draw_labels
from pyrovae.labelling.methods import Labeller, NetworkLabeller, Smooth, SpreadLabeller, Supervised, VariationalM2
from pyrovae.labelling.propagation import LatentPropagation
from pyrovae.labelling.result import Labelling
from pyrovae.labelling.study import (
    STRATEGIES,
    STUDIED,
    StudyTable,
    compare_labels,
    simulate_asking,
    study_table,
)
from pyrovae.labelling.trained import Calibration, TrainedLabeller, load_labeller
from pyrovae.labelling.training import Sizes, sizes_for

__all__ = [
    "METHODS",
    "STRATEGIES",
    "STUDIED",
    "Abstention",
    "Calibration",
    "Comparison",
    "ConformalSets",
    "Density",
    "Features",
    "GradientBoosting",
    "GraphSpreading",
    "Labeller",
    "Labelling",
    "LatentPropagation",
    "Neighbourhood",
    "NetworkLabeller",
    "Pixels",
    "SelfTraining",
    "Sizes",
    "Smooth",
    "SpreadLabeller",
    "StudyRows",
    "StudyTable",
    "Supervised",
    "TableFeatures",
    "Temperature",
    "TrainedLabeller",
    "Trial",
    "VariationalM2",
    "as_rows",
    "ask_next",
    "candidates",
    "compare_labellers",
    "compare_labels",
    "draw_labels",
    "infer_features",
    "label",
    "label_folds",
    "load_labeller",
    "simulate_asking",
    "sizes_for",
    "study_table",
]
