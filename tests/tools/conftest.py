"""The tools are scripts beside each other: they find each other in the folder of whichever runs."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "tools"))
