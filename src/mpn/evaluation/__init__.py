"""J, F and the DAVIS layout."""
