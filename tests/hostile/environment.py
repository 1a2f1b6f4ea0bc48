"""What a child of a worker finds around itself, written to the file that it is given."""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    initial = Path("/proc/self/environ")
    seen = initial.read_text() if initial.exists() else ""
    Path(sys.argv[1]).write_text(json.dumps({"now": dict(os.environ), "at_start": seen}))
