"""`python -m benchmarks` asks the questions; `… curves`, `… peers` and `… page` (write latest.md again) do the rest."""

import sys

from benchmarks import bench, curves, fetch, record
from benchmarks.questions import QUESTIONS

if __name__ == "__main__":
    first = sys.argv[1] if sys.argv[1:] else ""
    if first == "peers":
        fetch.fetch()
    elif first == "curves":
        curves.main(sys.argv[2:])
    elif first == "page":
        print(record.page(record.RESULTS, QUESTIONS, bench.all_systems()))
    else:
        bench.main(sys.argv[1:])
