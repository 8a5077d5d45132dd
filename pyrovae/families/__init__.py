"""Final heads: each is likelihood p(x|z), posterior q(z|x) or learned prior p(z|c), as its place in the model says."""

# ruff: noqa: F403
from pyrovae.families.counts import *
from pyrovae.families.discrete import *
from pyrovae.families.interval import *
from pyrovae.families.joint import *
from pyrovae.families.levels import *
from pyrovae.families.location_scale import *
from pyrovae.families.point import *
from pyrovae.families.positive import *
from pyrovae.families.scale import *
from pyrovae.families.simplex import *
from pyrovae.families.sphere import *
