import pytest
from tensortrace.tracer.errors import MissingExtra, ModelError, TraceError, UserError


@pytest.mark.parametrize("error", [ModelError("m"), TraceError("t"), MissingExtra("torch", "torch")])
def test_all_are_user_errors(error):
    assert isinstance(error, UserError)


def test_missing_extra_says_how_to_get_it():
    assert str(MissingExtra("cupy", "cuda12")) == "cupy is not installed: pip install 'tensortrace[cuda12]'"
