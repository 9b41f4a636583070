"""What each rank sends in a step, how long it takes, and what theory asks for."""
