"""The report's figures."""

import os

os.environ["MPLBACKEND"] = "agg"  # a notebook's shell names a backend that may not be installed here
