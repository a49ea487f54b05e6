"""A sweep of networks without its figures, in a process of its own: what the benchmark times."""

import sys

from bpexp import entry

if __name__ == "__main__":
    entry.call("gradient_flow", ["-m", *sys.argv[1:]])
