"""numba's compiler for the loops of the scorer, or one line on how to get it."""

from vcell.errors import VcellError

try:
    from numba import njit
except ImportError as error:
    raise VcellError("scoring needs the extra `score`: pip install 'vcell[score]'") from error

__all__ = ["njit"]
