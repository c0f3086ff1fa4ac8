"""Self-supervised learning methods that read like their papers, and one pipeline that compares them fairly."""

import os
import sys

if not sys.stderr.isatty():  # a log file wants a progress line now and then, not ten a second
    os.environ.setdefault("TQDM_MININTERVAL", "20")
