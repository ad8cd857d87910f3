"""vcell: predict how single cells respond to genetic perturbations."""

__version__ = "0.1.0"

from vcell import former

former.install()
