"""The stage that a scene is played on: every scene is played on each of them."""
