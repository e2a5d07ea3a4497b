"""What the method costs beside other ways to the same end; `make bench` runs these by hand.

A module is a benchmark: `PAIRS` is how many pairs of runs it takes by default, and `run(pairs)`
gives one Figure for every number that it measures, the main one first.
"""
