"""fastxent.sklearn is imported by who asks for it, and says what it needs."""

import pytest
from fresh import run_python


def test_fastxent_does_not_import_it():
    code = "import sys, fastxent; print([m for m in sys.modules if m == 'sklearn' or m.startswith('fastxent.sklearn')])"
    assert run_python(code) == "[]"


def test_its_name_does_not_hide_scikit_learn():
    pytest.importorskip("sklearn")
    code = "import fastxent.sklearn, sklearn; print(sklearn.__name__, fastxent.sklearn.LinearClassifier.__name__)"
    assert run_python(code) == "sklearn LinearClassifier"


def test_without_scikit_learn_it_says_what_to_install():
    code = """
import sys
sys.modules["sklearn"] = None
try:
    import fastxent.sklearn
except ImportError as error:
    print(error)
"""
    assert run_python(code) == 'fastxent.sklearn needs scikit-learn: pip install "fastxent[sklearn]"'
