"""The broker's decisions, pure: values and `now` in, actions out. No socket, loop, clock, randomness or logging."""
