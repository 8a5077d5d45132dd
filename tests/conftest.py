"""What every test starts from: Pyro without parameters, known noise, float32 unless asked otherwise."""

import pyro
import pytest
import torch

collect_ignore = ["benchmarks"]  # run by hand; some of its modules need environments of their own


@pytest.fixture(scope="session", autouse=True)
def threads():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def clean_slate():
    """A fresh param store and seed; a default dtype or validation switch that a test changes is put back."""
    dtype, validation = torch.get_default_dtype(), pyro.poutine.util.is_validation_enabled()
    pyro.clear_param_store()
    torch.manual_seed(0)
    yield
    pyro.clear_param_store()
    pyro.enable_validation(validation)
    torch.set_default_dtype(dtype)


@pytest.fixture
def float64():
    """Double precision by default, where the answer is exact."""
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(dtype)
