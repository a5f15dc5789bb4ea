"""The client imports nothing of the server."""

import sys

import pytest

from tests.processes import run

CLIENT_PARTS = {"_version", "aio", "client", "errors", "frameworks", "numpy", "records", "system", "wire"}
SERVER_LIBRARIES = {"structlog", "prometheus_client", "yaml", "uvloop", "click"}  # grpc loads its own other packages

LIST_MODULES = """
import sys
{statement}
print(*sys.modules)
"""


@pytest.mark.parametrize(
    "statement",
    [
        "from cogment_model_registry import ModelRegistry; ModelRegistry('grpc://localhost:1').close()",
        "from cogment_model_registry import aio; aio.ModelRegistry('grpc://localhost:1')",
        "from cogment_model_registry.client import blocking, tracking, watching",
    ],
)
def test_the_client_loads_nothing_of_the_server(statement: str) -> None:
    program = LIST_MODULES.format(statement=statement)
    result = run(sys.executable, "-c", program)
    assert result.returncode == 0, result.stderr
    names = [name.split(".") for name in result.stdout.split()]
    parts = {name[1] for name in names if name[0] == "cogment_model_registry" and len(name) > 1}
    assert parts <= CLIENT_PARTS
    assert "client" in parts
    assert {name[0] for name in names} & SERVER_LIBRARIES == set()
