"""Run many videos: one video is one unit of work with one output folder."""
