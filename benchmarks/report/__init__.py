"""Write tables and plots from results, and compare results."""
