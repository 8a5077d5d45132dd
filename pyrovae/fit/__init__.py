"""Training: one loop, and next to it callbacks, the history and the guard."""

from pyrovae.fit.callbacks import Callback, EarlyStopping, Progress, State
from pyrovae.fit.history import History
from pyrovae.fit.loop import fit

__all__ = ["Callback", "EarlyStopping", "History", "Progress", "State", "fit"]
