"""Training: a configuration to data, model and trainer, and a run that can be resumed at any step."""

from vcell.training.late_compiler import load_compiler_late
from vcell.training.light_start import load_in_part

# before the first import of Lightning
load_in_part()
load_compiler_late()
