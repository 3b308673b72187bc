"""``python -m DiffusionFMLib`` is ``diffusionfm``."""

import sys

from DiffusionFMLib.cli import main

sys.exit(main())
