"""What went wrong, where, and what to do: every error a user can cause, with the exit code of the command line."""

__all__ = ["ConfigError", "DataError", "ModelFileError", "PyrovaeError", "ResourceError", "TrainingDiverged"]


class PyrovaeError(Exception):
    """Base of all errors raised on purpose; ``str(error)`` is one line for the user."""

    exit_code = 1


class ConfigError(PyrovaeError, ValueError):
    """An option, an argument or a configuration file is wrong."""

    exit_code = 2


class DataError(PyrovaeError, ValueError):
    """The data cannot be used: a file is damaged, a cell is missing, a value lies outside the support."""

    exit_code = 3


class ModelFileError(PyrovaeError, ValueError):
    """A run directory is incomplete, damaged, or does not fit the model."""

    exit_code = 4


class TrainingDiverged(PyrovaeError, ArithmeticError):
    """Loss or gradient stopped being finite; the weights are those before the bad update."""

    exit_code = 5


class ResourceError(PyrovaeError, OSError):
    """Out of disk or memory, or a directory that cannot be written."""

    exit_code = 6
