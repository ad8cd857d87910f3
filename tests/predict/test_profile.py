"""Profiles of control cells in a file."""

import h5py
import numpy as np
from anndata.io import read_elem, write_elem

from vcell.predict.profile import as_uns, of_uns


def test_contexts_of_any_name_come_back_from_a_file():
    profiles = {name: np.arange(3.0) + i for i, name in enumerate(("K562", "HEK 293/T", "50%", "a%2Fb", "."))}
    with h5py.File("profiles.h5", "w", driver="core", backing_store=False) as file:
        write_elem(file, "uns", as_uns(profiles))
        found = of_uns(read_elem(file["uns"]))
    assert set(found) == set(profiles)
    for name, profile in profiles.items():
        np.testing.assert_array_equal(found[name], profile)
