"""The broker's decisions, pure: values and `now` in, effects out. No socket, loop, clock, randomness or logging."""
