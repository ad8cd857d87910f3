"""What predicted files keep of the control cells."""

from pathlib import Path

import h5py
import numpy as np
import pytest
from anndata.io import write_elem

from vcell.errors import VcellError
from vcell.predict.inside import about_in, as_uns, profiles_in
from vcell.predict.profile import in_genes, profile

PATH = Path("pred.h5ad")


def in_memory(uns: dict) -> h5py.File:
    file = h5py.File("profiles.h5", "w", driver="core", backing_store=False)
    write_elem(file, "uns", uns)
    return file


def test_contexts_of_any_name_come_back_from_a_file():
    profiles = {name: np.arange(3.0) + i for i, name in enumerate(("K562", "HEK 293/T", "50%", "a%2Fb", "."))}
    with in_memory(as_uns({"seed": 3}, profiles)) as file:
        found, about = profiles_in(file, PATH, 3), about_in(file, PATH)
    assert set(found) == set(profiles) and about == {"seed": 3}
    for name, profile_G in profiles.items():
        np.testing.assert_array_equal(found[name], profile_G)


def test_a_file_of_another_program_has_none():
    with in_memory({"vcell": np.arange(3)}) as file:
        assert profiles_in(file, PATH, 3) == {} and about_in(file, PATH) == {}


@pytest.mark.parametrize("values", [np.ones(2), np.array([1, np.nan, 1]), np.ones((3, 1)), np.array(["a", "b", "c"])])
def test_damaged_ones_are_refused(values: np.ndarray):
    uns = {"vcell_control_profiles": {"K562": values.astype(object) if values.dtype.kind == "U" else values}}
    with in_memory(uns) as file, pytest.raises(VcellError, match="uns/vcell_control_profiles/K562"):
        profiles_in(file, PATH, 3)


def test_in_other_genes_it_is_the_profile_of_their_counts():
    total_G, place = np.array([5.0, 0, 3, 11]), np.array([2, 0, -1, 1])
    expected = profile(np.array([0.0, 11, 5]))
    np.testing.assert_allclose(in_genes(profile(total_G).astype(np.float32), place, 3), expected, rtol=1e-5)
