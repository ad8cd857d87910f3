"""numba's compiler for the loops of the scorer, or one line on how to get it."""

from vcell.errors import VcellError, install

try:
    from numba import njit
except ImportError as error:
    raise VcellError(f"scoring needs additional packages: {install('score')}") from error

__all__ = ["njit"]
