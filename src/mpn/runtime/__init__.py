"""One frame through the stages, and a whole video. Never imports torch."""
