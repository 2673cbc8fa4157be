from tests.runtime.ops.conftest import shim as shim  # the fixture
