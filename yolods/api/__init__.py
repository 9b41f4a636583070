"""yolods from Python: `train` with the words of the command line, in a script or a notebook.

words      words as flags of the command line
launcher   the launcher as a process whose output appears where the caller prints
follow     reads what the run tells, as it happens
callbacks  calls the caller's functions under ultralytics' names
outcome    what a call returns or raises
call       `train` itself
names      what the package offers, imported when it is used

Nothing here imports torch: the caller's process computes nothing.
"""
