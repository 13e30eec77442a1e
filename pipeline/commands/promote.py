"""Stand-in until the retraining flow calls `python -m pipeline.cli promote`."""

import sys

from pipeline.cli import app

if __name__ == "__main__":
    app(["promote", *sys.argv[1:]])
