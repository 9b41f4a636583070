"""Planning before a run: cost of each node, where to cut, and the duration of the schedule.

Pure.
"""
