from tests.emulation.cuda_shim.fixtures import shim as shim  # the fixture
