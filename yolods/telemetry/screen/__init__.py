"""What the terminal shows, for its width."""
