"""``python -m pyseccomp``: the command line."""

import sys

from pyseccomp.cli import main

sys.exit(main())
