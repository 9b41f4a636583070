"""The training loop and its parts: batches, pace, .pt files, model selection, final validation.

`setup/` has the parts of a start, `checks/` what is checked before one.
"""
