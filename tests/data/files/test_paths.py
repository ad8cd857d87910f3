from pathlib import Path

import pytest

from vcell.atomic import names_of_files
from vcell.data.files.paths import braces, expand, toml_patterns
from vcell.errors import VcellError


def test_braces_expand():
    assert braces("a/{x,y}_{1,2}.h5") == ["a/x_1.h5", "a/x_2.h5", "a/y_1.h5", "a/y_2.h5"]
    assert braces("plain.h5ad") == ["plain.h5ad"]


def test_globs_braces_and_lists_expand_once_each(tmp_path: Path):
    for name in ("a.h5ad", "b.h5ad", "c.h5"):
        (tmp_path / name).touch()
    found = expand([f"{tmp_path}/*.h5ad", f"{tmp_path}/{{a,c}}.*"])
    assert [p.name for p in found] == ["a.h5ad", "b.h5ad", "c.h5"]


def test_missing_files_are_all_named(tmp_path: Path):
    (tmp_path / "a.h5").touch()
    with pytest.raises(VcellError, match=r"b\.h5.*c\.h5"):
        expand(f"{tmp_path}/{{a,b,c}}.h5")


def test_toml_paths_are_found_from_the_folder_above(tmp_path: Path):
    folder = tmp_path / "support"
    folder.mkdir()
    (folder / "a.h5").touch()
    (folder / "starter.toml").write_text('[datasets]\nx = "support/{a,b}.h5"\n')
    assert toml_patterns(folder / "starter.toml") == [str(tmp_path / "support" / "{a,b}.h5")]


def test_a_link_that_leads_nowhere_is_said(tmp_path: Path):
    """Also among others that a glob finds: a screen without one of its files would be trained on in silence."""
    (tmp_path / "a.h5ad").touch()
    (tmp_path / "b.h5ad").symlink_to(tmp_path / "gone.h5ad")
    for pattern in (f"{tmp_path}/b.h5ad", f"{tmp_path}/*.h5ad", f"{tmp_path}/{{a,b}}.h5ad"):
        with pytest.raises(VcellError, match=r"b\.h5ad is a link that leads to no file\. Set data\.path="):
            expand(pattern)


def test_labels_become_names_of_files():
    labels = ["K562/x", "K562:x", "a$b", "HEK 293\n", "long" * 99, "long" * 99, "a$B"]
    names = names_of_files(labels)
    assert names[:4] == ["K562_x", "K562_x_2", "a$b", "HEK 293_"] and names[-1] == "a$B_2"
    assert len({name.lower() for name in names}) == len(labels)
    assert max(map(len, names)) < 60
