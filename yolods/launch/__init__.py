"""The launcher: its flags, its command, DeepSpeed's launchers put right, and the supervisor of a start."""
