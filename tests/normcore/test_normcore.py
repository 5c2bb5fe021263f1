import subprocess
import sys

import pytest

import normcore
from normcore.data.folders import DataFolders
from normcore.spec import JobSpec


def test_classes_and_modules_for_a_notebook():
    assert normcore.JobSpec is JobSpec
    assert normcore.DataFolders is DataFolders
    assert callable(normcore.preview.preview)
    assert callable(normcore.build.build_model)
    assert callable(normcore.train.train)
    assert normcore.statistics.recompute_statistics is normcore.recompute_statistics
    for name in normcore.__all__:
        assert getattr(normcore, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'normcore' has no attribute 'nothing'"):
        normcore.nothing  # noqa: B018


def test_importing_normcore_and_its_menu_brings_no_torch():
    code = "import sys, normcore, normcore.spec, normcore.records; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_science_needs_neither_scikit_learn_nor_datasets_until_data_is_read():
    code = (
        "import sys, normcore.train, normcore.preview, normcore.data.dataset;"
        "sys.exit(any(name in sys.modules for name in ('sklearn', 'datasets', 'PIL', 'matplotlib')))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
