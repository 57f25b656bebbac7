"""Set up the virtual environment, then test, demonstrate or check the project in it.

What the Makefile runs, and usable without make: `setup_env.py help`. The work is in envsetup/; here
is only what an interpreter too old to read that can say.
"""

import os
import sys

if sys.version_info < (3, 8):  # noqa: UP036
    sys.exit(
        "%s is Python %d.%d; this project needs Python 3.10 to 3.13. "  # noqa: UP031
        "Name one by PYTHON=, like make test PYTHON=python3.12"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )

from envsetup.commands import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
