"""What each command does: its flags, its start through the launcher, its ranks, and what a single
process prints."""

USER_ERROR = 2
"""The exit status after an error in what the user gave."""
