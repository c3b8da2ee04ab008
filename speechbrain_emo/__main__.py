"""``python -m speechbrain_emo``."""

import sys

from speechbrain_emo.cli import main

if __name__ == "__main__":
    sys.exit(main())
