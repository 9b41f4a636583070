"""The launcher: its flags, its command, corrections to DeepSpeed's launchers, and restarts."""
