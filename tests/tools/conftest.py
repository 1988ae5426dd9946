"""What all tests of the tools need."""

import pytest
from mmengine.logging import MMLogger


@pytest.fixture(autouse=True)
def logger_of_its_own():
    """A tool run in this process starts without the logger of an earlier test, whose stream pytest has closed."""
    earlier = dict(MMLogger._instance_dict)
    MMLogger._instance_dict.clear()
    yield
    MMLogger._instance_dict.clear()
    MMLogger._instance_dict.update(earlier)
