"""Build engine directories, clips and disks for tests."""
