"""All tests: nothing of the user's is read or kept, and CPUs are alike in what they compute in.

CPUs that are faster in bfloat16 draw in it by themselves. Tests compare bits, and say so where they want bfloat16.
"""

import os
import tempfile
from unittest.mock import patch

from feedface.common import bfloat16

_HOME = tempfile.TemporaryDirectory(prefix="feedface-tests-")
os.environ["XDG_CACHE_HOME"] = _HOME.name  # processes that tests start have it too
with patch.object(bfloat16, "speedup", lambda: 1.0):
    bfloat16.faster_in_bfloat16()
