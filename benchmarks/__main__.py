"""`python -m benchmarks`: the questions; `… curves`: the scaling curves; `… peers`: fetch what npm and pip can bring."""

import sys

from benchmarks import bench, curves, fetch

if __name__ == "__main__":
    first, *rest = [*sys.argv[1:], ""]
    if first == "peers":
        fetch.fetch()
    elif first == "curves":
        curves.main(sys.argv[2:])
    else:
        bench.main(sys.argv[1:])
