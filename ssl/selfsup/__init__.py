"""Self-supervised learning methods that read like their papers, and one pipeline that compares them fairly."""

import os
import sys

if not sys.stderr.isatty():  # a log file needs a progress line every 20 s, not ten per second
    os.environ.setdefault("TQDM_MININTERVAL", "20")
